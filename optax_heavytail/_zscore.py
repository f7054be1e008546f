"""ZClip: clipping of norms that are too many deviations above their average."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree
from optax_heavytail._transform import transform
from optax_heavytail._units import NONFINITE, Units, zero_nonfinite

_ACTIONS = ("adaptive", "mean", "percentile")


class ClipByZscoreState(NamedTuple):
    """State of `clip_by_zscore`; a unit is what has one norm."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    #: the norm above which the last that was finite and not 0 was shortened, the
    #: largest number for none; (), or with scope "leaf" a tree of () or of (layers,)
    threshold: Any
    kept: Any  #: likewise, share that was left of that norm
    seen: Any  #: likewise, int32, norms that were finite and not 0
    mean: Any  #: likewise, average of the norms, or of their logarithms
    deviation: Any  #: likewise, their deviation, without the floor


def clip_by_zscore(
    max_zscore: jax.typing.ArrayLike = 2.5,
    decay: jax.typing.ArrayLike = 0.97,
    *,
    warmup_steps: jax.typing.ArrayLike = 25,
    max_norm: jax.typing.ArrayLike | None = None,
    action: str = "adaptive",
    min_deviation: jax.typing.ArrayLike = 0.05,
    log: bool = False,
    scope: str = "global",
    layer_axis: Any = None,
    nonfinite: str = "propagate",
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""ZClip: shortens updates whose norm is far above its moving average.

    With the average :math:`\mu` and deviation :math:`\sigma` of the norms before this
    one, :math:`s = \max(\sigma, \delta \mu)` and the norm :math:`n`,

    .. math::
        z = \frac{n - \mu}{s}, \qquad
        c = \begin{cases} \mu + z_*^2 s / z & \text{if } z > z_*, \\
        n & \text{otherwise,} \end{cases} \qquad
        u = \frac{\min(c, c_{\max})}{n} g ,

    and then :math:`\mu \leftarrow \alpha \mu + (1 - \alpha) c` and :math:`\sigma^2
    \leftarrow \alpha \sigma^2 + (1 - \alpha) (c - \mu)^2` with the new :math:`\mu`. In
    the first ``warmup_steps`` norms :math:`c = n`, and :math:`\mu` and :math:`\sigma`
    are their mean and deviation.

    The further out a norm is, the shorter it becomes: a huge one gets the length
    :math:`\mu`. The average follows a level that rises for good by about
    :math:`(1 - \alpha) z_* s` a step.

    Args:
      max_zscore: :math:`z_*` in (0, inf).
      decay: :math:`\alpha` in [0, 1), per update.
      warmup_steps: how many norms a unit must have seen before it is clipped, an
        integer of at least 1.
      max_norm: :math:`c_{\max}` in (0, inf), from the start; ``None``: none.
      action: "adaptive", as above; "mean": :math:`c = \mu`; "percentile":
        :math:`c = \mu + z_* s`.
      min_deviation: :math:`\delta` in [0, inf). Without a floor norms that hardly vary
        make a spike of each small rise, as published.
      log: whether all this is done with the logarithms of the norms, of which
        :math:`\delta` is then a deviation itself.
      scope: "global" for one norm, "leaf" for one, with its average, per leaf.
      layer_axis: see `clip_by_history`.
      nonfinite: "propagate": a unit with an inf or NaN becomes NaN; "zero": such an
        entry becomes 0, and the norm is that of the rest.
      axis_name: see `clip_by_history`.

    Returns:
      A transform with a `ClipByZscoreState`. Updates keep their structure, shapes and
      dtypes. Zero updates stay zero; their norm and one that is not finite enter no
      average. Huge and tiny updates are clipped right.

    Raises:
      ValueError: a concrete number is outside its range, a word is unknown, or
        ``layer_axis`` comes with scope "global".
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_zscore(warmup_steps=3, min_deviation=0.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (1.0, 2.0, 3.0, 2.5, 100.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> round(float(updates[0]), 4)
      2.0567

    References:
      Kumar et al., `ZClip <https://arxiv.org/abs/2504.02507>`_, 2025.
    """
    _base.check_range("max_zscore", max_zscore, 0.0, float("inf"), low_open=True)
    _base.check_range("decay", decay, 0.0, 1.0, high_open=True)
    _base.check_integer("warmup_steps", warmup_steps, 1)
    if max_norm is not None:
        _base.check_range("max_norm", max_norm, 0.0, float("inf"), low_open=True)
    _base.check_choice("action", action, _ACTIONS)
    _base.check_range("min_deviation", min_deviation, 0.0, float("inf"))
    _base.check_flag("log", log)
    _base.check_choice("nonfinite", nonfinite, NONFINITE)
    units = Units(scope, layer_axis, axis_name)

    def init(params):
        return _start(units, params)

    def update(grads, state):
        if nonfinite == "zero":
            grads = zero_nonfinite(grads)
        norms = units.norms(grads)
        old = _statistics(units, state)
        counts = jnp.isfinite(norms.value) & (norms.value > 0)
        x = jnp.where(counts, norms.value, 1)
        x = jnp.log(x) if log else x
        is_warm = old.seen >= warmup_steps
        spread = jnp.maximum(
            old.deviation, min_deviation if log else min_deviation * old.mean
        )
        above = max_zscore * spread
        is_spike = is_warm & (x - old.mean > above)
        kept = jnp.where(is_spike, old.mean + _allowed(x - old.mean, above, action), x)
        in_norms = jnp.exp if log else lambda y: y
        # Where nothing is clipped the size itself: exp(log(n)) is not quite n.
        length = _limit(is_spike, in_norms(kept), max_norm)
        new = {
            "threshold": _limit(is_warm, in_norms(old.mean + above), max_norm),
            "kept": _norms.clip_factor(norms, length),
            **_updated(old, kept, is_warm, decay)._asdict(),
        }
        reports = {
            name: _reported(units, grads, counts, value, getattr(state, name))
            for name, value in new.items()
        }
        count = optax.safe_increment(state.count)
        clipped = units.clip(grads, norms, length)
        return clipped, ClipByZscoreState(count=count, **reports)

    return transform(init, update)


def _limit(is_known, limit, max_norm):
    """The limit, the largest number where it is not known; within ``max_norm``."""
    none = _tree.no_limit(limit.dtype)
    return jnp.minimum(
        jnp.where(is_known, limit, none), none if max_norm is None else max_norm
    )


class _Statistics(NamedTuple):
    """Of each unit."""

    seen: jax.Array
    mean: jax.Array
    deviation: jax.Array


def _start(units, params):
    """The state before the first update."""
    shape = units.shape(params)
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))

    def report(value, dtype):
        return units.report(jnp.full(shape, value, dtype), params)

    return ClipByZscoreState(
        count=jnp.zeros([], jnp.int32),
        threshold=report(_tree.no_limit(dtype), dtype),
        kept=units.all_kept(params),
        seen=report(0, jnp.int32),
        mean=report(0, dtype),
        deviation=report(0, dtype),
    )


def _statistics(units, state):
    return _Statistics(*map(units.collect, (state.seen, state.mean, state.deviation)))


def _reported(units, grads, counts, value, old):
    """What the state shows: the new value of the units whose norm counts."""
    return jax.tree.map(
        jnp.where, units.report(counts, grads), units.report(value, grads), old
    )


def _allowed(over, above, action):
    """By how much a spike that is ``over`` the mean may be above it."""
    if action == "mean":
        return jnp.zeros_like(over)
    if action == "percentile":
        return above
    return above * _tree.safe_divide(above, over)


def _updated(old, x, is_warm, decay):
    """With one number more: Welford's sums in the warm-up, then averages."""
    seen = jnp.asarray(optax.safe_increment(old.seen))
    weight = jnp.where(is_warm, 1 - decay, 1 / seen.astype(x.dtype))
    mean = old.mean + weight * (x - old.mean)
    # In the warm-up the exact square is that of the geometric mean of two distances.
    other = jnp.where(is_warm, mean, old.mean)
    distance = _tree.safe_sqrt(jnp.abs(x - mean)) * _tree.safe_sqrt(jnp.abs(x - other))
    deviation = _tree.power_mean(old.deviation, distance, 1 - weight, 2)
    return _Statistics(seen, mean, deviation)
