"""The package's own tree numerics, which the transforms stand on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_heavytail import _tree
from tests.compare import as_float64


@functools.cache
def _norms():
    @jax.jit
    def norms(tree):
        leaves = _tree.leaf_norms(tree)
        values = jax.tree.map(
            lambda n: (n.value, n.scale),
            leaves,
            is_leaf=lambda x: isinstance(x, _tree.Norm),
        )
        whole = _tree.global_norm(tree)
        return (whole.value, whole.scale), values

    return norms


@pytest.mark.parametrize("size", [2e-38, 1e-30, 1e-18, 1e-12, 1.0, 1e15, 1e19, 1e37])
def test_norms_of_any_size(size):
    tree = {"a": np.float32([3, -4]) * np.float32(size), "b": np.float32([12 * size])}
    (whole, _), leaves = _norms()(tree)
    # A few squares, a sum and a root in float32.
    np.testing.assert_allclose(as_float64(whole), 13 * size, rtol=1e-6)
    np.testing.assert_allclose(as_float64(leaves["a"][0]), 5 * size, rtol=1e-6)
    np.testing.assert_allclose(as_float64(leaves["b"][0]), 12 * size, rtol=1e-6)


def test_a_small_leaf_beside_a_large_one():
    tree = {"a": np.float32([3e-30, 4e-30]), "b": np.float32([3e30, 4e30])}
    (whole, _), leaves = _norms()(tree)
    np.testing.assert_allclose(leaves["a"][0], 5e-30, rtol=1e-6)
    np.testing.assert_allclose(leaves["b"][0], 5e30, rtol=1e-6)
    np.testing.assert_allclose(whole, 5e30, rtol=1e-6)


def test_ordinary_norms_are_not_rescaled():
    for size in (1e-14, 1.0, 1e18):
        (_, scale), leaves = _norms()({"a": np.full(4, size, np.float32)})
        assert float(scale) == float(leaves["a"][1]) == 1.0


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e200])
def test_float64(size):
    with jax.enable_x64(True):
        norm = _tree.global_norm([jnp.array([3.0, 4.0]) * size])
        assert norm.value.dtype == jnp.float64
        np.testing.assert_allclose(norm.value, 5 * size, rtol=1e-14)


def test_zeros_and_nothing():
    for tree in ({}, {"a": jnp.zeros(3)}, {"a": jnp.zeros((0, 2))}, None):
        assert float(_tree.global_norm(tree).value) == 0.0
    assert _tree.leaf_norms({}) == {}
    assert float(_tree.leaf_norms({"a": jnp.zeros((0, 2))})["a"].value) == 0.0


def test_narrow_leaves_are_squared_in_float32():
    for dtype, size in ((jnp.float16, 6e4), (jnp.bfloat16, 2.0**60)):
        norm = _tree.global_norm(jnp.full(16, size, dtype))
        assert norm.value.dtype == jnp.float32
        want = 4 * float(jnp.asarray(size, dtype))
        np.testing.assert_allclose(norm.value, want, rtol=1e-6)


def test_slopes_of_norms():
    def norm(x):
        return _tree.global_norm(x).value

    slope = jax.jit(jax.grad(norm))
    for size in (1e-30, 1e-10, 1.0, 1e10, 1e30):
        got = slope(jnp.array([3.0, -4.0]) * size)
        np.testing.assert_allclose(got, [0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(slope(jnp.zeros(2)), 0.0)


def test_power_mean():
    rng = np.random.default_rng(0)
    old, new = rng.pareto(1.0, (2, 50))
    with jax.enable_x64(True):
        for a in (1, 1.0, 1.3, 2, 2.0, jnp.float64(1.7)):
            for decay in (0.0, 0.9):
                got = _tree.power_mean(jnp.asarray(old), jnp.asarray(new), decay, a)
                power = float(a)
                want = (decay * old**power + (1 - decay) * new**power) ** (1 / power)
                np.testing.assert_allclose(got, want, rtol=1e-14)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
def test_power_mean_at_the_edges(exponent):
    """Its powers neither over- nor underflow, and neither do those of its slopes."""
    old = np.float32([0.0, 1e-30, 1e-20, 1e30, 3e38])
    new = np.float32([1e-30, 1e-30, 1e-18, 1e30, 3e38])
    mean = jax.jit(lambda x, y: _tree.power_mean(x, y, 0.75, exponent))
    x, y = old.astype(np.float64), new.astype(np.float64)
    want = (0.75 * x**exponent + 0.25 * y**exponent) ** (1 / exponent)
    np.testing.assert_allclose(mean(old, new), np.float32(want), rtol=1e-6)
    slopes = jax.grad(lambda x, y: jnp.sum(mean(x, y)), (0, 1))(old, new)
    want_slopes = (
        0.75 * (x / want) ** (exponent - 1),
        0.25 * (y / want) ** (exponent - 1),
    )
    np.testing.assert_allclose(slopes, want_slopes, rtol=1e-5)
    zero = jnp.zeros(1)
    assert float(mean(zero, zero)[0]) == 0.0
    for slope in jax.grad(lambda x, y: mean(x, y)[0], (0, 1))(zero, zero):
        assert np.all(np.isfinite(slope))


def test_safe_divide():
    x, y = jnp.array([1.0, 0.0, 3.0]), jnp.array([0.0, 0.0, 2.0])
    np.testing.assert_array_equal(_tree.safe_divide(x, y), [0.0, 0.0, 1.5])
    for argument in (0, 1):
        slopes = jax.grad(lambda *a: jnp.sum(_tree.safe_divide(*a)), argument)(x, y)
        np.testing.assert_array_equal(slopes[:2], 0.0)
        assert np.isfinite(slopes[2])


def test_dtypes():
    tree = {"h": jnp.ones(1, jnp.float16), "s": jnp.ones(1)}
    for wide in (_tree.at_least_float32(tree), _tree.zeros_like(tree)):
        assert {x.dtype for x in jax.tree.leaves(wide)} == {jnp.dtype("float32")}
    narrow = _tree.zeros_like(tree, jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}
    back = _tree.cast_like(_tree.at_least_float32(tree), tree)
    assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(
        lambda x: x.dtype, tree
    )
    weak = _tree.cast_like({"x": 1.0}, {"x": jnp.ones(())})["x"]
    assert not weak.weak_type
    with jax.enable_x64(True):
        assert _tree.at_least_float32(jnp.float64(1)).dtype == jnp.float64
