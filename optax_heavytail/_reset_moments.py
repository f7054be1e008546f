"""A fresh start of an optimizer's statistics, again and again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._transform import Inner, as_transform, wrapper


class ResetMomentsState(NamedTuple):
    """State of `reset_moments`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    inner_state: optax.OptState


def reset_moments(
    inner: Inner,
    period: jax.typing.ArrayLike = 500,
    *,
    warmup_steps: jax.typing.ArrayLike = 150,
    warmup_start: jax.typing.ArrayLike = 0.01,
) -> optax.GradientTransformationExtraArgs:
    r"""Starts the state of ``inner`` anew now and then, so that it forgets spikes.

    Let :math:`j = t \bmod T`. In the updates :math:`t = T, 2T, \ldots` the state of
    ``inner`` is a fresh one before the gradient enters. From the first of these on the
    updates are multiplied, while :math:`j < N`, by

    .. math:: 1 - (1 - f) \, \tfrac{1}{2} \left(1 + \cos \frac{\pi j}{N + 1}\right).

    The whole state starts anew, its counts too: the corrections of averages for their
    start at 0 then fit the averages. Schedules within ``inner`` start again as well, so
    put the learning rate behind.

    Args:
      inner: any transform whose statistics may be thrown away, such as `scale_by_adam`.
      period: :math:`T`, an integer of at least 1.
      warmup_steps: :math:`N`, an integer of at least 0; 0 for no warm-up.
      warmup_start: :math:`f` in [0, 1], the factor in the update of a reset.

    Returns:
      A transform with a `ResetMomentsState`. Updates are those of ``inner`` bit for bit
      where the factor is 1, and keep their structure, shapes and dtypes. What zero,
      huge, inf and NaN gradients do is up to ``inner``; what they leave in its state is
      gone with the next reset.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: ``inner`` is no transform, or a gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.reset_moments(oht.ema(0.5, debias=False), period=3, warmup_steps=0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (1.0, jnp.nan, 1.0, 1.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      ...     print(float(updates[0]))
      0.5
      nan
      0.5
      0.75

    References:
      Huang et al., `SPAM <https://arxiv.org/abs/2501.06842>`_, 2025, section 3.
    """
    _base.check_transform("inner", inner)
    _base.check_integer("period", period, 1)
    _base.check_integer("warmup_steps", warmup_steps, 0)
    _base.check_range("warmup_start", warmup_start, 0.0, 1.0)
    inner_tx = as_transform(inner)

    def init(params):
        return ResetMomentsState(jnp.zeros([], jnp.int32), inner_tx.init(params))

    def factor(count):
        since = count % period
        phase = jnp.cos(jnp.pi * since / (warmup_steps + 1))
        is_warming = (count >= period) & (since < warmup_steps)
        return jnp.where(is_warming, 1 - (1 - warmup_start) * (1 + phase) / 2, 1)

    def update(updates, state, params, **extra_args):
        count = jnp.asarray(optax.safe_increment(state.count))
        fresh = inner_tx.init(updates if params is None else params)
        is_reset = count % period == 0
        inner_state = jax.tree.map(
            lambda new, old: jnp.where(is_reset, new, old), fresh, state.inner_state
        )
        new_updates, inner_state = inner_tx.update(
            updates, inner_state, params, **extra_args
        )
        scaled = optax.tree.scale(factor(count), _tree.at_least_float32(new_updates))
        return (
            _tree.cast_like(scaled, new_updates),
            ResetMomentsState(count, inner_state),
        )

    return wrapper(init, update)
