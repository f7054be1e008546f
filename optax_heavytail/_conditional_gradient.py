"""Penalised conditional gradient: sign, Muon and ridge steps of one formula."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _matrices
from optax_heavytail._transform import transform

_GAUGES = ("l1", "l2", "linf", "spectral")

# In float32 rounding in directions that a matrix lacks stays small: 1e6 times 1e-7.
_STEPS = 16


class ConditionalGradientState(NamedTuple):
    """State of `conditional_gradient`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen


def conditional_gradient(
    strength: jax.typing.ArrayLike,
    gauge: str = "l1",
    *,
    step: _base.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Minimises a function plus the square of a norm, one direction at a time.

    For :math:`f(w) + \frac{\lambda}{2} \lVert w \rVert^2`, at updates
    :math:`t = 1, 2, \ldots`,

    .. math::
        w_t = (1 - \theta_t) w_{t-1} + \theta_t s_t, \qquad
        s_t = \operatorname*{argmin}_s\, g_t^\top s + \tfrac{\lambda}{2}
        \lVert s \rVert^2, \qquad \theta_t = \frac{2}{t + 1}.

    =========== ==================================== ================================
    ``gauge``   :math:`\lVert w \rVert`              :math:`s`
    =========== ==================================== ================================
    "l1"        sum of sizes over all leaves         :math:`-\max|g|\,
                                                     \operatorname{sign}(g_i) e_i /
                                                     \lambda`, :math:`i` the first
                                                     largest
    "l2"        Euclidean                            :math:`-g / \lambda`
    "linf"      largest size over all leaves         :math:`-\lVert g \rVert_1
                                                     \operatorname{sign}(g) / \lambda`
    "spectral"  of each matrix its largest singular  :math:`-\lVert g \rVert_*
                value, of other leaves "l2"          U V^\top / \lambda`
    =========== ==================================== ================================

    So "linf" is sign descent with decoupled decay :math:`\theta`, and "spectral" is
    Muon's direction with it, both with a length that falls with the gradient. It
    owns its rate, and the penalty is part of it: no learning rate or decay follows.

    Not for gradients of small batches as they are: :math:`s` would be that of the
    noise, so an average such as `ema` belongs in front. Nor for "l1" in large models,
    where a step moves one entry.

    Args:
      strength: :math:`\lambda` in (0, inf).
      gauge: one of the words above. "spectral" takes the matrices of the last two axes,
        and their polar factors by iteration: singular values below 1e-5 of the
        Frobenius norm count for less than 1.
      step: :math:`\theta` in [0, 1], or a schedule of the count from 0; ``None`` for
        :math:`2 / (t + 1)`, whose first step forgets the start.

    Returns:
      A transform with a `ConditionalGradientState`. A zero gradient has :math:`s = 0`.
      An inf or NaN entry reaches what shares its norm: every entry for "l1" and "linf"
      if it is NaN.

    Raises:
      ValueError: a concrete number is outside its range, ``gauge`` is unknown, or
        parameters are not given.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> target, w = jnp.array([3.0, 1.0, -0.5]), jnp.ones(3)
      >>> tx = oht.conditional_gradient(1.0)
      >>> state, update = tx.init(w), jax.jit(tx.update)
      >>> for _ in range(2000):
      ...     updates, state = update(w - target, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> [abs(round(x, 2)) for x in w.tolist()]
      [1.5, 0.0, 0.0]

    References:
      Sun and Bach, `Screening for a reweighted penalized conditional gradient method
      <https://arxiv.org/abs/2107.01106>`_, 2022.
    """
    _base.check_range("strength", strength, 0.0, float("inf"), low_open=True)
    _base.check_choice("gauge", gauge, _GAUGES)
    if step is not None:
        _base.check_range("step", step, 0.0, 1.0)
    direction = _DIRECTIONS[gauge]
    fraction = _published if step is None else step

    def init(params):
        del params
        return ConditionalGradientState(jnp.zeros([], jnp.int32))

    def update(grads, state, params):
        count = optax.safe_increment(state.count)
        theta = _base.at_count(fraction, state.count)
        updates = jax.tree.map(
            lambda z, w: theta * (-z / strength - w), direction(grads), params
        )
        return updates, ConditionalGradientState(count)

    return transform(init, update, needs_params=True)


def _published(count: Any) -> Any:
    return 2 / (count + 2)


def _l1(grads: Any) -> Any:
    """The first largest entry over all leaves, and 0 elsewhere."""
    leaves, treedef = jax.tree.flatten(grads)
    sizes = [jnp.max(jnp.abs(g), initial=0) for g in leaves]
    largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, sizes, 0.0))
    chosen, found = [], False
    for g in leaves:
        at_largest = jnp.abs(g) == largest
        position = _positions(g)
        first = jnp.min(jnp.where(at_largest, position, g.size), initial=g.size)
        picked = jnp.where((position == first) & ~jnp.asarray(found), g, 0)
        chosen.append(jnp.where(jnp.isnan(largest), largest, picked))
        found = found | (first < g.size)
    return treedef.unflatten(chosen)


def _positions(x: jax.Array) -> jax.Array:
    """The position of each entry in the flattened array."""
    position, stride = jnp.zeros(x.shape, jnp.int32), 1
    for axis in reversed(range(x.ndim)):
        position += stride * jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
        stride *= x.shape[axis]
    return position


def _l2(grads: Any) -> Any:
    return grads


def _linf(grads: Any) -> Any:
    total = sum(jnp.sum(jnp.abs(g)) for g in jax.tree.leaves(grads))
    return jax.tree.map(lambda g: total * jnp.sign(g), grads)


def _spectral(grads: Any) -> Any:
    def scaled_factor(x):
        factor = _matrices.unit_matrices(x)
        factor = _matrices.polar(factor, _matrices.POLAR_EXPRESS, _STEPS)
        return factor * jnp.sum(x * factor, (-2, -1), keepdims=True)

    return jax.tree.map(
        lambda g: (
            g if g.ndim < 2 else _matrices.map_matrices(scaled_factor, g, (-2, -1))
        ),
        grads,
    )


_DIRECTIONS = {"l1": _l1, "l2": _l2, "linf": _linf, "spectral": _spectral}
