"""Means, of all microbatches at once and of one after another."""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from optax_heavytail import _base, _norms, _tree
from optax_heavytail.aggregation import _rows


def mean(grads: Any, *, weights: Any = None) -> Any:
    r"""The mean of the microbatches.

    .. math:: \sum_i w_i g_i \Big/ \sum_i w_i

    Args:
      grads: a tree of floating-point arrays with a leading axis of n microbatches.
      weights: :math:`w`, of shape (n,), each in [0, inf), such as the number of
        examples or of masked tokens that a microbatch's gradient is the mean over.
        ``None``: all 1. A microbatch of weight 0 is left out, whatever it holds; if all
        have weight 0 the result is 0.

    Returns:
      The mean. Huge entries do not overflow on the way. An inf or NaN entry makes that
      entry of the result inf or NaN, and no other.

    Raises:
      ValueError: a leaf has no leading axis of n, or a concrete weight is out of range.
      TypeError: a leaf is not real floating-point.

    Example:
      >>> from optax_heavytail import aggregation
      >>> grads = {"w": jnp.array([[1.0, 0.0], [4.0, 2.0]])}
      >>> aggregation.mean(grads)["w"].tolist()
      [2.5, 1.0]
      >>> aggregation.mean(grads, weights=jnp.array([2, 1]))["w"].tolist()
      [2.0, 0.6666666865348816]
    """
    n = _rows.count(grads)
    return _tree.cast_like(_rows.weighted_sum(grads, _rows.shares(weights, n)), grads)


def mean_of_clipped(
    grads: Any, max_norm: jax.typing.ArrayLike, *, weights: Any = None
) -> Any:
    r"""The mean of the microbatches, each clipped to a global norm.

    .. math:: \sum_i w_i \min\left(\frac{\tau}{\lVert g_i \rVert}, 1\right) g_i
        \Big/ \sum_i w_i

    With the norm over all leaves of a microbatch. One microbatch moves the result by at
    most :math:`2 \tau w_i / \sum_j w_j`, but a bias of that size stays. Clipping the
    mean instead, as `~optax_heavytail.gclip` does, bounds the step and not the part
    that one has in it.

    Args:
      grads: a tree of floating-point arrays with a leading axis of n microbatches.
      max_norm: :math:`\tau` in (0, inf), in the gradient's units; may be traced.
      weights: :math:`w`, as for `mean`.

    Returns:
      The mean. Norms are right where their squares, or they themselves, over- or
      underflow. An inf or NaN entry makes every entry NaN, as with
      `~optax_heavytail.clip_by_norm`.

    Raises:
      ValueError: as `mean`, or a concrete ``max_norm`` is out of range.
      TypeError: a leaf is not real floating-point.

    Example:
      >>> from optax_heavytail import aggregation
      >>> grads = jnp.array([[3.0, 4.0], [3e30, 4e30]])
      >>> [round(g, 3) for g in aggregation.mean_of_clipped(grads, 5.0).tolist()]
      [3.0, 4.0]
    """
    n = _rows.count(grads)
    weights = _rows.shares(weights, n)
    _check_max_norm(max_norm)
    factors = _norms.clip_factors(_norms.row_norms(grads), max_norm)
    clipped = jax.tree.map(
        lambda x: _norms.apply_factors(factors, x, 0), _tree.at_least_float32(grads)
    )
    return _tree.cast_like(_rows.weighted_sum(clipped, weights), grads)


class RunningMean(NamedTuple):
    """A mean of microbatches that come one after another, in one gradient's memory.

    `mean` and `mean_of_clipped` without the leading axis, for the carry of a
    ``jax.lax.scan``. It is a tree of sums: ``jax.lax.psum`` over devices joins their
    microbatches to one mean.

    Example:
      >>> from optax_heavytail import aggregation
      >>> def body(running, grads):
      ...     return running.add(grads, max_norm=5.0), None
      >>> start = aggregation.RunningMean.empty(jnp.zeros(2))
      >>> grads = jnp.array([[3.0, 4.0], [3e10, 4e10], [0.0, 0.0]])
      >>> running, _ = jax.lax.scan(body, start, grads)
      >>> [round(g, 3) for g in running.result(jnp.zeros(2)).tolist()]
      [2.0, 2.667]
    """

    total: Any  # like one gradient, float32 or wider: the weighted sum
    weight: jax.Array  # (), float32: the sum of the weights

    @classmethod
    def empty(cls, like: Any) -> Self:
        """No microbatch yet; ``like`` is a gradient, or the parameters."""
        _base.check_floating(like, "gradients")
        return cls(_tree.zeros_like(like), jnp.zeros([], jnp.float32))

    def add(
        self,
        grads: Any,
        weight: jax.typing.ArrayLike = 1.0,
        *,
        max_norm: jax.typing.ArrayLike | None = None,
    ) -> Self:
        """With one more microbatch, clipped to ``max_norm`` unless that is ``None``.

        Weights and non-finite entries are as in `mean` and `mean_of_clipped`.
        """
        _base.check_floating(grads, "gradients")
        _base.check_range("weight", weight, 0.0, float("inf"))
        weight = jnp.asarray(weight, self.weight.dtype)
        grads = _tree.at_least_float32(grads)
        if max_norm is not None:
            _check_max_norm(max_norm)
            factors = _norms.clip_factors(_norms.global_norm(grads), max_norm)
            grads = jax.tree.map(lambda g: _norms.apply_factors(factors, g), grads)
        total = jax.tree.map(lambda t, g: t + _rows.part(weight, g), self.total, grads)
        return type(self)(_tree.cast_like(total, self.total), self.weight + weight)

    def result(self, like: Any) -> Any:
        """The mean in the dtypes of ``like``; 0 if the weights add up to 0."""
        average = jax.tree.map(lambda t: _tree.safe_divide(t, self.weight), self.total)
        return _tree.cast_like(average, like)


def _check_max_norm(max_norm: jax.typing.ArrayLike) -> None:
    _base.check_range("max_norm", max_norm, 0.0, float("inf"), low_open=True)
