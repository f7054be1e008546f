"""Replacing the norm of the gradient by a stable one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree, _units
from optax_heavytail._transform import transform


class ScaleByStableNormState(NamedTuple):
    """State of `scale_by_stable_norm`.

    A unit is what has one norm: a leaf, a slice of a leaf, or all leaves. The shapes
    are ``(units,)``, and ``()`` with the scope "global".
    """

    seen: jax.Array  #: int32, norms that were finite and not 0
    mean: jax.Array  #: m, float32 or wider, not corrected for its start at 0
    root: jax.Array  #: the root of v, likewise


def scale_by_stable_norm(
    b1: jax.typing.ArrayLike = 0.6,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-12,
    *,
    max_ratio: jax.typing.ArrayLike | None = None,
    scope: str = "leaf",
    layer_axis: Any = None,
    nonfinite: str = "propagate",
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the direction of each leaf, and gives it a length of about 1.

    With the norm :math:`n_t` of a leaf or slice, :math:`m_0 = v_0 = 0`, and :math:`s`
    the number of its norms so far,

    .. math::
        m_t &= \gamma_1 m_{t-1} + (1 - \gamma_1) x_t, \qquad
        v_t = \gamma_2 v_{t-1} + (1 - \gamma_2) x_t^2, \\
        u_t &= \frac{g_t}{n_t} \cdot \frac{m_t / (1 - \gamma_1^s)}
        {\sqrt{v_t / (1 - \gamma_2^s)} + \epsilon},

    where :math:`x_t = n_t`, or with ``max_ratio``
    :math:`x_t = \min(n_t, c \sqrt{v_{t-1} / (1 - \gamma_2^{s-1})})`. For use in front
    of Adam or Lion: behind it the loss's scale no longer matters, and with SGD a
    learning rate would change its meaning.

    As published the ratio is not within 1: its supremum is
    :math:`(1 - \gamma_1) / \sqrt{(1 - \gamma_2)(1 - \gamma_1^2 / \gamma_2)}`, 15.8 for
    the defaults, and after a spike of size :math:`S` all gradients are shortened by
    :math:`1 / \sqrt{1 + (1 - \gamma_2) S^2}` for about :math:`1 / (1 - \gamma_2)`
    updates. ``max_ratio``, which is not in the paper, ends both.

    Args:
      b1: :math:`\gamma_1` in [0, 1), per update.
      b2: :math:`\gamma_2` in [0, 1), per update.
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      max_ratio: :math:`c` in (0, inf): how many times the usual norm a norm may enter
        the averages with; 3 is a good choice. ``None``: as it is, as published.
      scope: "leaf" for one norm per leaf, "global" for one over all.
      layer_axis: with scope "leaf" the axis that stacks layers, each of which has its
        own norm: an int, ``None``, or a tree prefix of these.
      nonfinite: what an inf or NaN entry does. "propagate": every entry that shares its
        norm becomes NaN, once: nothing of it enters the averages. "zero": that entry
        alone becomes 0, and the norm is taken without it.
      axis_name: see `clip_by_norm`. Each device by itself would make the result depend
        on their number.

    Returns:
      A transform with a `ScaleByStableNormState`. Updates keep their structure, shapes
      and dtypes. Zero updates stay zero and enter no average. Huge and tiny ones give
      what others give, those far below :math:`\epsilon` excepted, which are damped.

    Raises:
      ValueError: a concrete number is outside its range, a word is unknown, or there is
        a ``layer_axis`` with the scope "global".
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_stable_norm(max_ratio=3.0)
      >>> state = tx.init(jnp.zeros(2))
      >>> for size in (1e-3, 1e-3, 1e10):
      ...     updates, state = tx.update(jnp.array([3.0, 4.0]) * size, state)
      ...     print([round(u, 3) for u in updates.tolist()])
      [0.6, 0.8]
      [0.6, 0.8]
      [0.633, 0.844]

    References:
      Huang et al., `GradientStabilizer <https://arxiv.org/abs/2502.17055>`_, 2026.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        _base.check_range(name, value, 0.0, 1.0, high_open=True)
    _base.check_range("eps", eps, 0.0, float("inf"))
    if max_ratio is not None:
        _base.check_range("max_ratio", max_ratio, 0.0, float("inf"), low_open=True)
    _base.check_choice("nonfinite", nonfinite, _units.NONFINITE)
    units = _units.Units(scope, layer_axis, axis_name)

    def init(params):
        seen = jnp.zeros(units.shape(params), jnp.int32)
        return ScaleByStableNormState(seen, units.zeros(params), units.zeros(params))

    def enter(norm, state):
        """The averages with a norm in them."""
        if max_ratio is not None:
            usual = _corrected(state.root, b2, state.seen, 0.5)
            no_cap = _tree.no_limit(norm.dtype)
            cap = jnp.where(state.seen == 0, no_cap, max_ratio * usual)
            norm = _tree.minimum(norm, cap)
        return ScaleByStableNormState(
            jnp.asarray(optax.safe_increment(state.seen)),
            b1 * state.mean + (1 - b1) * norm,
            _tree.power_mean(state.root, norm, b2, 2),
        )

    def update(updates, state):
        if nonfinite == "zero":
            updates = _units.zero_nonfinite(updates)
        norms = units.norms(updates)
        is_seen = jnp.isfinite(norms.scaled) & (norms.scaled > 0)
        entered = enter(jnp.where(is_seen, norms.value, 1), state)
        state = ScaleByStableNormState(
            *(jnp.where(is_seen, x, y) for x, y in zip(entered, state, strict=True))
        )
        root = _corrected(state.root, b2, state.seen, 0.5)
        ratio = _tree.safe_divide(_corrected(state.mean, b1, state.seen, 1), root + eps)
        # Without the barrier XLA may compute the ratio again in each leaf's fusion.
        ratio = jax.lax.optimization_barrier(ratio)
        vectors = _units.unit_vectors(units, updates, norms)
        return units.map(lambda u, r: u * r, vectors, ratio), state

    return transform(init, update, dtypes={"mean": None, "root": None})


def _corrected(average: jax.Array, decay: Any, seen: jax.Array, power: float) -> Any:
    weight = _tree.debias_weight(decay, jnp.maximum(seen, 1))
    return average / weight**power
