"""Trees whose leaves have a leading axis of n microbatches: checks, sums, order."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _base, _norms, _tree

# A network of 16 rows is 60 comparisons, 32 rows need 190: they compile slowly.
_LARGEST_NETWORK = 16


def count(grads: Any) -> int:
    """n, the size of the leading axis.

    Raises:
      ValueError: there is no leaf, or no common leading axis.
      TypeError: a leaf is not real floating-point.
    """
    _base.check_floating(grads, "gradients")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(grads)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "every leaf must have the same leading axis of at least one microbatch, "
            f"got leaves of shapes {sorted(set(shapes))[:4]}."
        )
    return sizes.pop()


def weights(values: Any, n: int) -> jax.Array:
    """The weights as a float32 or wider array; ones for ``None``.

    Raises:
      ValueError: the shape is not (n,), or a concrete weight is out of range.
    """
    if values is None:
        return jnp.ones(n, jnp.float32)
    values = values if isinstance(values, jax.Array) else np.asarray(values)
    if values.shape != (n,):
        raise ValueError(f"weights must have shape ({n},), got {values.shape}.")
    if not isinstance(values, jax.core.Tracer):
        for weight in np.asarray(values):
            _base.check_range("weights", weight, 0.0, float("inf"))
    return _tree.at_least_float32(jnp.asarray(values))


def shares(values: Any, n: int) -> jax.Array:
    """The weights over their sum; all 0 if that is 0."""
    array = weights(values, n)
    return _tree.safe_divide(array, jnp.sum(array))


def part(weight: jax.Array, x: jax.Array) -> jax.Array:
    """``weight * x``, and 0 where the weight is 0: also of an infinity."""
    return jnp.where(weight == 0, 0, weight * x)


def weighted_sum(grads: Any, weights: jax.Array) -> Any:
    """The sum over the leading axis, which may be spread over devices."""
    return jax.tree.map(
        lambda x: jnp.sum(part(_norms.expand_layers(weights, x, 0), x), axis=0), grads
    )


def looped_sum(grads: Any, weights: jax.Array) -> Any:
    """The same where each device has all rows: on a CPU a hundred times as fast.

    XLA sums over a leading axis with strides, and over rows in a loop with vectors.
    """
    wide = jnp.result_type(jnp.float32, weights)

    def add(total, row):
        weight, grads = row
        return jax.tree.map(lambda t, x: t + part(weight, x), total, grads), None

    zeros = jax.tree.map(
        lambda x: jnp.zeros_like(x[0], dtype=jnp.promote_types(x.dtype, wide)), grads
    )
    return jax.lax.scan(add, zeros, (weights, grads))[0]


def gather(grads: Any) -> Any:
    """All rows on each device, where explicit axes refuse and automatic ones obey."""
    return jax.tree.map(lambda x: _norms.whole_rows(jnp.asarray(x)), grads)


def mean_of_middle(x: jax.Array, cut: Any, length: Any) -> jax.Array:
    """The mean of all but ``cut`` at each side of the ``length`` smallest of the rows.

    In float32 or wider. NaN counts as inf. Both numbers may be traced.
    """
    rows = _sorted(jnp.where(jnp.isnan(x), jnp.inf, x))
    share = 1 / jnp.asarray(length - 2 * cut, jnp.promote_types(x.dtype, jnp.float32))
    inside = [(cut <= i) & (i < length - cut) for i in range(len(rows))]
    shares = [jnp.where(within, share, 0) for within in inside]
    return functools.reduce(jnp.add, map(part, shares, rows))


def _sorted(x: jax.Array) -> list[jax.Array]:
    """The rows, each coordinate in rising order; none may be NaN.

    Comparisons of whole rows, all in one kernel that keeps no sorted copy, where
    `jnp.sort` is a hundred times as slow on a CPU.
    """
    if len(x) > _LARGEST_NETWORK:
        return list(jnp.sort(x, axis=0))
    rows = list(x)
    for i, j in _network(len(rows)):
        rows[i], rows[j] = jnp.minimum(rows[i], rows[j]), jnp.maximum(rows[i], rows[j])
    return rows


def _network(n: int) -> Iterator[tuple[int, int]]:
    """Batcher's merge exchange (Knuth, volume 3, algorithm 5.2.2M): pairs to order."""
    top = 1 << max(0, (n - 1).bit_length() - 1) if n > 1 else 0
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            yield from ((i, i + d) for i in range(n - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
