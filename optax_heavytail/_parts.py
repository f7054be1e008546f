"""Leaves of one kind together, and what belongs to each apart again.

A program for each of a thousand small leaves takes longer to compile, and to start,
than it runs. XLA compiles equal programs once, and only those.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Larger leaves keep their own programs: a copy of them would be worth measuring, and
# under automatic sharding a stack of leaves that are sharded differently is gathered.
_MOST_ENTRIES, _MOST_LEAVES = 2**12, 16


class Part(NamedTuple):
    """Leaves that are treated as one array: several small ones, or one alone."""

    places: tuple[int, ...]  # of the leaves in their trees
    axis: Any  # the mesh axis of each
    layer: int | None  # the axis of the layers of a leaf that is alone

    @property
    def is_stack(self) -> bool:
        """Whether there is a new first axis."""
        return len(self.places) > 1


def of(
    leaves: Sequence[Sequence[jax.Array]], axes: Sequence[Any], layers: Sequence[Any]
) -> list[Part]:
    """The parts of the leaves of trees that are alike, all of which they must fit."""
    by_kind: dict[Any, list[int]] = {}
    for i, (alike, axis, layer) in enumerate(
        zip(zip(*leaves, strict=True), axes, layers, strict=True)
    ):
        # With shapes and dtypes: what varies over devices, and how it is sharded.
        kind: Any = (*map(jax.typeof, alike), axis)
        if layer is not None or math.prod(jnp.shape(alike[0])) > _MOST_ENTRIES:
            kind = i
        by_kind.setdefault(kind, []).append(i)
    return [
        Part(tuple(found[i : i + _MOST_LEAVES]), axes[found[0]], layers[found[0]])
        for found in by_kind.values()
        for i in range(0, len(found), _MOST_LEAVES)
    ]


def join(leaves: Sequence[jax.Array], parts: Sequence[Part]) -> list[jax.Array]:
    """One array for each part, with a new first axis if that is a stack."""
    return [
        jnp.stack([leaves[i] for i in part.places])
        if part.is_stack
        else leaves[part.places[0]]
        for part in parts
    ]


def split(numbers: Sequence[jax.Array], parts: Sequence[Part]) -> list[jax.Array]:
    """What belongs to each leaf, from arrays with one entry for each leaf of a part."""
    found = {}
    for array, part in zip(numbers, parts, strict=True):
        if part.is_stack:
            found |= {place: entry(array, i) for i, place in enumerate(part.places)}
        else:
            found[part.places[0]] = array
    return [found[i] for i in range(len(found))]


def entry(numbers: jax.Array, index: int, size: int | None = None) -> jax.Array:
    """``numbers[index]``, or so many from there, by the same program for each index.

    With the index in it each leaf's program is another one, which XLA takes twenty
    times as long to compile. It would write into it any constant that is one number,
    so that this is another one of two.
    """
    place = jax.lax.optimization_barrier(np.array([index, index + 1], np.uint32))
    first = jax.lax.index_in_dim(place, 0, keepdims=False)
    part = jax.lax.dynamic_slice_in_dim(numbers, first, 1 if size is None else size)
    return part.reshape(()) if size is None else part


def shared(numbers: jax.Array) -> jax.Array:
    """The row of numbers, computed once and not again by each program that reads it.

    XLA copies all but what it counts as expensive, such as a quotient; not one by a
    single number, of which it makes a product.
    """
    counts = np.arange(1, numbers.shape[0] + 1).astype(numbers.dtype)
    return numbers / jnp.minimum(jax.lax.optimization_barrier(counts), 1)
