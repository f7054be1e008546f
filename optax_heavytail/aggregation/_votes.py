"""Votes on signs, and a mean of what is clipped around a center."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_heavytail import _base, _norms, _tree
from optax_heavytail.aggregation import _rows


def majority_vote(grads: Any, *, weights: Any = None) -> Any:
    r"""The sign that most microbatches have, entry by entry.

    .. math:: \operatorname{sign}\Bigl(\sum_i w_i \operatorname{sign}(g_i)\Bigr)

    For sign descent with many workers: noise of any tail is voted down as long as it is
    symmetric; with skewed noise the majority has a bias. A learning rate follows, and
    no normalisation. Over a network one bit for each entry would do; here floats move.

    Args:
      grads: a tree of floating-point arrays with a leading axis of n microbatches.
      weights: :math:`w`, as for `mean`: the votes that each one has.

    Returns:
      A tree of -1, 0 and 1; 0 where the votes are equal. Zero and NaN entries do not
      vote, infinities do. Fewer than half that are corrupted change no entry in which
      all others agree.

    Raises:
      ValueError: a leaf has no leading axis of n, or a concrete weight is out of range.
      TypeError: a leaf is not real floating-point.

    Example:
      >>> from optax_heavytail import aggregation
      >>> grads = jnp.array([[0.1, -2.0, 1.0], [0.2, 3.0, jnp.nan], [-1e9, 0.0, 0.0]])
      >>> aggregation.majority_vote(grads).tolist()
      [1.0, 0.0, 1.0]

    References:
      Bernstein et al., `signSGD with majority vote is communication efficient and fault
      tolerant <https://arxiv.org/abs/1810.05291>`_, 2019.
    """
    weights = _rows.weights(weights, _rows.count(grads))

    def votes(x):
        return jnp.where(jnp.isnan(x), 0, jnp.sign(x))

    signs = jax.tree.map(votes, _tree.at_least_float32(grads))
    total = _rows.weighted_sum(signs, weights)
    return _tree.cast_like(jax.tree.map(jnp.sign, total), grads)


def centered_clip(
    grads: Any,
    center: Any,
    threshold: jax.typing.ArrayLike,
    *,
    num_iterations: int = 1,
) -> Any:
    r"""Moves a center by the mean of the microbatches' clipped distances from it.

    .. math:: v \leftarrow v + \frac{1}{n} \sum_i \min\left(1,
        \frac{\tau}{\lVert g_i - v \rVert}\right) (g_i - v)

    with the norm over all leaves. With the last step's result as the center nothing
    that was agreed on is clipped, only what is new; `mean_of_clipped` clips around 0.
    One microbatch moves the result by at most :math:`\tau / n` an iteration.

    Args:
      grads: a tree of floating-point arrays with a leading axis of n microbatches.
      center: :math:`v`, a tree like ``grads`` without that axis.
      threshold: :math:`\tau` in (0, inf), in the gradient's units; may be traced. About
        the distance that good microbatches have from each other.
      num_iterations: a Python integer of at least 1. One is enough with a center that
        is near.

    Returns:
      The new center, in the dtypes of ``grads``. A microbatch with an inf or NaN entry
      counts as one at the center. A center that is not finite keeps it, as
      no microbatch has a distance from it.

    Raises:
      ValueError: a leaf has no leading axis of n, ``center`` does not fit, or a
        concrete ``threshold`` or ``num_iterations`` is out of range.
      TypeError: a leaf is not real floating-point.

    Example:
      >>> from optax_heavytail import aggregation
      >>> grads = jnp.array([1.0, 1.5, 1e30, jnp.nan])
      >>> aggregation.centered_clip(grads, jnp.array(1.0), 2.0).item()
      1.625

    References:
      Karimireddy, He and Jaggi, `Learning from history for Byzantine robust
      optimization <https://arxiv.org/abs/2012.10333>`_, 2021.
    """
    n = _rows.count(grads)
    _check_center(center, grads)
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    _base.check_static_integer("num_iterations", num_iterations, 1)
    rows = _tree.at_least_float32(grads)

    def move(center):
        norms = _norms.row_norms(rows, center)
        good = jnp.isfinite(norms.scaled)
        scale, *factors = _norms.clip_factors(norms, threshold)

        def step(x, v):
            # Scaled first, exactly: the difference may be no number.
            lifted = _norms.expand_layers(scale, x, 0)
            part = x * lifted - v[None] * lifted
            part = _norms.apply_factors(tuple(factors), part, 0)
            part = jnp.where(_norms.expand_layers(good, x, 0), part, 0)
            return v + jnp.sum(part, axis=0) / n

        return jax.tree.map(step, rows, center)

    center = _tree.cast_like(center, rows)
    for _ in range(num_iterations):
        center = move(center)
    return _tree.cast_like(center, grads)


def _check_center(center: Any, grads: Any) -> None:
    _base.check_floating(center, "center")
    _base.check_alike(center, grads, "center")
    pairs = zip(jax.tree.leaves(center), jax.tree.leaves(grads), strict=True)
    for v, x in pairs:
        if jnp.shape(v) != jnp.shape(x)[1:]:
            raise ValueError(
                "center must have the shapes of one microbatch's gradient, got "
                f"{jnp.shape(v)} for {jnp.shape(x)[1:]}."
            )
