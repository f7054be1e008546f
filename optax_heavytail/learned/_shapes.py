"""What weights must be, and drawing some."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Shapes = Sequence[tuple[int, ...]]


def check(weights: Any, kind: Any, shapes: Shapes, what: str) -> None:
    """Raises if weights, which may be traced, are not of a kind and of such shapes."""
    if not isinstance(weights, kind):
        raise TypeError(
            f"weights must be {kind.__name__}, such as `load` returns, got "
            f"{type(weights).__name__}."
        )
    for name, array, shape in zip(kind._fields, weights, shapes, strict=True):
        if jnp.shape(array) != shape:
            raise ValueError(
                f"weights.{name} must have shape {shape} {what}, got "
                f"{jnp.shape(array)}."
            )


def drawn(key: jax.Array, kind: Any, shapes: Shapes) -> Any:
    """Normal weights with a variance of 1 / inputs; biases, the odd fields, are 0."""
    keys = jax.random.split(key, len(shapes))
    return kind(
        *(
            jnp.zeros(shape)
            if i % 2
            else jax.random.normal(keys[i], shape) / shape[0] ** 0.5
            for i, shape in enumerate(shapes)
        )
    )
