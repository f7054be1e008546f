"""BiClip: sizes bounded from above and from below."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree, _units
from optax_heavytail._gclip import ClipByNormState
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform
from optax_heavytail._weight_decay import Mask, add_decayed_weights


def clip_by_interval(
    lower: Any,
    upper: Any,
    *,
    scope: str = "coordinate",
    layer_axis: Any = None,
    nonfinite: str = "propagate",
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Brings the size of each entry, or each norm, into an interval.

    .. math:: u = \operatorname{sign}(g) \operatorname{clamp}(|g|, d, c)
        \quad \text{or} \quad
        u = \frac{g}{\lVert g \rVert} \operatorname{clamp}(\lVert g \rVert, d, c),

    and 0 where :math:`g`, or its norm, is 0. **This is no clip in the sense of the
    others**: what is smaller than :math:`d` grows, noise around 0 to the full
    :math:`d`. With :math:`d = c` it is sign descent, or normalisation; with
    :math:`d = 0` a clip.

    Args:
      lower: :math:`d` in [0, inf), in the updates' units: a number; a tree of numbers
        like the updates, or a prefix of it; or a schedule of the count from 0 that
        returns any of these. With scope "coordinate" arrays may stand for numbers, with
        "global" there is one number.
      upper: :math:`c` in (0, inf), likewise, and at least :math:`d`.
      scope: what has one size: "coordinate", "leaf" or "global".
      layer_axis: with scope "leaf" the axis that stacks layers, each of which has its
        own norm: an int, ``None``, or a tree prefix of these.
      nonfinite: what an inf or NaN entry does. "propagate": every entry that shares its
        norm becomes NaN. "zero": that entry alone becomes 0, and the norm is taken
        without it.
      axis_name: see `clip_by_norm`. Scope "coordinate" takes no norm.

    Returns:
      A transform with a `ClipByNormState`, whose ``kept`` is above 1 where a norm grew.
      Updates keep their structure, shapes and dtypes. Sizes within the interval pass
      bit for bit with scope "coordinate". Zero stays zero, and numbers too small to be
      normal ones count as 0. Where a schedule returns a lower bound above the upper
      one, the upper holds.

    Raises:
      ValueError: a concrete bound is outside its range, the bounds are in the wrong
        order, a word is unknown, or there is a ``layer_axis`` without the scope "leaf".
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_interval(0.25, 1.0)
      >>> grads = jnp.array([0.0, -0.01, 0.5, 30.0])
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> updates.tolist()
      [0.0, -0.25, 0.5, 1.0]

    References:
      Lee et al., `TailOPT <https://arxiv.org/abs/2502.04164>`_, 2025, "BiClip".
    """
    _check_bounds(lower, upper, scope)
    _base.check_choice("nonfinite", nonfinite, _units.NONFINITE)
    units = _units.of_scope(scope, layer_axis, axis_name)

    def init(params):
        kept = None if scope == "coordinate" else units.all_kept(params)
        return ClipByNormState(jnp.zeros([], jnp.int32), kept)

    def update(updates, state):
        if nonfinite == "zero":
            updates = _units.zero_nonfinite(updates)
        low, high = (
            bound(state.count) if _base.is_function(bound) else bound
            for bound in (lower, upper)
        )
        high = units.spread(high, updates)
        low = jax.tree.map(jnp.minimum, units.spread(low, updates), high)
        norms = units.norms(updates)
        sizes = jax.tree.map(lambda n, scale: _norms.Norm(n, scale).value, *norms)
        is_within = jax.tree.map(lambda n, a, b: (n >= a) & (n <= b), sizes, low, high)
        lengths = jax.tree.map(_nearest, sizes, low, high)
        vectors = _units.unit_vectors(units, updates, norms)
        clamped = jax.tree.map(
            lambda g, x: g + x,
            units.map(lambda g, ok: jnp.where(ok, g, 0), updates, is_within),
            units.map(
                lambda v, ok, x: jnp.where(ok, 0, v * x), vectors, is_within, lengths
            ),
        )
        kept = None
        if scope != "coordinate":
            share = jnp.where(is_within, 1, _tree.safe_divide(lengths, sizes))
            share = _tree.nan_unless(jnp.isfinite(norms.scaled), share)
            kept = units.report(share, updates)
        return clamped, ClipByNormState(optax.safe_increment(state.count), kept)

    return transform(init, update)


def biclip(
    learning_rate: _base.ScalarOrSchedule,
    lower: Any,
    upper: Any,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    scope: str = "coordinate",
    layer_axis: Any = None,
    mask: Mask | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""BiClip: descent by gradients whose sizes lie in an interval.

    With :math:`u_t` of `clip_by_interval`,

    .. math:: w_t = w_{t-1} - \eta_t (u_t + \lambda w_{t-1}).

    There is no state but the count: for the inner or the outer steps of local training,
    where that of Adam would have to be kept or sent.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      lower: see `clip_by_interval`.
      upper: see `clip_by_interval`.
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; multiplied by the
        learning rate.
      scope: see `clip_by_interval`.
      layer_axis: see `clip_by_interval`.
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      axis_name: see `clip_by_norm`.

    Returns:
      ``chain(clip_by_interval, add_decayed_weights, scale_by_learning_rate)``. Its
      ``update`` needs the parameters unless ``weight_decay`` is a Python 0. What zero,
      huge, inf and NaN gradients do is said at `clip_by_interval`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.biclip(learning_rate=0.1, lower=0.5, upper=1.0)
      >>> updates, _ = tx.update(jnp.array([0.01, -30.0]), tx.init(jnp.zeros(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.05, 0.1]

    References:
      Lee et al., `TailOPT <https://arxiv.org/abs/2502.04164>`_, 2025, "BiClip".
    """
    return optax.chain(
        clip_by_interval(
            lower, upper, scope=scope, layer_axis=layer_axis, axis_name=axis_name
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def _nearest(size: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The bound that a size outside the interval is brought to; 0 for next to none."""
    bound = jnp.where(size < low, low, high)
    return jnp.where(size < jnp.finfo(size.dtype).tiny, 0, bound)


def _check_bounds(lower: Any, upper: Any, scope: str) -> None:
    for name, bound in (("lower", lower), ("upper", upper)):
        if _base.is_function(bound):
            continue
        leaves = jax.tree.leaves(bound)
        if scope == "global" and not jax.tree_util.all_leaves([bound]):
            raise ValueError(
                f"{name} must be one number with the scope 'global', got {bound!r}."
            )
        for leaf in leaves:
            _base.check_range(
                name, leaf, 0.0, float("inf"), low_open=name == "upper", scalar=False
            )
    if all(callable(b) or isinstance(b, int | float) for b in (lower, upper)):
        _base.check_order("lower", lower, "upper", upper)
