"""How close is close: one measure for all tests, that of the reference trajectories."""

import os

import jax
import numpy as np

from tests import compilation


def as_float64(x):
    return np.asarray(x).astype(np.float64)  # by numpy: jax may narrow it


def assert_leaf_close(got, want, rtol, where=""):
    """Compares with the leaf's largest entry: entries that cancel are not judged."""
    got, want = as_float64(got), as_float64(want)
    assert got.shape == want.shape, f"{where}: shapes {got.shape} and {want.shape}"
    if want.size == 0:
        return
    finite = np.isfinite(want)
    # An inf is not a NaN, and neither is a number.
    np.testing.assert_array_equal(
        np.where(np.isfinite(got), 0, got), np.where(finite, 0, want), err_msg=where
    )
    got, want = np.where(finite, got, 0), np.where(finite, want, 0)
    error, scale = np.max(np.abs(got - want)), np.max(np.abs(want))
    assert error <= rtol * scale, f"{where}: off by {error:g}, largest entry {scale:g}"


def assert_trees_close(got, want, rtol):
    """Same structure, and each leaf within ``rtol`` of its largest entry."""
    got_leaves = jax.tree_util.tree_leaves_with_path(got)
    want_leaves = jax.tree_util.tree_leaves_with_path(want)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), (_, b) in zip(got_leaves, want_leaves, strict=True):
        assert_leaf_close(a, b, rtol, jax.tree_util.keystr(path))


def assert_trees_equal(got, want):
    """Same structure, dtypes and bits (a NaN equals a NaN)."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    )
    for (path, a), b in pairs:
        where = jax.tree_util.keystr(path)
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, f"{where}: {a.dtype} and {b.dtype}"
        np.testing.assert_array_equal(as_float64(a), as_float64(b), err_msg=where)


def assert_same_bits(first, second, grads, params):
    """Two transforms agree to the last bit under ``jit``, in the nightly also without.

    Operation by operation each of them compiles, which takes longer than all the rest.
    """
    without_jit = [lambda update: update] * (compilation.AS_USERS_DO in os.environ)
    for wrap in (jax.jit, *without_jit):
        updates = [wrap(tx.update) for tx in (first, second)]
        states = [tx.init(params) for tx in (first, second)]
        for g in grads:
            (u, states[0]), (v, states[1]) = (
                update(g, state, params)
                for update, state in zip(updates, states, strict=True)
            )
            assert_trees_equal(u, v)
        assert_trees_equal(*map(jax.tree.leaves, states))


def types(tree):
    """Shape, dtype and weakness of each leaf, with the structure."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in leaves]
