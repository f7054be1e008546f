"""One number for all leaves and one for each, in one array."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _tree


def encoded_names(params: Any, per_leaf: bool) -> jax.Array | None:
    """What the rows are of, as bytes: one array for all leaves.

    A tree like the parameters would have scalars for leaves, to which
    `optax.tree.map_params` would give the parameters' shardings.
    """
    if not per_leaf:
        return None
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    # Never empty, as checkpoints want it.
    text = "".join(f"{name}\0" for name in ["", *path_names(paths)])
    return jnp.asarray(np.frombuffer(text.encode(), np.uint8))


def names(encoded: np.ndarray | None) -> list[str]:
    """What each row is of: "" for all leaves, "/encoder/kernel" for one of them."""
    if encoded is None:
        return [""]
    text = bytes(encoded.astype(np.uint8)).decode()
    return [name and f"/{name}" for name in text.split("\0")[:-1]]


def path_names(paths: list[Any]) -> list[str]:
    """Paths as ``encoder/kernel``; in full where that does not tell them apart."""
    short = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
    is_named = all(name or not path for name, path in zip(short, paths, strict=True))
    if is_named and len(set(short)) == len(short):
        return short
    return [jax.tree_util.keystr(path) for path in paths]


def num_rows(params: Any, per_leaf: bool) -> int:
    """One for all leaves together, and with ``per_leaf`` one for each."""
    return 1 + per_leaf * len(jax.tree.leaves(params))


def dtype(params: Any) -> jnp.dtype:
    """float32, or wider if a leaf is."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(params))


def norms(tree: Any, per_leaf: bool, axis_name: Any) -> jax.Array:
    """The norm over all leaves, and with ``per_leaf`` those of the leaves."""
    tree = _tree.at_least_float32(tree)
    leaves = jax.tree.leaves(tree)
    if not per_leaf or not leaves:
        return _tree.global_norm(tree, axis_name).value[None]
    wide, axes = dtype(tree), _tree.leaf_axes(axis_name, tree)
    pairs = zip(leaves, axes, strict=True)
    sums = [_tree.psum(_sums_of_squares(x, wide), axis) for x, axis in pairs]
    each = _root(jnp.stack(sums))
    return jnp.concatenate([_root(_sums_of_squares(each, wide))[None], each])


def _sums_of_squares(x: jax.Array, wide: Any) -> jax.Array:
    """Of ``x`` at each of three scales, in one pass: shape ``(3,)``.

    A second pass where the first over- or underflows would be cheaper in itself. But it
    has to keep the leaves, of which XLA then makes copies in every step.
    """
    squares = [jnp.square(jnp.asarray(x, wide) * scale) for scale in _scales(wide)]
    zeros = [jnp.zeros([], wide) for _ in squares]

    def add(sums: Any, terms: Any) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(sums, terms, strict=True))

    return jnp.stack(jax.lax.reduce(squares, zeros, add, tuple(range(x.ndim))))


def _scales(wide: Any) -> list[jax.Array]:
    """Those of `_tree.rescaling`: 1, and what a sum of 0 and one of inf ask for."""
    found = _tree.rescaling(jnp.array([1, 0, jnp.inf], wide))
    # As constants XLA would take them out of the squares, and overflow.
    return list(jax.lax.optimization_barrier(found))


def _root(sums: jax.Array) -> jax.Array:
    """Norms from sums of squares ``(..., 3)``, by the scale that can hold each."""
    scale = _tree.rescaling(sums[..., 0])
    chosen = jnp.where(scale > 1, sums[..., 1], sums[..., 0])
    chosen = jnp.where(scale < 1, sums[..., 2], chosen)
    return _tree.Norm(_tree.safe_sqrt(chosen), scale).value


def shares(flags: Any, per_leaf: bool, axis_name: Any) -> jax.Array:
    """The share of entries that are true, of all leaves and with ``per_leaf`` of each.

    0 where there are no entries.
    """
    axes = _tree.leaf_axes(axis_name, flags)
    # As floats ones would stop adding up at 2^24.
    counts = [
        (jnp.sum(x, dtype=jnp.int32).astype(jnp.float32), jnp.float32(x.size))
        for x in jax.tree.leaves(flags)
    ]
    each = [_tree.psum(n, axis) for n, axis in zip(counts, axes, strict=True)]
    table = jnp.array(each, jnp.float32).reshape(-1, 2)
    table = jnp.concatenate(
        [jnp.sum(table, axis=0)[None], table[: per_leaf * len(each)]]
    )
    return _tree.safe_divide(table[:, 0], table[:, 1])


def cast(values: jax.Array, like: jax.Array) -> jax.Array:
    """In the dtype of ``like``; finite numbers stay finite."""
    limits = jnp.finfo(like.dtype)
    if limits.bits < jnp.finfo(values.dtype).bits:
        largest = limits.max.astype(values.dtype)
        is_large = jnp.isfinite(values) & (values > largest)
        values = jnp.where(is_large, largest, values)
    return values.astype(like.dtype)
