"""Schedules from the theory of clipped SGD.

They are from Zhang et al., `Why are adaptive methods good for attention models?
<https://arxiv.org/abs/1912.03194>`_, 2020, theorems 1 to 3, where :math:`k` is the
count plus 1. The noise has a tail order :math:`a` in (1, 2]: the expectation of
:math:`\\lVert g \\rVert^a` is at most :math:`G^a`, while the variance may be infinite.
"""

from typing import Any

import jax

from optax_heavytail import _base
from optax_heavytail._schedules.common import Schedule, number


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
    return lambda count: 4 / (mu * (number(count) + 2))


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
        growth = (number(count) + 1) ** (1 / tail_order)
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


def _power_of_length(scale, num_steps, tail_order, exponent) -> Schedule:
    _base.check_range("scale", scale, 0.0, float("inf"), low_open=True)
    _base.check_range("num_steps", num_steps, 1.0, float("inf"))
    _check_tail_order(tail_order)

    def schedule(count):
        del count
        return scale * number(num_steps) ** exponent(tail_order)

    return schedule


def _check_tail_order(tail_order) -> None:
    _base.check_range("tail_order", tail_order, 1.0, 2.0, low_open=True)
