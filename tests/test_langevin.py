"""Langevin steps: by hand, the laws they sample from, and their noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import solve_discrete_lyapunov

import optax_heavytail as oht
from tests.compare import assert_trees_equal
from tests.driving import jitted, one_step
from tests.in_time import only

COLD = float("inf")


def test_the_skew_pairs_neighbours_of_the_flattened_leaf():
    grads = {"w": jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "odd": jnp.ones(3)}
    got = one_step(oht.overdamped_langevin(0.5, COLD, skew=2.0, key=0), grads)
    turned = np.array([[2.0, -1.0, 4.0], [-3.0, 6.0, -5.0]])
    np.testing.assert_allclose(got["w"], -0.5 * (grads["w"] + 2 * turned))
    np.testing.assert_allclose(got["odd"], [-1.5, 0.5, -0.5])


def test_a_skew_may_be_a_function_of_all_leaves():
    def exchange(g):
        return {"a": g["b"], "b": -g["a"]}

    grads = {"a": jnp.array([3.0]), "b": jnp.array([1.0])}
    got = one_step(oht.overdamped_langevin(1.0, COLD, skew=exchange, key=0), grads)
    np.testing.assert_array_equal([got["a"][0], got["b"][0]], [-4.0, 2.0])


def test_without_noise_they_are_descent_and_heavy_ball():
    grads = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    pairs = [
        (oht.overdamped_langevin(0.3, COLD, key=0), optax.sgd(0.3)),
        (oht.underdamped_langevin(0.3, 2.0, COLD, key=0), optax.sgd(0.09, 0.4)),
    ]
    for tx, want in pairs:
        tx, want = jitted(tx), jitted(want)
        states = [t.init(jnp.zeros(3)) for t in (tx, want)]
        for g in jnp.asarray(grads):
            u, states[0] = tx.update(g, states[0])
            v, states[1] = want.update(g, states[1])
            np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6)


# Stationary covariances: the transform's own linear map, with Lyapunov's equation.


def _map(step, size):
    """The matrix of a linear function."""
    return np.stack([np.asarray(step(e)) for e in jnp.eye(size)], axis=1)


@pytest.mark.parametrize("skew", only({1.0}, [0.0, 1.0, -3.0]))
def test_the_law_is_the_same_whatever_the_skew(skew):
    with jax.enable_x64(True):
        curvature, rate, beta = np.array([1.0, 5.0]), 1e-4, 4.0
        tx = oht.overdamped_langevin(rate, COLD, skew=skew, key=0)
        drift = _map(lambda w: one_step(tx, curvature * w) / -rate, 2)
    covariance = solve_discrete_lyapunov(
        np.eye(2) - rate * drift, 2 * rate / beta * np.eye(2)
    )
    np.testing.assert_allclose(
        covariance, np.diag(1 / (beta * curvature)), rtol=2e-3, atol=5e-5
    )
    slowest = np.linalg.eigvals(drift).real.min()
    np.testing.assert_allclose(slowest, 1.0 if skew == 0 else 3.0, rtol=1e-9)


def test_the_step_takes_the_new_velocity():
    """0.12501 for a variance of 0.125; the old velocity would give 0.1276."""
    rate, friction, beta, curvature = 0.01, 1.0, 4.0, 2.0
    with jax.enable_x64(True):
        tx = oht.underdamped_langevin(rate, friction, COLD, key=0)
        state = tx.init(jnp.zeros(()))

        def step(pair):
            u, new = tx.update(curvature * pair[0], state._replace(mu=pair[1]))
            return jnp.stack([pair[0] + u, new.mu])

        linear = _map(jax.jit(step), 2)
    noise = np.sqrt(2 * friction * rate / beta) * np.array([rate, 1.0])
    variance = solve_discrete_lyapunov(linear, np.outer(noise, noise))[0, 0]
    assert round(variance, 5) == 0.12501


@pytest.mark.parametrize(
    ("tx", "variance"),
    [
        pytest.param(
            oht.overdamped_langevin(0.02, 4.0, key=0),
            0.01,
            id="overdamped",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            oht.underdamped_langevin(0.5, 2.0, 8.0, key=0),
            0.25 * 0.25,
            id="underdamped",
        ),
    ],
)
def test_noise_of_the_temperature(tx, variance):
    """Of 40,000 numbers the variance is known to 0.7%, other leaves have others."""
    tx = jitted(tx)
    zeros = {"a": jnp.zeros((100, 200)), "b": jnp.zeros((100, 200))}
    first, state = tx.update(zeros, tx.init(zeros))
    both = np.stack([first["a"], first["b"]])
    np.testing.assert_allclose(np.var(both), variance, rtol=0.04)
    assert abs(np.mean(both)) < 0.03 * np.sqrt(variance)
    again, _ = tx.update(zeros, state._replace(**_at_rest(state)))
    for other in (first["b"], again["a"]):
        assert abs(np.corrcoef(np.ravel(first["a"]), np.ravel(other))[0, 1]) < 0.03


def _at_rest(state):
    """Without the velocity, which remembers the noise."""
    mu = getattr(state, "mu", None)
    return {} if mu is None else {"mu": jax.tree.map(jnp.zeros_like, mu)}


def test_noise_depends_on_the_key_and_the_path_alone():
    grads = {"a": jnp.ones(3), "b": jnp.ones(4)}
    make = oht.overdamped_langevin
    both = one_step(make(0.1, 1.0, key=5), grads)
    assert_trees_equal(one_step(make(0.1, 1.0, key=jax.random.key(5)), grads), both)
    alone = one_step(make(0.1, 1.0, key=5), {"b": grads["b"]})
    assert_trees_equal(alone["b"], both["b"])
    other = one_step(make(0.1, 1.0, key=6), grads)
    assert not np.any(np.asarray(other["a"]) == np.asarray(both["a"]))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"key": "a"}, TypeError, "key must be an integer or one `jax.random.key`"),
        ({"key": 0.5}, TypeError, "key must be an integer"),
        ({"key": True}, TypeError, "key must be an integer"),
        ({"key": jnp.zeros(2, jnp.uint32)}, TypeError, "key must be an integer"),
        ({"inverse_temperature": 0.0}, ValueError, r"\(0.0, inf\), got 0.0"),
        ({"inverse_temperature": np.nan}, ValueError, "inverse_temperature must be"),
    ],
)
def test_what_is_refused(kwargs, error, message):
    valid = {"learning_rate": 0.1, "inverse_temperature": 1.0, "key": 0}
    with pytest.raises(error, match=message):
        oht.overdamped_langevin(**(valid | kwargs))
    with pytest.raises(error, match=message):
        oht.underdamped_langevin(friction=1.0, **(valid | kwargs))
