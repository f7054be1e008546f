"""Schedules from the literature."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _base
from optax_heavytail._schedules.common import Schedule, number


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
    return lambda count: jnp.clip(1 - 1 / (number(count) + 2), minimum, maximum)


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
        wave = (1 + jnp.cos(jnp.pi * number(position) / length)) / 2
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
        step = number(count) + 1
        rate = jnp.minimum(step**-0.5, step * number(warmup_steps) ** -1.5)
        return scale * number(model_dim) ** -0.5 * rate

    return schedule


def restarts(t_0: int, t_mult: float) -> np.ndarray:
    """Counts at which `warm_restarts` starts its cycles; two if all have one length.

    Raises:
      ValueError: a number is outside its range.
      TypeError: a number is traced.
    """
    _base.check_static_integer("t_0", t_0, 1)
    if isinstance(t_mult, jax.core.Tracer):  # an array of a number is a number
        _base.check_static("t_mult", t_mult)
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
