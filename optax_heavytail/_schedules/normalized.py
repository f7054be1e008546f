"""Schedules for normalised momentum under heavy-tailed noise."""

import math
from typing import NamedTuple

import jax

from optax_heavytail import _base
from optax_heavytail._schedules.common import Schedule, number


class NormalizedMomentum(NamedTuple):
    """What goes with what in `normalized_gd`."""

    learning_rate: Schedule
    momentum: Schedule


def normalized_momentum(
    num_steps: jax.typing.ArrayLike | None = None,
    tail_order: jax.typing.ArrayLike | None = None,
    scale: jax.typing.ArrayLike = 1.0,
) -> NormalizedMomentum:
    r"""The learning rate and the momentum of the theory for `normalized_gd`.

    With the update :math:`t`, the length :math:`T` of the run and the tail order
    :math:`p` of the noise,

    .. math::
        (\eta, 1 - \beta) =
        \begin{cases}
        \left(c \, T^{-(2p - 1)/(3p - 2)}, \; T^{-p/(3p - 2)}\right)
        & T \text{ and } p \text{ known}, \\
        \left(c \, T^{-3/4}, \; T^{-1/2}\right) & T \text{ known}, \\
        \left(c \, t^{-3/4}, \; t^{-1/2}\right) & \text{nothing known}.
        \end{cases}

    The mean of the gradient's norm then falls like :math:`T^{-(p-1)/(3p-2)}`,
    :math:`T^{-(p-1)/(2p)}`, and for :math:`p = 2` like :math:`T^{-1/4}` up to
    logarithms.

    Args:
      num_steps: :math:`T`, in [1, inf), the number of updates. ``None``: not known.
      tail_order: :math:`p` in (1, 2]: moments up to this order are finite. ``None``:
        not known. Needs ``num_steps``.
      scale: :math:`c` in (0, inf), to be tuned.

    Returns:
      A pair of schedules of the count from 0, ``learning_rate`` and ``momentum``,
      float32 or wider. Start the average with the first gradient:
      ``normalized_gd(rate, b1=momentum, init="first")``.

    Raises:
      ValueError: a concrete number is outside its range, or there is a ``tail_order``
        without ``num_steps``.

    Example:
      >>> import optax_heavytail as oht
      >>> rate, momentum = oht.normalized_momentum(10_000, tail_order=2.0)
      >>> round(float(rate(0)), 6), round(float(momentum(0)), 6)
      (0.001, 0.99)
      >>> rate, momentum = oht.normalized_momentum()
      >>> [(float(rate(k)), float(momentum(k))) for k in (0, 15)]
      [(1.0, 0.0), (0.125, 0.75)]
      >>> tx = oht.normalized_gd(rate, b1=momentum, init="first")

    References:
      Liu and Zhou, `Nonconvex stochastic optimization under heavy-tailed noises
      <https://arxiv.org/abs/2412.19529>`_, 2025; Huebler et al., `Parameter-agnostic
      optimization under relaxed smoothness <https://arxiv.org/abs/2311.03252>`_, 2024.
    """
    _base.check_range("scale", scale, 0.0, float("inf"), low_open=True)
    if num_steps is not None:
        _base.check_range("num_steps", num_steps, 1.0, float("inf"))
    if tail_order is not None:
        _base.check_range("tail_order", tail_order, 1.0, 2.0, low_open=True)
        if num_steps is None:
            raise ValueError(
                f"tail_order={tail_order!r} needs num_steps: without the length of the "
                "run it changes nothing."
            )
    p = 2.0 if tail_order is None else tail_order
    rate, weight = (2 * p - 1) / (3 * p - 2), p / (3 * p - 2)

    def length(count):
        return number(count) + 1 if num_steps is None else number(num_steps)

    return NormalizedMomentum(
        lambda count: scale * length(count) ** -rate,
        lambda count: 1 - length(count) ** -weight,
    )


def batch_for_normalized(num_steps: float, tail_order: float) -> int:
    r"""The batch with which normalised descent needs no momentum.

    .. math:: B = \left\lceil T^{p / (2 (p - 1))} \right\rceil

    Its learning rate then is of the order :math:`T^{-1/2}`, as if there were no noise.

    Args:
      num_steps: :math:`T`, in [1, inf), the number of updates.
      tail_order: :math:`p` in (1, 2]: moments up to this order are finite.

    Returns:
      The number of examples for each update. For noise of finite variance that is
      :math:`T`; it explodes as :math:`p` comes near 1.

    Raises:
      ValueError: a number is outside its range, or the batch is no number.

    Example:
      >>> import optax_heavytail as oht
      >>> oht.batch_for_normalized(100, 2.0), oht.batch_for_normalized(100, 4 / 3)
      (100, 10000)

    References:
      Huebler et al., `From gradient clipping to normalization for heavy tailed SGD
      <https://arxiv.org/abs/2410.13849>`_, 2024.
    """
    _base.check_range("num_steps", num_steps, 1.0, float("inf"))
    _base.check_range("tail_order", tail_order, 1.0, 2.0, low_open=True)
    exponent = tail_order / (2 * (tail_order - 1))
    if exponent * math.log10(num_steps) > 300:
        raise ValueError(
            f"tail_order must be further above 1 for a batch that is a number: got "
            f"{tail_order} with num_steps {num_steps}."
        )
    # A power that is a whole number may come out a little above it.
    return math.ceil(float(num_steps) ** exponent * (1 - 1e-9))
