"""Skipping the updates whose gradients are not finite, or far larger than the last."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree
from optax_heavytail._transform import wrapper

# 1.4826 times the median absolute deviation is a Gaussian's standard deviation.
_DEVIATIONS_PER_MAD = 1.4826
# Of the logarithm. Norms that hardly vary would make a spike of each small rise.
_SMALLEST_DEVIATION = 0.05


class SkipIfUnsafeState(NamedTuple):
    """State of `skip_if_unsafe`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    num_nonfinite: jax.typing.ArrayLike  #: (), int32, skipped for an inf or NaN
    num_spikes: jax.typing.ArrayLike  #: (), int32, skipped for their norm
    num_in_a_row: jax.Array  #: (), int32, skipped since the last safe one
    limit_reached: jax.Array  #: (), bool, whether there ever were too many in a row
    num_norms: jax.typing.ArrayLike  #: (), int32, norms that entered the window
    #: (window,), float32 or wider, logarithms of the last safe norms, the newest last;
    #: 0 before
    log_norms: jax.Array
    inner_state: optax.OptState


def skip_if_unsafe(
    inner: optax.GradientTransformation,
    *,
    max_deviations: jax.typing.ArrayLike | None = 10.0,
    window: int = 128,
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
    comes in: wrap the whole optimizer, clipping included. Gradients that were skipped
    do not enter the window, nor do zero ones. The rule for spikes starts when the
    window is full.

    After ``max_in_a_row`` skipped updates the state says so, for good, and skipping
    goes on: nothing unsafe is ever applied. Read the field ``limit_reached`` now and
    then, ``optax.tree.get(state, "limit_reached")``, and stop. That also ends a run
    whose gradients have grown for good, which this rule cannot tell from spikes.

    Args:
      inner: the optimizer.
      max_deviations: :math:`c` in (0, inf), in robust standard deviations of the
        logarithm; ``None`` for no rule on the norm. Gradients with heavy tails need
        more than Gaussian ones: of the norms of 1,000 Student-t entries with 1.5
        degrees of freedom 10 skips 7 in 10,000, and 4 skips 3 in 100.
      window: how many norms to remember, a Python integer, at least 2.
      max_in_a_row: skipped updates in a row at which ``limit_reached`` becomes true,
        at least 1.
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
      ValueError: a concrete number is outside its range.
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
    """
    if max_deviations is not None:
        _base.check_range(
            "max_deviations", max_deviations, 0.0, float("inf"), low_open=True
        )
    _base.check_static_integer("window", window, 2)
    _base.check_integer("max_in_a_row", max_in_a_row, 1)
    inner_tx = optax.with_extra_args_support(inner)

    def init(params):
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return SkipIfUnsafeState(
            count=jnp.zeros([], jnp.int32),
            num_nonfinite=jnp.zeros([], jnp.int32),
            num_spikes=jnp.zeros([], jnp.int32),
            num_in_a_row=jnp.zeros([], jnp.int32),
            limit_reached=jnp.zeros([], bool),
            num_norms=jnp.zeros([], jnp.int32),
            log_norms=jnp.zeros(window, dtype),
            inner_state=inner_tx.init(params),
        )

    def update(updates, state, params, **extra_args):
        norm = _norms.global_norm(_tree.at_least_float32(updates), axis_name)
        is_finite = jnp.isfinite(norm.scaled)
        has_length = is_finite & (norm.scaled > 0)
        log_norm = jnp.where(
            has_length,
            jnp.log(jnp.where(has_length, norm.scaled, 1)) - jnp.log(norm.scale),
            0,
        ).astype(state.log_norms.dtype)
        is_spike = has_length & _is_spike(log_norm, state, max_deviations)
        is_safe = is_finite & ~is_spike
        # inner gets zeros, not the bad gradient: NaN times 0 is NaN in derivatives.
        new_updates, inner_state = inner_tx.update(
            _where(is_safe, updates, optax.tree.zeros_like(updates)),
            state.inner_state,
            params,
            **extra_args,
        )
        is_kept = is_safe & has_length
        later = jnp.append(state.log_norms[1:], log_norm)
        in_a_row = jnp.where(is_safe, 0, optax.safe_increment(state.num_in_a_row))
        new_state = SkipIfUnsafeState(
            count=optax.safe_increment(state.count),
            num_nonfinite=_count_if(~is_finite, state.num_nonfinite),
            num_spikes=_count_if(is_spike, state.num_spikes),
            num_in_a_row=in_a_row,
            limit_reached=state.limit_reached | (in_a_row >= max_in_a_row),
            num_norms=_count_if(is_kept, state.num_norms),
            log_norms=jnp.where(is_kept, later, state.log_norms),
            inner_state=_where(is_safe, inner_state, state.inner_state),
        )
        return (
            _where(is_safe, new_updates, optax.tree.zeros_like(new_updates)),
            new_state,
        )

    return wrapper(init, update)


def _is_spike(log_norm, state, max_deviations):
    if max_deviations is None:
        return jnp.zeros([], bool)
    median = jnp.median(state.log_norms)
    mad = jnp.median(jnp.abs(state.log_norms - median))
    deviation = jnp.maximum(_DEVIATIONS_PER_MAD * mad, _SMALLEST_DEVIATION)
    is_full = state.num_norms >= state.log_norms.size
    return is_full & (log_norm > median + max_deviations * deviation)


def _where(condition, tree, other):
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


def _count_if(condition, count):
    return jnp.where(condition, optax.safe_increment(count), count)
