"""The package's own tree numerics, which the transforms stand on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_heavytail import _tree
from tests.in_time import only


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


@pytest.mark.parametrize("exponent", only({1.5, 2.0}, [1.0, 1.5, 2.0]))
def test_power_mean_at_the_edges(exponent):
    """Its powers neither over- nor underflow, and neither do those of its slopes."""
    old = np.float32([0.0, 1e-30, 1e-20, 1e30, 3e38])
    new = np.float32([1e-30, 1e-30, 1e-18, 1e30, 3e38])
    mean = jax.jit(lambda x, y: _tree.power_mean(x, y, 0.75, exponent))
    x, y = old.astype(np.float64), new.astype(np.float64)
    want = (0.75 * x**exponent + 0.25 * y**exponent) ** (1 / exponent)
    np.testing.assert_allclose(mean(old, new), np.float32(want), rtol=1e-6)
    slope_of = jax.jit(jax.grad(lambda x, y: jnp.sum(mean(x, y)), (0, 1)))
    slopes = slope_of(old, new)
    want_slopes = (
        0.75 * (x / want) ** (exponent - 1),
        0.25 * (y / want) ** (exponent - 1),
    )
    np.testing.assert_allclose(slopes, want_slopes, rtol=1e-5)
    zero = np.zeros_like(old)
    assert not np.any(mean(zero, zero))
    for slope in slope_of(zero, zero):
        assert np.all(np.isfinite(slope))


def test_safe_divide():
    x, y = jnp.array([1.0, 0.0, 3.0]), jnp.array([0.0, 0.0, 2.0])
    np.testing.assert_array_equal(_tree.safe_divide(x, y), [0.0, 0.0, 1.5])
    both = jax.jit(jax.grad(lambda *a: jnp.sum(_tree.safe_divide(*a)), (0, 1)))
    for slopes in both(x, y):
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
