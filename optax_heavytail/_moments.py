"""What Adam and its kin share: the checks, the start and the correction of averages."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree


def check(b1: Any, b2: Any, mu_dtype: Any, nu_dtype: Any) -> None:
    """Raises if a decay or a dtype of the two averages is not allowed."""
    _base.check_range("b1", b1, 0.0, 1.0, high_open=True)
    _base.check_range("b2", b2, 0.0, 1.0, high_open=True)
    _base.check_dtype("mu_dtype", mu_dtype)
    _base.check_dtype("nu_dtype", nu_dtype)


def start(params: Any, mu_dtype: Any, nu_dtype: Any) -> tuple[jax.Array, Any, Any]:
    """The count and the two averages before the first update."""
    return (
        jnp.zeros([], jnp.int32),
        _tree.zeros_like(params, mu_dtype),
        _tree.zeros_like(params, nu_dtype),
    )


def corrected(mu: Any, nu: Any, b1: Any, b2: Any, count: Any) -> tuple[Any, Any]:
    """The averages of gradients and squares, corrected for their start at 0."""
    mean = optax.tree.bias_correction(mu, b1, count)
    return mean, optax.tree.scale(1 / _tree.debias_weight(b2, count), nu)
