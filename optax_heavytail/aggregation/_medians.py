"""Medians and the trimmed mean: some microbatches may be anything."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _base, _norms, _tree
from optax_heavytail.aggregation import _rows

# Of the typical distance. A step next to a microbatch is as short as the distance from
# it: rounding alone, if not taken for 0, would keep the iteration there.
_CLOSE = 1e-3


def coordinate_median(grads: Any) -> Any:
    r"""The median of each coordinate over the microbatches.

    .. math:: \operatorname{med}(g_{1j}, \dots, g_{nj})

    for each coordinate j: the middle one, or the mean of the two in the middle. It has
    no weights: microbatches count alike.

    Args:
      grads: a tree of floating-point arrays with a leading axis of n microbatches.

    Returns:
      The median, within the range of the good microbatches as long as fewer than half
      are corrupted. -inf is the smallest and inf the largest entry; NaN counts as inf.
      With n=1 or 2 this is the mean.

    Raises:
      ValueError: a leaf has no leading axis of n.
      TypeError: a leaf is not real floating-point.

    Example:
      >>> from optax_heavytail import aggregation
      >>> nan = float("nan")
      >>> grads = jnp.array([[1.0, 1e30], [2.0, 5.0], [nan, 4.0]])
      >>> aggregation.coordinate_median(grads).tolist()
      [2.0, 5.0]

    References:
      Yin et al., `Byzantine-robust distributed learning
      <https://arxiv.org/abs/1803.01498>`_, 2018.
    """
    return trimmed_mean(grads, (_rows.count(grads) - 1) // 2)


def trimmed_mean(grads: Any, trim: int | float) -> Any:
    r"""The mean of each coordinate without its largest and smallest entries.

    .. math:: \frac{1}{n - 2b} \sum_{i=b+1}^{n-b} g_{(i)j}

    for each coordinate j, with :math:`g_{(1)j} \leq \dots \leq g_{(n)j}`. It has no
    weights: microbatches count alike.

    Args:
      grads: a tree of floating-point arrays with a leading axis of n microbatches.
      trim: what is cut off at each side. A Python integer: that number :math:`b`, with
        :math:`2b < n`. A Python float :math:`\beta` in [0, 0.5): :math:`b` is
        :math:`\beta n` rounded down. 0 is the mean. A positive fraction that would cut
        nothing, such as 0.1 of 8, is refused.

    Returns:
      The mean, within the range of the good microbatches as long as at most :math:`b`
      are corrupted. -inf is the smallest and inf the largest entry; NaN counts as inf.

    Raises:
      ValueError: a leaf has no leading axis of n, or ``trim`` is out of range.
      TypeError: a leaf is not real floating-point, or ``trim`` is no number.

    Example:
      >>> from optax_heavytail import aggregation
      >>> grads = jnp.array([1.0, 2.0, 3.0, -1e30, float("inf")])
      >>> aggregation.trimmed_mean(grads, 1).item()
      2.0
      >>> aggregation.trimmed_mean(grads, 0.2).item()
      2.0

    References:
      Yin et al., `Byzantine-robust distributed learning
      <https://arxiv.org/abs/1803.01498>`_, 2018.
    """
    n = _rows.count(grads)
    cut = _cut(trim, n)
    rows = _rows.gather(grads)
    middle = jax.tree.map(lambda x: _rows.mean_of_middle(x, cut, n), rows)
    return _tree.cast_like(middle, grads)


def geometric_median(
    grads: Any, *, num_iterations: int = 8, weights: Any = None
) -> Any:
    r"""The point with the smallest sum of distances to the microbatches.

    .. math:: \operatorname{argmin}_y \sum_i w_i \lVert g_i - y \rVert

    with each microbatch as one vector of all leaves. Found by Weiszfeld's iteration,

    .. math:: T(y) = \sum_{g_i \neq y} \frac{w_i g_i}{\lVert g_i - y \rVert} \Big/
        \sum_{g_i \neq y} \frac{w_i}{\lVert g_i - y \rVert},

    from the coordinate-wise median. Where y is one of the microbatches, the step to
    :math:`T(y)` is shortened by the factor :math:`\max(0, 1 - \eta / r)`, with the
    weight :math:`\eta` of that microbatch and the norm :math:`r` of the sum of the
    others' pulls :math:`w_i (g_i - y) / \lVert g_i - y \rVert`, as Vardi and Zhang do:
    it neither divides by 0 nor stays on the wrong microbatch. Closer than a thousandth
    of the median distance counts as equal, which is also how exact the result can be.

    Args:
      grads: a tree of floating-point arrays with a leading axis of n microbatches.
      num_iterations: number of steps, a Python integer, at least 1.
      weights: :math:`w`, as for `mean`.

    Returns:
      The median, at a bounded distance of the good microbatches as long as these are
      more than half of all and have more than half the weight. A microbatch with an inf
      or NaN entry is left out; the result is NaN if those have half the weight or more.
      Huge and tiny distances are right. With n=1 or 2 and equal weights this is the
      mean.

    Raises:
      ValueError: as `mean`, or ``num_iterations`` is out of range.
      TypeError: a leaf is not real floating-point.

    Example:
      >>> from optax_heavytail import aggregation
      >>> grads = jnp.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [1e30, 0.0]])
      >>> [round(g, 2) for g in aggregation.geometric_median(grads).tolist()]
      [1.0, 0.0]

    References:
      Vardi and Zhang, `The multivariate L1-median and associated data depth
      <https://doi.org/10.1073/pnas.97.4.1423>`_, 2000. Pillutla, Kakade and Harchaoui,
      `Robust aggregation for federated learning <https://arxiv.org/abs/1912.13445>`_,
      2022, which smooths the distances instead.
    """
    n = _rows.count(grads)
    _base.check_static_integer("num_iterations", num_iterations, 1)
    weights = _rows.weights(weights, n)
    center = _geometric_median(_rows.gather(grads), weights, num_iterations)
    return _tree.cast_like(center, grads)


def median_of_means(grads: Any, num_groups: int, *, num_iterations: int = 8) -> Any:
    r"""The geometric median of the means of groups of microbatches.

    The microbatches are split, in their order, into groups of equal size. The geometric
    median of the groups' means is taken, and not that of each coordinate: its error
    bounds do not grow with the number of parameters. Groups average the noise before
    the median, which is biased where the noise is skewed; a corrupted microbatch spoils
    its whole group. It has no weights: microbatches count alike.

    Args:
      grads: a tree of floating-point arrays with a leading axis of n microbatches.
      num_groups: a Python integer that divides n. 1 is the mean, n the geometric
        median. For c corrupted microbatches at least 2c + 1 are needed.
      num_iterations: as for `geometric_median`.

    Returns:
      The median, at a bounded distance of the good groups' means as long as fewer than
      half of the groups hold a corrupted microbatch. A group with an inf or NaN entry
      is left out; the result is NaN if half of the groups or more are.

    Raises:
      ValueError: a leaf has no leading axis of n, ``num_groups`` does not divide n, or
        ``num_iterations`` is out of range.
      TypeError: a leaf is not real floating-point.

    Example:
      >>> from optax_heavytail import aggregation
      >>> grads = jnp.array([1.0, 3.0, 2.0, 2.0, 1e30, 5.0])
      >>> aggregation.median_of_means(grads, 3).item()
      2.0

    References:
      Minsker, `Geometric median and robust estimation in Banach spaces
      <https://arxiv.org/abs/1308.1334>`_, 2015. Minsker and Strawn, `The geometric
      median and applications to robust mean estimation
      <https://arxiv.org/abs/2307.03111>`_, 2023.
    """
    n = _rows.count(grads)
    _base.check_static_integer("num_groups", num_groups, 1)
    _base.check_static_integer("num_iterations", num_iterations, 1)
    if n % num_groups:
        raise ValueError(f"num_groups must divide {n} microbatches, got {num_groups}.")

    def means_of_groups(x):
        groups = x.reshape(num_groups, n // num_groups, *x.shape[1:])
        shares = _rows.shares(None, n // num_groups)
        return jax.vmap(lambda group: _rows.weighted_sum(group, shares))(groups)

    means = jax.tree.map(means_of_groups, _rows.gather(grads))
    center = _geometric_median(means, jnp.ones(num_groups), num_iterations)
    return _tree.cast_like(center, grads)


def _cut(trim: int | float, n: int) -> int:
    if isinstance(trim, bool) or not isinstance(trim, int | float | np.number):
        raise TypeError(f"trim must be a Python integer or float, got {trim!r}.")
    if isinstance(trim, int | np.integer):
        if not 0 <= 2 * trim < n:
            raise ValueError(
                f"trim must be at least 0 and less than half of {n} microbatches, "
                f"got {trim}."
            )
        return int(trim)
    _base.check_range("trim", trim, 0.0, 0.5, high_open=True)
    cut = math.floor(trim * n + 1e-9)  # 0.29 of 100 is 28.999999999999996
    if trim > 0 and cut == 0:
        raise ValueError(
            f"trim must be 0 or at least 1/{n} of {n} microbatches, got {trim}."
        )
    return min(cut, (n - 1) // 2)


def _geometric_median(grads: Any, weights: jax.Array, num_iterations: int) -> Any:
    """In float32 or wider, by Weiszfeld's iteration from the coordinate-wise median."""
    finite = jnp.isfinite(_norms.row_norms(grads).scaled)
    kept = jnp.where(finite, weights, 0)
    start = _start(grads, kept > 0)
    center = jax.lax.fori_loop(
        0, num_iterations, lambda _, y: _step(grads, kept, y), start
    )
    answered = jnp.sum(kept) > jnp.sum(weights - kept)
    nothing = jnp.where(jnp.any(weights != 0), jnp.nan, 0)  # 0 as the mean of nothing
    return jax.tree.map(lambda y: jnp.where(answered, y, nothing), center)


def _start(grads: Any, kept: jax.Array) -> Any:
    """The coordinate-wise median of the rows that count.

    The mean would be as far out as the corrupted rows are, and the iteration that
    starts there comes back by a factor of about n in each step.
    """
    count = jnp.sum(kept)

    def median(x):
        last = jnp.where(_norms.expand_layers(kept, x, 0), x, jnp.inf)
        return _rows.mean_of_middle(last, (count - 1) // 2, count)

    return jax.tree.map(median, grads)


def _step(grads: Any, weights: jax.Array, y: Any) -> Any:
    """Weiszfeld's step as Vardi and Zhang have it."""
    distance = _norms.row_norms(grads, y).value
    typical = jnp.nanmedian(jnp.where(weights > 0, distance, jnp.nan))
    close = distance <= _CLOSE * typical
    apart = ~close & (weights > 0)
    nearest = jnp.min(jnp.where(apart, distance, jnp.inf))
    # Ratios to the nearest: the inverse of a distance may be no number.
    pulls = jnp.where(apart, weights * (nearest / jnp.where(apart, distance, 1)), 0)
    total = jnp.sum(pulls)
    target = _rows.looped_sum(grads, _tree.safe_divide(pulls, total))
    gap = _norms.global_norm(jax.tree.map(jnp.subtract, target, y)).value
    force = total * (gap / nearest)
    held = jnp.sum(jnp.where(close, weights, 0))
    moved = force > held
    share = jnp.where(moved, 1 - held / jnp.where(moved, force, 1), 0)
    return jax.tree.map(lambda a, b: (1 - share) * a + share * b, y, target)
