"""One number for all leaves and one for each, in one array."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _norms, _tree


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
        return _norms.global_norm(tree, axis_name).value[None]
    axes = _norms.leaf_axes(axis_name, tree)
    each = _leaf_norms(leaves, axes, dtype(tree)).value
    return jnp.concatenate([_norm(each)[None], each])


def _norm(row: jax.Array) -> jax.Array:
    """The norm of few numbers: both passes; a conditional would cost more."""
    # Of a constant XLA would take the scale out of the squares, and overflow.
    row = _tree.held(row)
    scale = _norms.rescaling(jnp.sum(jnp.square(row)))
    return _norms.Norm(_tree.safe_sqrt(jnp.sum(jnp.square(row * scale))), scale).value


def _leaf_norms(leaves: list[jax.Array], axes: list[Any], wide: Any) -> _norms.Norm:
    """As `_norms.leaf_norms`, in one array.

    What follows the sums is one small program then, and not one for each leaf, and the
    second pass has no scale of its own for each: less to run, and to compile.
    """

    def squares(scale, leaves):
        pairs = zip(leaves, axes, strict=True)
        sums = [_norms.psum(_norms.sum_of_squares(x, wide, scale), a) for x, a in pairs]
        return jnp.stack(sums)

    first = squares(1, leaves)
    scales = _norms.rescaling(first)

    def rescaled():
        # There are three scales. As constants, and of constant leaves, XLA would take
        # them out of the squares, and overflow.
        kept, known = _tree.held((leaves, scales))
        large = jnp.where(known > 1, squares(jnp.max(known), kept), first)
        return jnp.where(known < 1, squares(jnp.min(known), kept), large)

    sums = jax.lax.cond(jnp.any(scales != 1), rescaled, lambda: first)
    norm = _norms.Norm(_tree.safe_sqrt(sums), scales)
    # Without the barrier XLA may copy the whole reduction into each of its consumers.
    return jax.lax.optimization_barrier(norm)


def shares(flags: Any, per_leaf: bool, axis_name: Any) -> jax.Array:
    """The share of entries that are true, of all leaves and with ``per_leaf`` of each.

    0 where there are no entries.
    """
    axes = _norms.leaf_axes(axis_name, flags)
    # As floats ones would stop adding up at 2^24.
    counts = [
        (jnp.sum(x, dtype=jnp.int32).astype(jnp.float32), jnp.float32(x.size))
        for x in jax.tree.leaves(flags)
    ]
    each = [_norms.psum(n, axis) for n, axis in zip(counts, axes, strict=True)]
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
