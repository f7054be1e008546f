"""Stable-SPAM: a limit on each leaf's largest entry, stable norms, and resets."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree
from optax_heavytail._adam import scale_by_adam
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._reset_moments import reset_moments
from optax_heavytail._stable_norm import scale_by_stable_norm
from optax_heavytail._transform import transform
from optax_heavytail._weight_decay import Mask, add_decayed_weights


class ClipByPeakState(NamedTuple):
    """State of `clip_by_peak`."""

    seen: Any  #: () per leaf, int32, peaks that were finite and not 0
    peak: Any  #: () per leaf, T, not corrected for its start at 0, float32 or wider


def clip_by_peak(
    decay: jax.typing.ArrayLike = 0.999,
    *,
    rescale: bool = False,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Limits the entries of each leaf to the average of its largest.

    With :math:`a_t = \max |g_t|` over a leaf, :math:`T_0 = 0`, and :math:`s` the number
    of its peaks so far, this one included,

    .. math::
        T_t = \theta T_{t-1} + (1 - \theta) a_t, \qquad
        \hat T_t = \frac{T_t}{1 - \theta^s}, \qquad
        u_t = \operatorname{sign}(g_t) \min(|g_t|, \hat T_t).

    The peak of now is in its own limit, with a share of :math:`1 - \theta` once the
    history is long.

    Args:
      decay: :math:`\theta` in [0, 1), per update.
      rescale: whether entries above :math:`\hat T` are multiplied by
        :math:`\hat T / a` instead, as published. That reverses their order: with a peak
        of 100 times the limit an entry just above the limit ends at a hundredth of it,
        and one just below stays.
      axis_name: for updates sharded by hand inside ``shard_map`` or ``pmap``: the mesh
        axis to take maxima over, a tuple of axes, or a tree prefix of these with
        ``None`` for leaves that are replicated. Nothing is needed under ``jit``.

    Returns:
      A transform with a `ClipByPeakState`. Updates keep their structure, shapes and
      dtypes. A leaf of zeros stays as it is and does not enter the average; nor does
      one with an inf or NaN, which becomes NaN throughout, once. No entry grows.

    Raises:
      ValueError: ``decay`` is a concrete number outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_peak(decay=0.5)
      >>> state = tx.init(jnp.zeros(2))
      >>> for grad in ([1.0, 1.0], [1.0, 7.0]):
      ...     updates, state = tx.update(jnp.array(grad), state)
      >>> [round(u, 3) for u in updates.tolist()]  # a third of 1 and two thirds of 7
      [1.0, 5.0]

    References:
      Huang et al., `Stable-SPAM <https://arxiv.org/abs/2502.17055v1>`_, 2025,
      "AdaClip".
    """
    _base.check_range("decay", decay, 0.0, 1.0, high_open=True)
    _base.check_flag("rescale", rescale)

    def init(params):
        # From shapes alone: what is the largest of all devices does not vary with them.
        wide = jax.tree.map(
            lambda p: jnp.promote_types(jnp.result_type(p), jnp.float32), params
        )
        return ClipByPeakState(
            jax.tree.map(lambda dtype: jnp.zeros([], jnp.int32), wide),
            jax.tree.map(lambda dtype: jnp.zeros([], dtype), wide),
        )

    def follow(average, seen, size):
        is_seen = jnp.isfinite(size) & (size > 0)
        new = decay * average + (1 - decay) * jnp.where(is_seen, size, 0)
        return (
            jnp.where(is_seen, optax.safe_increment(seen), seen),
            jnp.where(is_seen, new, average),
        )

    def clip(g, size, seen, average):
        limit = average / _tree.debias_weight(decay, jnp.maximum(seen, 1))
        is_over = jnp.abs(g) > limit
        if rescale:
            clipped = jnp.where(is_over, g * _tree.safe_divide(limit, size), g)
        else:
            clipped = jnp.where(is_over, jnp.sign(g) * limit, g)
        return _tree.nan_unless(jnp.isfinite(size), clipped)

    def update(updates, state):
        leaves, treedef = jax.tree.flatten(updates)
        axes = _norms.leaf_axes(axis_name, updates)
        sizes = [_peak(g, axis) for g, axis in zip(leaves, axes, strict=True)]
        seen, average = map(treedef.flatten_up_to, state)
        rows = list(map(follow, average, seen, sizes))
        seen, average = ([row[i] for row in rows] for i in (0, 1))
        clipped = map(clip, leaves, sizes, seen, average)
        return treedef.unflatten(clipped), ClipByPeakState(
            treedef.unflatten(seen), treedef.unflatten(average)
        )

    return transform(init, update, dtypes={"peak": None})


def stable_spam(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    period: jax.typing.ArrayLike = 1000,
    mask: Mask | None = None,
    layer_axis: Any = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stable-SPAM: Adam on clipped gradients of stable norm, with resets.

    `clip_by_peak` as published, `scale_by_stable_norm` with its decays 0.7 and 0.9, and
    `scale_by_adam`, whose averages start anew each ``period`` updates. What the first
    two have learnt stays: their averages and counts go on together.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      b1: Adam's decay of the average of the gradient, in [0, 1).
      b2: Adam's decay of the average of its square, in [0, 1).
      eps: Adam's, in [0, inf); gradients have norms of about 1 here.
      weight_decay: in [0, inf), or a schedule; multiplied by the learning rate.
      period: updates between two resets, an integer of at least 1.
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      layer_axis: see `scale_by_stable_norm`. The limit of `clip_by_peak` stays one for
        each leaf.
      mu_dtype: see `scale_by_adam`.
      nu_dtype: see `scale_by_adam`.
      axis_name: see `clip_by_norm`.

    Returns:
      ``chain(clip_by_peak, scale_by_stable_norm, reset_moments(scale_by_adam),
      add_decayed_weights, scale_by_learning_rate)``. Its ``update`` needs the
      parameters unless ``weight_decay`` is a Python 0. Updates keep the gradients'
      structure, shapes and dtypes. Zero gradients from the start give zero updates;
      huge ones give what others give, and leaves whose norm is far below 1e-8 are
      damped. An inf or NaN makes its leaf NaN until the next reset.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.stable_spam(learning_rate=0.1)
      >>> updates, _ = tx.update(jnp.array([3e-2, -4e5]), tx.init(jnp.zeros(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.088, 0.1]

    References:
      Huang et al., `Stable-SPAM <https://arxiv.org/abs/2502.17055v1>`_, 2025.
    """
    adam = scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    return optax.chain(
        clip_by_peak(rescale=True, axis_name=axis_name),
        scale_by_stable_norm(
            0.7, 0.9, 1e-8, layer_axis=layer_axis, axis_name=axis_name
        ),
        reset_moments(adam, period, warmup_steps=0),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def _peak(g: jax.Array, axis: Any) -> jax.Array:
    size = jnp.max(jnp.abs(g), initial=0)
    return size if axis is None else jax.lax.pmax(size, axis)
