"""clip_smoothly: bounded, of slope 1 at 0, and differentiable."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from tests.compare import assert_trees_close
from tests.driving import jitted, one_step
from tests.in_time import only

PHI = {
    "tanh": np.tanh,
    "arctan": lambda x: 2 / np.pi * np.arctan(np.pi * x / 2),
    "algebraic": lambda x: x / np.sqrt(1 + x**2),
    "softsign": lambda x: x / (1 + x),
}
each_shape = pytest.mark.parametrize("shape", PHI)
WORKED = {
    "tanh": (0.099917, 1.523188, 2.0),
    "arctan": (0.099795, 1.278186, 1.919052),
    "algebraic": (0.099875, 1.414214, 1.990074),
    "softsign": (0.095238, 1.0, 1.818182),
}


@each_shape
def test_worked_values_and_sizes_far_from_the_threshold(shape):
    tx = oht.clip_smoothly(2.0, shape=shape)
    near, far = [0.1, -2.0, 20.0], [2e-38, 1e-30, -1e-5, 1e30, -3e38]
    got, far = np.split(one_step(tx, np.float32(near + far)), [3])
    np.testing.assert_allclose(np.abs(got), WORKED[shape], rtol=2e-5)
    np.testing.assert_allclose(far, [2e-38, 1e-30, -1e-5, 2.0, -2.0], rtol=1e-5)
    # Ratios to the threshold that are no numbers of float32.
    for tau, size, want in ((1e-30, 1e30, 1e-30), (1e30, 1e-30, 1e-30)):
        got = one_step(oht.clip_smoothly(tau, shape=shape), jnp.array([size]))
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "scope"),
    only(
        {("tanh", "leaf"), ("arctan", "global")},
        itertools.product(PHI, ("leaf", "global")),
    ),
)
def test_norms_are_bounded_as_entries_are(shape, scope):
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    got = one_step(oht.clip_smoothly(2.0, shape=shape, scope=scope), grads)
    norms = {"a": 13.0, "b": 13.0} if scope == "global" else {"a": 5.0, "b": 12.0}
    want = {k: g * (2 * PHI[shape](norms[k] / 2) / norms[k]) for k, g in grads.items()}
    assert_trees_close(got, want, 1e-6)


@each_shape
def test_slopes_are_those_of_the_formula_from_0_on(shape):
    """On both sides of each change of form."""
    with jax.enable_x64(True):

        def clipped(x, tau):
            return one_step(oht.clip_smoothly(tau, shape=shape), x)

        sizes = np.array([0.0, 1e-12, 1e-4, 2e-4, 2.5e-4, 0.7, 1.99, 2.0, 2.01, 50.0])
        grads = jax.jit(jax.vmap(jax.grad(clipped, (0, 1)), (0, None)))
        slopes, by_tau = grads(jnp.asarray(sizes), 2.0)
        h = 1e-5
        want = (
            (2 * PHI[shape]((sizes + h) / 2) - 2 * PHI[shape]((sizes - h) / 2)) / 2 / h
        )
        # softsign as written here has a kink at 0 that the size of an entry has not.
        want[0] = 1.0
        np.testing.assert_allclose(slopes, want, rtol=1e-6, atol=1e-9)
        assert np.all(np.isfinite(by_tau))
        assert by_tau[-1] > 0.5  # a hard clip has 1, and 0 below its threshold
        assert by_tau[5] > 0.01


def test_what_is_kept_is_told():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
    tx = jitted(oht.clip_smoothly(2.0, shape="softsign", scope="leaf"))
    state = tx.update(grads, tx.init(grads))[1]
    np.testing.assert_allclose(state.kept["a"], 1 / 3.5, rtol=1e-6)
    np.testing.assert_allclose(state.kept["b"], 1 / 1.5, rtol=1e-6)
    tx = jitted(oht.clip_smoothly(2.0))
    assert tx.update(grads, tx.init(grads))[1].kept is None


def test_a_schedule_that_is_no_threshold_is_loud():
    tx = oht.clip_smoothly(lambda count: -1.0)
    assert np.isnan(one_step(tx, jnp.array([1.0])))


def test_an_unknown_shape():
    with pytest.raises(ValueError, match="shape must be one of"):
        oht.clip_smoothly(1.0, shape="sine")
