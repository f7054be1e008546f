"""Schedules from the theory of clipped SGD and from the literature.

Every schedule takes the number of updates made so far, starting at 0.

The first four are from Zhang et al., `Why are adaptive methods good for attention
models? <https://arxiv.org/abs/1912.03194>`_, 2020, theorems 1 to 3, where :math:`k` is
the count plus 1. The noise has a tail order :math:`a` in (1, 2]: the expectation of
:math:`\\lVert g \\rVert^a` is at most :math:`G^a`, while the variance may be infinite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _base

Schedule = Callable[[jax.typing.ArrayLike], Any]


def strongly_convex_step(mu: jax.typing.ArrayLike) -> Schedule:
    r"""The step size of theorems 1 and 3, for a strongly convex objective.

    .. math:: \eta_k = \frac{4}{\mu (k + 1)}

    Read the result out as the average of `weighted_iterate_average`. The expected
    error then falls like :math:`G^2 / (\mu k^{2(a-1)/a})`, the best possible rate.

    Args:
      mu: modulus of strong convexity, in (0, inf).

    Returns:
      A schedule, float32 or wider; ``strongly_convex_step(mu)(0)`` is ``2 / mu``.

    Raises:
      ValueError: ``mu`` is a concrete number outside its range.

    Example:
      >>> import optax_heavytail as oht
      >>> [round(float(oht.strongly_convex_step(2.0)(k)), 3) for k in range(3)]
      [1.0, 0.667, 0.5]
    """
    _base.check_range("mu", mu, 0.0, float("inf"), low_open=True)
    return lambda count: 4 / (mu * (_number(count) + 2))


def clipping_threshold(moment_bound: Any, tail_order: jax.typing.ArrayLike) -> Schedule:
    r"""The growing threshold of theorem 1 (GClip) and theorem 3 (CClip).

    .. math:: \tau_k = G k^{1/a}

    The exponent is the inverse of the tail order; copies of the paper that lost their
    typesetting print "k a-1", which read as :math:`k^{a-1}` does not converge usefully.

    Args:
      moment_bound: :math:`G` in (0, inf), in the gradient's units, with
        :math:`E \lVert g \rVert^a \leq G^a`. For CClip a tree of bounds :math:`B` for
        each coordinate is allowed, and the schedule returns a tree.
      tail_order: :math:`a` in (1, 2].

    Returns:
      A schedule, float32 or wider, for `gclip` and `cclip`;
      ``clipping_threshold(G, a)(0)`` is ``G``.

    Raises:
      ValueError: a concrete number is outside its range.

    Example:
      >>> import optax_heavytail as oht
      >>> [float(oht.clipping_threshold(3.0, 2.0)(k)) for k in (0, 3, 8)]
      [3.0, 6.0, 9.0]
    """
    for bound in jax.tree.leaves(moment_bound):
        _base.check_range(
            "moment_bound", bound, 0.0, float("inf"), low_open=True, scalar=False
        )
    _check_tail_order(tail_order)

    def schedule(count):
        growth = (_number(count) + 1) ** (1 / tail_order)
        return jax.tree.map(lambda bound: bound * growth, moment_bound)

    return schedule


def nonconvex_step(
    scale: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
    tail_order: jax.typing.ArrayLike,
) -> Schedule:
    r"""The constant step size of theorem 2, for a smooth non-convex objective.

    .. math:: \eta_k = c K^{-a / (3a - 2)}

    With the threshold of `nonconvex_threshold` and without momentum the mean of
    :math:`\lVert \nabla f \rVert^2` over the run is of the order
    :math:`K^{-(2a - 2)/(3a - 2)}`.

    Args:
      scale: :math:`c` in (0, inf), to be tuned.
      num_steps: :math:`K`, the number of updates of the whole run, in [1, inf).
      tail_order: :math:`a` in (1, 2].

    Returns:
      A constant schedule, float32 or wider.

    Raises:
      ValueError: a concrete number is outside its range.

    Example:
      >>> import optax_heavytail as oht
      >>> round(float(oht.nonconvex_step(1.0, 10_000, 2.0)(0)), 6)
      0.01
    """
    return _power_of_length(scale, num_steps, tail_order, lambda a: -a / (3 * a - 2))


def nonconvex_threshold(
    scale: jax.typing.ArrayLike,
    num_steps: jax.typing.ArrayLike,
    tail_order: jax.typing.ArrayLike,
) -> Schedule:
    r"""The constant threshold of theorem 2, for a smooth non-convex objective.

    .. math:: \tau_k = c K^{1 / (3a - 2)}

    Args:
      scale: :math:`c` in (0, inf), in the gradient's units, to be tuned.
      num_steps: :math:`K`, the number of updates of the whole run, in [1, inf).
      tail_order: :math:`a` in (1, 2].

    Returns:
      A constant schedule, float32 or wider.

    Raises:
      ValueError: a concrete number is outside its range.

    Example:
      >>> import optax_heavytail as oht
      >>> round(float(oht.nonconvex_threshold(1.0, 10_000, 2.0)(0)), 4)
      10.0
    """
    return _power_of_length(scale, num_steps, tail_order, lambda a: 1 / (3 * a - 2))


def neumann_momentum(
    minimum: jax.typing.ArrayLike = 0.5, maximum: jax.typing.ArrayLike = 0.9
) -> Schedule:
    r"""The momentum of the Neumann optimizer.

    .. math:: \mu_t = \min\left(\max\left(1 - \frac{1}{1 + t}, \mu_{\min}\right),
        \mu_{\max}\right)

    where :math:`t` is the count plus 1.

    Args:
      minimum: :math:`\mu_{\min}` in [0, 1).
      maximum: :math:`\mu_{\max}` in [0, 1).

    Returns:
      A schedule, float32 or wider.

    Raises:
      ValueError: a concrete number is outside its range, or the order is wrong.

    Example:
      >>> import optax_heavytail as oht
      >>> [round(float(oht.neumann_momentum()(k)), 3) for k in (0, 1, 2, 100)]
      [0.5, 0.667, 0.75, 0.9]

    References:
      Krishnan, Xiao and Saurous, `Neumann optimizer <https://arxiv.org/abs/1712.03298>`_,
      2018, section 4.
    """
    _base.check_range("minimum", minimum, 0.0, 1.0, high_open=True)
    _base.check_range("maximum", maximum, 0.0, 1.0, high_open=True)
    _base.check_order("minimum", minimum, "maximum", maximum)
    return lambda count: jnp.clip(1 - 1 / (_number(count) + 2), minimum, maximum)


def warm_restarts(
    max_value: jax.typing.ArrayLike,
    t_0: int,
    t_mult: float = 1,
    min_value: jax.typing.ArrayLike = 0.0,
) -> Schedule:
    r"""Cosine decay with warm restarts, without end.

    In cycle :math:`i` of length :math:`T_i = T_0 T_\text{mult}^i`, rounded,
    :math:`T_\text{cur}` updates after its start,

    .. math:: \eta = \eta_{\min} + \tfrac{1}{2} (\eta_{\max} - \eta_{\min})
        \left(1 + \cos\frac{\pi T_\text{cur}}{T_i}\right).

    Args:
      max_value: :math:`\eta_{\max}` in [0, inf), at the start of each cycle.
      t_0: length of the first cycle in updates, a Python integer, at least 1.
      t_mult: growth of the cycles, a Python number: 1, or in [1.001, inf). 2 doubles
        them.
      min_value: :math:`\eta_{\min}` in [0, inf).

    Returns:
      A schedule, float32 or wider, exact at every restart up to int32's maximum.

    Raises:
      ValueError: a concrete number is outside its range.

    Example:
      >>> import optax_heavytail as oht
      >>> schedule = oht.warm_restarts(1.0, t_0=2, t_mult=2)
      >>> [round(float(schedule(k)), 2) for k in range(7)]
      [1.0, 0.5, 1.0, 0.85, 0.5, 0.15, 1.0]

    References:
      Loshchilov and Hutter, `SGDR <https://arxiv.org/abs/1608.03983>`_, 2017, eq. (5).
    """
    _base.check_range("max_value", max_value, 0.0, float("inf"))
    _base.check_range("min_value", min_value, 0.0, float("inf"))
    starts = restarts(t_0, t_mult)

    def schedule(count):
        position, length = cycle_at(count, starts)
        wave = (1 + jnp.cos(jnp.pi * _number(position) / length)) / 2
        return max_value * wave + min_value * (1 - wave)

    return schedule


def transformer_schedule(
    model_dim: jax.typing.ArrayLike,
    warmup_steps: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike = 1.0,
) -> Schedule:
    r"""Linear warm-up, then decay with the inverse root of the step.

    .. math:: \eta_k = c \, d^{-1/2} \min(k^{-1/2}, k \, k_\text{warmup}^{-3/2})

    where :math:`k` is the count plus 1.

    Args:
      model_dim: :math:`d`, width of the model, in [1, inf).
      warmup_steps: :math:`k_\text{warmup}` in [1, inf): the step of the highest rate.
      scale: :math:`c` in (0, inf).

    Returns:
      A schedule, float32 or wider.

    Raises:
      ValueError: a concrete number is outside its range.

    Example:
      >>> import optax_heavytail as oht
      >>> schedule = oht.transformer_schedule(model_dim=4, warmup_steps=100)
      >>> [round(float(schedule(k)), 4) for k in (0, 99, 399)]
      [0.0005, 0.05, 0.025]

    References:
      Vaswani et al., `Attention is all you need <https://arxiv.org/abs/1706.03762>`_,
      2017, eq. (3).
    """
    _base.check_range("model_dim", model_dim, 1.0, float("inf"))
    _base.check_range("warmup_steps", warmup_steps, 1.0, float("inf"))
    _base.check_range("scale", scale, 0.0, float("inf"), low_open=True)

    def schedule(count):
        step = _number(count) + 1
        rate = jnp.minimum(step**-0.5, step * _number(warmup_steps) ** -1.5)
        return scale * _number(model_dim) ** -0.5 * rate

    return schedule


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


def restarts(t_0: int, t_mult: float) -> np.ndarray:
    """Counts at which `warm_restarts` starts its cycles; two if all have one length.

    Raises:
      ValueError: a number is outside its range.
    """
    _base.check_integer("t_0", t_0, 1)
    _base.check_range("t_mult", t_mult, 1.0, float("inf"))
    if 1 < t_mult < 1.001:  # the table of all starts would fill the memory
        raise ValueError(f"t_mult must be 1 or in [1.001, inf), got {t_mult}.")
    never = int(np.iinfo(np.int32).max)
    t_0, t_mult = min(int(t_0), never), float(t_mult)
    starts, length = [0, t_0], float(t_0)
    while t_mult > 1 and starts[-1] < never:
        length *= t_mult
        starts.append(min(starts[-1] + round(length), never))
    return np.array(starts, np.int32)


def cycle_at(
    count: jax.typing.ArrayLike, starts: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Updates since the start of the current cycle, and the cycle's length."""
    count = jnp.asarray(count, jnp.int32)
    table = jnp.asarray(starts)
    if len(starts) == 2:
        return count % table[1], table[1]
    cycle = jnp.searchsorted(table, count, side="right") - 1
    cycle = jnp.minimum(cycle, len(starts) - 2)
    return count - table[cycle], table[cycle + 1] - table[cycle]


def _power_of_length(scale, num_steps, tail_order, exponent) -> Schedule:
    _base.check_range("scale", scale, 0.0, float("inf"), low_open=True)
    _base.check_range("num_steps", num_steps, 1.0, float("inf"))
    _check_tail_order(tail_order)

    def schedule(count):
        del count
        return scale * _number(num_steps) ** exponent(tail_order)

    return schedule


def _check_tail_order(tail_order) -> None:
    _base.check_range("tail_order", tail_order, 1.0, 2.0, low_open=True)


def _number(x: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(float), jnp.float32))
