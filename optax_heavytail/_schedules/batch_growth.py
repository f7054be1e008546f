"""A batch that grows where a schedule would decay the learning rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _base
from optax_heavytail._schedules.common import Schedule


class BatchSizePlan(NamedTuple):
    """Learning rate and batch size of every update of a run, on the host."""

    learning_rate: np.ndarray  # (updates,), float64
    batch_size: np.ndarray  # (updates,), int64: examples

    def schedule(self) -> Schedule:
        """The learning rate as a schedule; its last value goes on for ever."""
        rates = jnp.asarray(self.learning_rate, jnp.result_type(float))
        return lambda count: rates[jnp.minimum(count, len(rates) - 1)]


def grow_batch(
    learning_rate: Schedule,
    num_steps: int,
    batch_size: int,
    max_batch_size: int,
    *,
    multiple_of: int = 1,
) -> BatchSizePlan:
    r"""Grows the batch where a schedule would decay the learning rate.

    A schedule for :math:`B_0` examples per update is turned into one that sees as many
    examples, or up to one batch more, at the same ratio of learning rate to batch size,
    in fewer updates: below its peak so far it multiplies the batch by the peak over the
    rate, as far as ``max_batch_size`` and ``multiple_of`` allow, and the rate decays by
    what is left.

    Args:
      learning_rate: the schedule to replace, of the count of updates from 0.
      num_steps: its length in updates, a Python integer, at least 1.
      batch_size: :math:`B_0` in examples, a multiple of ``multiple_of``.
      max_batch_size: largest batch in examples, at least ``batch_size``.
      multiple_of: batch sizes are multiples of this, such as the number of devices.

    Returns:
      A `BatchSizePlan` with the learning rate and the batch size of each update. Every
      new batch size compiles a new program: ``multiple_of`` keeps them few.

    Raises:
      ValueError: a number, or a rate of the schedule, is outside its range.
      TypeError: ``learning_rate`` is no schedule.

    Example:
      >>> import optax
      >>> import optax_heavytail as oht
      >>> decay = optax.piecewise_constant_schedule(0.8, {4: 0.25})
      >>> plan = oht.grow_batch(decay, 8, batch_size=32, max_batch_size=64)
      >>> plan.batch_size.tolist()
      [32, 32, 32, 32, 64, 64]
      >>> [round(rate, 3) for rate in plan.learning_rate.tolist()]
      [0.8, 0.8, 0.8, 0.8, 0.4, 0.4]

    References:
      Smith et al., `Don't decay the learning rate, increase the batch size
      <https://arxiv.org/abs/1711.00489>`_, 2018, section 5.
    """
    _base.check_integer("num_steps", num_steps, 1)
    _base.check_integer("multiple_of", multiple_of, 1)
    _base.check_integer("batch_size", batch_size, 1)
    _base.check_integer("max_batch_size", max_batch_size, batch_size)
    if batch_size % multiple_of:
        raise ValueError(
            f"batch_size must be a multiple of {multiple_of}, got {batch_size}."
        )
    if not callable(learning_rate):
        raise TypeError(f"learning_rate must be a schedule, got {learning_rate!r}.")
    base_rates = np.asarray(jax.vmap(learning_rate)(jnp.arange(num_steps)), np.float64)
    bad = ~((base_rates >= 0) & np.isfinite(base_rates))
    if np.any(bad):
        raise ValueError(
            "learning_rate must be in [0, inf), got "
            f"{base_rates[bad][0]} at count {np.argmax(bad)}."
        )
    peaks = np.maximum.accumulate(base_rates)
    rates, sizes, seen = [], [], 0
    while seen < num_steps * batch_size:
        step = seen // batch_size
        rate, peak = base_rates[step], peaks[step]
        if rate == peak:  # both may be 0 where a warm-up starts
            grown = batch_size
        else:
            grown = batch_size * peak / rate if rate > 0 else max_batch_size
        size = int(min(grown * (1 + 1e-6), max_batch_size)) // multiple_of * multiple_of
        rates.append(rate * size / batch_size)
        sizes.append(size)
        seen += size
    return BatchSizePlan(np.array(rates), np.array(sizes))
