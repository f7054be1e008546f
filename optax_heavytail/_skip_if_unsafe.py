"""Skipping the updates whose gradient or loss is not finite, or far above the last."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _history, _norms, _tree
from optax_heavytail._transform import Inner, as_transform, wrapper

RULES = ("median", "mean")
_REMEMBER = ("safe", "all")
# Of the median. Losses that hardly vary would make a spike of each small rise.
_SMALLEST_DEVIATION = 0.01


class SkipIfUnsafeState(NamedTuple):
    """State of `skip_if_unsafe`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    num_nonfinite: jax.typing.ArrayLike  #: (), int32, skipped for an inf or NaN
    num_spikes: jax.typing.ArrayLike  #: (), int32, skipped for their norm
    num_value_spikes: jax.typing.ArrayLike  #: (), int32, skipped for their loss
    num_in_a_row: jax.Array  #: (), int32, skipped since the last safe one
    limit_reached: jax.Array  #: (), bool, whether there ever were too many in a row
    #: ``numbers`` (window,), float32 or wider: the last norms, the newest last, 0
    #: before; ``seen`` (), int32: how many came
    norms: _history.History
    values: _history.History  #: likewise, the last losses
    inner_state: optax.OptState


def skip_if_unsafe(
    inner: Inner,
    *,
    max_deviations: jax.typing.ArrayLike | None = 10.0,
    max_value_deviations: jax.typing.ArrayLike | None = None,
    window: int = 128,
    rule: str = "median",
    remember: str = "safe",
    max_in_a_row: jax.typing.ArrayLike = 10,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps gradients that are not finite, or are a spike, from ``inner``.

    With the logarithms :math:`s_j` of the global norms of the last ``window`` safe
    gradients, their median :math:`\tilde s` and
    :math:`d = \max(1.4826 \operatorname{median}_j |s_j - \tilde s|, 0.05)`, a gradient
    is a spike if

    .. math:: \log \lVert g \rVert > \tilde s + c \, d .

    Then, and where an entry is inf or NaN, the updates are 0 and the state of
    ``inner``, with its counts, stays as it was. The norm is that of the gradient as it
    comes in: wrap the whole optimizer, clipping included. Zero gradients do not enter
    the window. The rule for spikes starts when the window is full.

    **On the loss as well**: pass it, ``update(grads, state, params, value=loss)``. A
    loss that is not finite is skipped; with ``max_value_deviations`` so is one above
    the median of the last losses :math:`L_j` by that many
    :math:`\max(1.4826 \operatorname{median}_j |L_j - \tilde L|, 0.01 |\tilde L|)`. The
    loss must be the same on all devices. ``inner`` gets it too.

    **A level that has changed for good** is no spike, but looks like one. When
    ``max_in_a_row`` updates in a row were skipped, the next whose gradient and loss are
    finite is taken whatever the rules say, and both windows start anew with it. That
    this happened stays in the field ``limit_reached``: look at it now and then,
    ``optax.tree.get(state, "limit_reached")``. What is not finite is never applied.

    **Gradients that are accumulated**: write ``skip_if_unsafe(optax.MultiSteps(tx,
    8))``. The other way round, ``optax.MultiSteps(skip_if_unsafe(tx), 8)``, one NaN
    microbatch **stops the training for good**: it stays in the sum of
    ``optax.MultiSteps``, which clears it by a multiplication with 0, and every later
    step is skipped. All that can be seen from in here is that: ``limit_reached``
    becomes true. ``should_skip_update_fn=optax.skip_not_finite`` keeps the NaN out of
    the sum in that order too.

    Args:
      inner: the optimizer, or ``optax.MultiSteps`` of one.
      max_deviations: :math:`c` in (0, inf), in robust standard deviations of the
        logarithm; ``None`` for no rule on the norm. Gradients with heavy tails need
        more than Gaussian ones: of the norms of 1,000 Student-t entries with 1.5
        degrees of freedom 10 skips 7 in 10,000, and 4 skips 3 in 100.
      max_value_deviations: likewise for the loss; ``None`` for no rule on it.
      window: how many norms, and losses, to remember, a Python integer, at least 2.
      rule: "median", as above; or "mean": norm or loss above the mean of the window by
        so many standard deviations (divisor size - 1), once it is half full. One
        outlier in the window lifts that limit far.
      remember: "safe": what was skipped enters no window; "all": it does if it is
        finite, so that the limits move towards it.
      max_in_a_row: skipped updates in a row after which the windows start anew, at
        least 1.
      axis_name: for parameters sharded by hand inside ``shard_map`` or ``pmap``: the
        mesh axis to sum norms over, a tuple of axes, or a tree prefix of these with
        ``None`` for leaves that are replicated. All devices then skip together.
        Nothing is needed under ``jit``.

    Returns:
      A transform with a `SkipIfUnsafeState`. Updates are those of ``inner``, or zeros.
      Zero gradients pass. Norms of huge and tiny gradients are right even where they
      are no number of the dtype. An inf or NaN that ``inner`` makes of a finite
      gradient passes.

    Raises:
      ValueError: a concrete number is outside its range, ``rule`` or ``remember`` is
        unknown, or ``value`` is no scalar.
      TypeError: a gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = oht.skip_if_unsafe(optax.sgd(1.0, momentum=0.5), window=2)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (1.0, 1.0, jnp.nan, 1e6, 1.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      ...     print(float(updates[0]))
      -1.0
      -1.5
      0.0
      0.0
      -1.75
      >>> int(state.num_nonfinite), int(state.num_spikes), bool(state.limit_reached)
      (1, 1, False)

    References:
      Walsh et al., `2 OLMo 2 Furious <https://arxiv.org/abs/2501.00656>`_, 2025, for
      the loss and ``rule="mean"`` with ``remember="all"``.
    """
    _check_limit("max_deviations", max_deviations)
    _check_limit("max_value_deviations", max_value_deviations)
    _base.check_static_integer("window", window, 2)
    _base.check_choice("rule", rule, RULES)
    _base.check_choice("remember", remember, _REMEMBER)
    _base.check_integer("max_in_a_row", max_in_a_row, 1)
    inner_tx = as_transform(inner)

    def init(params):
        return _start(params, window, inner_tx)

    def update(updates, state, params, *, value=None, **extra_args):
        norm = _norms.global_norm(_tree.at_least_float32(updates), axis_name)
        size, is_finite = norm.value, jnp.isfinite(norm.scaled)
        is_spike = is_finite & _norm_is_spike(state.norms, size, max_deviations, rule)
        loss, is_value_spike = jnp.zeros([]), jnp.zeros([], bool)
        if value is not None:
            extra_args["value"] = value
            loss = _checked(value)
            is_finite &= jnp.isfinite(loss)
            is_value_spike = _value_is_spike(
                state.values, loss, max_value_deviations, rule
            )
        is_spike &= is_finite
        is_value_spike &= is_finite
        starts_anew = is_finite & (state.num_in_a_row >= max_in_a_row)
        is_safe = starts_anew | (is_finite & ~is_spike & ~is_value_spike)
        # inner gets zeros, not the bad gradient: NaN times 0 is NaN in derivatives.
        safe = _where(is_safe, updates, optax.tree.zeros_like(updates))
        new_updates, inner_state = inner_tx.update(
            safe, state.inner_state, params, **extra_args
        )
        in_a_row = jnp.where(is_safe, 0, optax.safe_increment(state.num_in_a_row))
        enters = is_safe if remember == "safe" else jnp.ones([], bool)
        norm_enters = enters & jnp.isfinite(size) & (size > 0)
        value_enters = enters & jnp.isfinite(loss) & (value is not None)
        new_state = SkipIfUnsafeState(
            **_counts(state, is_safe, is_finite, is_spike, is_value_spike),
            num_in_a_row=in_a_row,
            limit_reached=state.limit_reached | (in_a_row >= max_in_a_row),
            inner_state=_where(is_safe, inner_state, state.inner_state),
            norms=_remembered(state.norms, starts_anew, size, norm_enters),
            values=_remembered(state.values, starts_anew, loss, value_enters),
        )
        zeros = optax.tree.zeros_like(new_updates)
        return _where(is_safe, new_updates, zeros), new_state

    return wrapper(init, update)


def _check_limit(name, value):
    if value is not None:
        _base.check_range(name, value, 0.0, float("inf"), low_open=True)


def _start(params, window, inner_tx):
    """The state before the first update."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
    return SkipIfUnsafeState(
        count=jnp.zeros([], jnp.int32),
        num_nonfinite=jnp.zeros([], jnp.int32),
        num_spikes=jnp.zeros([], jnp.int32),
        num_value_spikes=jnp.zeros([], jnp.int32),
        num_in_a_row=jnp.zeros([], jnp.int32),
        limit_reached=jnp.zeros([], bool),
        norms=_history.empty((), window, dtype),
        values=_history.empty((), window, dtype),
        inner_state=inner_tx.init(params),
    )


def _remembered(history, starts_anew, x, enters):
    return _history.append(_history.clear(history, starts_anew), x, enters)


def _checked(value):
    value = jnp.asarray(value)
    if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            "value, the loss, must be one real floating-point number, got "
            f"{value.dtype}{list(value.shape)}."
        )
    return _tree.at_least_float32(value)


def _norm_is_spike(norms, size, max_deviations, rule):
    if max_deviations is None:
        return jnp.zeros([], bool)
    if rule == "mean":
        return size > _mean_limit(norms, max_deviations)
    return size > _history.norm_limit(norms, max_deviations)


def _value_is_spike(values, loss, max_deviations, rule):
    if max_deviations is None:
        return jnp.zeros([], bool)
    if rule == "mean":
        return loss > _mean_limit(values, max_deviations)
    median, deviation = _history.median_and_deviation(values.numbers)
    tiny = jnp.finfo(median.dtype).tiny
    least = _SMALLEST_DEVIATION * jnp.maximum(jnp.abs(median), tiny)
    limit = median + max_deviations * jnp.maximum(deviation, least)
    return _history.is_full(values) & (loss > limit)


def _mean_limit(history, max_deviations):
    mean, deviation = _history.mean_and_deviation(history, ddof=1)
    is_known = history.seen >= max(2, history.numbers.shape[-1] // 2)
    limit = mean + max_deviations * deviation
    return jnp.where(is_known, limit, _tree.no_limit(limit.dtype))


def _where(condition, tree, other):
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


def _counts(state, is_safe, is_finite, is_spike, is_value_spike):
    """The fields that count updates, and what was skipped for which reason."""
    return {
        "count": optax.safe_increment(state.count),
        "num_nonfinite": _count_if(~is_finite, state.num_nonfinite),
        "num_spikes": _count_if(is_spike & ~is_safe, state.num_spikes),
        "num_value_spikes": _count_if(
            is_value_spike & ~is_safe, state.num_value_spikes
        ),
    }


def _count_if(condition, count):
    return jnp.where(condition, optax.safe_increment(count), count)
