"""Clips without a kink, to differentiate through."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree, _units
from optax_heavytail._gclip import ClipByNormState
from optax_heavytail._transform import transform


def clip_smoothly(
    threshold: _base.ScalarOrSchedule,
    *,
    shape: str = "algebraic",
    scope: str = "coordinate",
    layer_axis: Any = None,
    nonfinite: str = "propagate",
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Bounds each entry or norm by a smooth function that is 1 to 1 near zero.

    With :math:`r` the size of an entry, or the norm of a leaf or of all,

    .. math:: u = \frac{\tau \, \varphi(r / \tau)}{r} \, g, \qquad
        \varphi(x) = \tanh x, \quad \frac{2}{\pi} \arctan \frac{\pi x}{2}, \quad
        \frac{x}{\sqrt{1 + x^2}} \quad \text{or} \quad \frac{x}{1 + x}

    for the shapes "tanh", "arctan", "algebraic" and "softsign". Each has slope 1 at 0,
    grows, and stays below 1, so that sizes stay below :math:`\tau`. Unlike a hard clip
    it shortens everything a little, and it clips again what it has clipped.

    Args:
      threshold: :math:`\tau` in (0, inf), in the updates' units, or a schedule of the
        count from 0.
      shape: "tanh", "arctan", "algebraic" or "softsign".
      scope: what has one size: "coordinate", "leaf" or "global".
      layer_axis: with scope "leaf" the axis that stacks layers, each of which has its
        own norm: an int, ``None``, or a tree prefix of these.
      nonfinite: what an inf or NaN entry does. "propagate": every entry that shares its
        norm becomes NaN. "zero": that entry alone becomes 0, and the norm is taken
        without it.
      axis_name: see `clip_by_norm`. Scope "coordinate" takes no norm.

    Returns:
      A transform with a `ClipByNormState`. Updates keep their structure, shapes and
      dtypes. Zero stays zero, with a slope of 1; huge and tiny updates are clipped
      right, and nothing grows.

    Raises:
      ValueError: a concrete threshold is outside its range, a word is unknown, or there
        is a ``layer_axis`` without the scope "leaf".
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> for shape in ("tanh", "arctan", "algebraic", "softsign"):
      ...     tx = oht.clip_smoothly(2.0, shape=shape)
      ...     grads = jnp.array([0.1, 2.0, 20.0])
      ...     updates, _ = tx.update(grads, tx.init(grads))
      ...     print([round(u, 3) for u in updates.tolist()])
      [0.1, 1.523, 2.0]
      [0.1, 1.278, 1.919]
      [0.1, 1.414, 1.99]
      [0.095, 1.0, 1.818]

    References:
      Jakovetic et al., `Nonlinear gradient mappings and stochastic optimization
      <https://arxiv.org/abs/2204.02593>`_, 2023.
    """
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    _base.check_choice("shape", shape, tuple(_SHAPES))
    _base.check_choice("nonfinite", nonfinite, _units.NONFINITE)
    units = _units.of_scope(scope, layer_axis, axis_name)
    near, far = _SHAPES[shape]

    def init(params):
        kept = None if scope == "coordinate" else units.all_kept(params)
        return ClipByNormState(jnp.zeros([], jnp.int32), kept)

    def update(updates, state):
        if nonfinite == "zero":
            updates = _units.zero_nonfinite(updates)
        tau = jnp.asarray(_base.at_count(threshold, state.count))
        tau = _tree.nan_unless(tau >= 0, tau)  # a schedule's bad one is loud
        norms = units.norms(updates)
        sizes = jax.tree.map(lambda n, scale: _norms.Norm(n, scale).value, *norms)
        is_near = jax.tree.map(lambda n: n <= tau, sizes)

        def shorten(size, is_near):
            return near(_tree.safe_divide(jnp.where(is_near, size, 0), tau))

        def length(size, is_near):  # the ratio to it may be no number
            return tau * far(tau / jnp.where(is_near, tau + 1, size))

        factors = jax.tree.map(shorten, sizes, is_near)
        lengths = jax.tree.map(length, sizes, is_near)
        vectors = _units.unit_vectors(units, updates, norms)
        clipped = optax.tree.add(
            units.map(
                lambda g, ok, x: jnp.where(ok, g * x, 0), updates, is_near, factors
            ),
            units.map(
                lambda v, ok, x: jnp.where(ok, 0, v * x), vectors, is_near, lengths
            ),
        )
        kept = None
        if scope != "coordinate":
            share = jnp.where(is_near, factors, _tree.safe_divide(lengths, sizes))
            kept = units.report(share, updates)
        return clipped, ClipByNormState(optax.safe_increment(state.count), kept)

    return transform(init, update)


def _series(function: Callable[[jax.Array], jax.Array], curvature: float) -> Any:
    """``function(x) / x``, which has no finite slope in this form where x is tiny."""

    def ratio(x):
        is_tiny = x < 1e-4
        safe = jnp.where(is_tiny, 1, x)
        return jnp.where(is_tiny, 1 - curvature * x**2, function(safe) / safe)

    return ratio


def _arctan(x: jax.Array) -> jax.Array:
    return jnp.arctan(x * (jnp.pi / 2)) * (2 / jnp.pi)


# phi(x) / x for x within [0, 1], and phi(1 / y) for y within [0, 1].
_SHAPES = {
    "tanh": (
        _series(jnp.tanh, 1 / 3),
        lambda y: jnp.tanh(1 / jnp.maximum(y, 1e-3)),
    ),
    "arctan": (
        _series(_arctan, math.pi**2 / 12),
        lambda y: 1 - (2 / jnp.pi) * jnp.arctan(y * (2 / jnp.pi)),
    ),
    "algebraic": (
        lambda x: 1 / jnp.sqrt(1 + x**2),
        lambda y: 1 / jnp.sqrt(1 + y**2),
    ),
    "softsign": (lambda x: 1 / (1 + x), lambda y: 1 / (1 + y)),
}
