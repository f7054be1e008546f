"""Norms of trees, leaves and layers, and clips by them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from optax_heavytail import _norms
from optax_heavytail.diagnostics.monitoring import _rows as monitoring_rows
from tests.compare import as_float64


@functools.cache
def both_norms():
    @jax.jit
    def norms(tree):
        leaves = _norms.leaf_norms(tree)
        values = jax.tree.map(
            lambda n: (n.value, n.scale),
            leaves,
            is_leaf=lambda x: isinstance(x, _norms.Norm),
        )
        whole = _norms.global_norm(tree)
        return (whole.value, whole.scale), values

    return norms


@pytest.mark.parametrize("size", [2e-38, 1e-30, 1e-18, 1e-12, 1.0, 1e15, 1e19, 1e37])
def test_norms_of_any_size(size):
    tree = {"a": np.float32([3, -4]) * np.float32(size), "b": np.float32([12 * size])}
    (whole, _), leaves = both_norms()(tree)
    # A few squares, a sum and a root in float32.
    np.testing.assert_allclose(as_float64(whole), 13 * size, rtol=1e-6)
    np.testing.assert_allclose(as_float64(leaves["a"][0]), 5 * size, rtol=1e-6)
    np.testing.assert_allclose(as_float64(leaves["b"][0]), 12 * size, rtol=1e-6)


def test_a_small_leaf_beside_a_large_one():
    tree = {"a": np.float32([3e-30, 4e-30]), "b": np.float32([3e30, 4e30])}
    (whole, _), leaves = both_norms()(tree)
    np.testing.assert_allclose(leaves["a"][0], 5e-30, rtol=1e-6)
    np.testing.assert_allclose(leaves["b"][0], 5e30, rtol=1e-6)
    np.testing.assert_allclose(whole, 5e30, rtol=1e-6)


def test_ordinary_norms_are_not_rescaled():
    for size in (1e-14, 1.0, 1e18):
        (_, scale), leaves = both_norms()({"a": np.full(4, size, np.float32)})
        assert float(scale) == float(leaves["a"][1]) == 1.0


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e200])
def test_float64(size):
    with jax.enable_x64(True):
        norm = _norms.global_norm([jnp.array([3.0, 4.0]) * size])
        assert norm.value.dtype == jnp.float64
        np.testing.assert_allclose(norm.value, 5 * size, rtol=1e-14)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_distance_from_a_point(size):
    tree = {"a": np.float32([3, 1]) * np.float32(size), "b": np.float32([2 * size])}
    point = {"a": np.float32([-1, 1]) * np.float32(size), "b": np.float32([5 * size])}
    distance = jax.jit(lambda x, y: _norms.global_norm(x, point=y).value)
    np.testing.assert_allclose(as_float64(distance(tree, point)), 5 * size, rtol=1e-6)
    assert float(distance(point, point)) == 0.0


def test_zeros_and_nothing():
    for tree in ({}, {"a": jnp.zeros(3)}, {"a": jnp.zeros((0, 2))}, None):
        assert float(_norms.global_norm(tree).value) == 0.0
    assert _norms.leaf_norms({}) == {}
    assert float(_norms.leaf_norms({"a": jnp.zeros((0, 2))})["a"].value) == 0.0


def test_narrow_leaves_are_squared_in_float32():
    for dtype, size in ((jnp.float16, 6e4), (jnp.bfloat16, 2.0**60)):
        norm = _norms.global_norm(jnp.full(16, size, dtype))
        assert norm.value.dtype == jnp.float32
        want = 4 * float(jnp.asarray(size, dtype))
        np.testing.assert_allclose(norm.value, want, rtol=1e-6)


def test_slopes_of_norms():
    def norm(x):
        return _norms.global_norm(x).value

    slope = jax.jit(jax.grad(norm))
    for size in (1e-30, 1e-10, 1.0, 1e10, 1e30):
        got = slope(jnp.array([3.0, -4.0]) * size)
        np.testing.assert_allclose(got, [0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(slope(jnp.zeros(2)), 0.0)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_norms_of_what_the_compiler_knows(size):
    """XLA reckons with constants: an unused parameter has a gradient that is one."""

    @jax.jit
    def lengths():
        tree = {"a": jnp.full((4, 4), size), "b": jnp.full((), size)}
        rows = {"a": jnp.full((2, 8), size)}
        leaves = jax.tree.leaves(_norms.leaf_norms(tree), is_leaf=_norms.is_norm)
        monitored = monitoring_rows.norms(tree, True, None)
        norms = [*leaves, _norms.row_norms(rows)]
        return [norm.value for norm in norms], monitored

    (a, b, rows), (total, *each) = lengths()
    np.testing.assert_allclose([a, b], [4 * size, size], rtol=1e-6)
    np.testing.assert_allclose(rows, np.sqrt(8) * np.float64(size), rtol=1e-6)
    np.testing.assert_allclose(total, np.sqrt(17) * np.float64(size), rtol=1e-6)
    np.testing.assert_allclose(each, [4 * size, size], rtol=1e-6)


def test_a_parameter_that_the_loss_does_not_have_stays():
    """Its gradient is a constant of the program."""
    tx = oht.clip_by_norm(1.0, scope="leaf")
    params = {"used": jnp.ones(3), "unused": jnp.ones(3)}

    @jax.jit
    def step(params):
        grads = jax.grad(lambda p: jnp.sum(p["used"] ** 2))(params)
        return tx.update(grads, tx.init(params), params)[0]

    updates = step(params)
    np.testing.assert_array_equal(updates["unused"], 0)
    np.testing.assert_allclose(updates["used"], 3**-0.5, rtol=1e-6)


def _all_kinds(tree):
    _norms.global_norm(tree)
    _norms.global_norm(tree, point=tree)
    _norms.leaf_norms(tree)
    _norms.row_norms(tree)


def test_outside_of_jit_a_norm_is_compiled_once():
    """A conditional of functions made anew is compiled at every call."""
    compiled = []

    def note(event, seconds, **names):
        del seconds
        if event.endswith("backend_compile_duration"):
            compiled.append(names)

    tree = {"a": np.ones((3, 5), np.float32), "b": np.ones((3, 1), np.float32)}
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        _all_kinds(tree)
        assert compiled
        compiled.clear()
        _all_kinds(jax.tree.map(lambda x: np.float32(1e30) * x, tree))
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
