"""scale_by_stable_norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from tests.driving import jitted
from tests.in_time import only


def ratios(norms, *args, **kwargs):
    tx = oht.scale_by_stable_norm(*args, **kwargs)

    def step(state, n):
        updates, state = tx.update(jnp.array([0.6, -0.8]) * n, state)
        return state, updates

    @jax.jit
    def run(norms):
        return jax.lax.scan(step, tx.init(jnp.zeros(2)), norms)[1]

    updates = np.asarray(run(np.array(norms, np.float32)))
    np.testing.assert_allclose(updates[:, 1], -4 / 3 * updates[:, 0], rtol=1e-6)
    return np.linalg.norm(updates, axis=1)


@pytest.mark.parametrize(
    ("args", "kwargs", "want"),
    [
        ((0.7, 0.9), {}, [1, 1, 0.834044, 0.672244, 0.570957]),
        ((), {}, [1, 1, 0.958527, 0.685943, 0.527391]),
        ((), {"max_ratio": 3.0}, [1, 1, 1.05474, 0.895593, 0.813844]),
    ],
    ids=["0.7-0.9", "default", "capped"],
)
def test_worked_values(args, kwargs, want):
    np.testing.assert_allclose(
        ratios([1, 1, 10, 1, 1], *args, **kwargs), want, rtol=3e-6
    )


@pytest.mark.parametrize(("b1", "b2"), only({(0.6, 0.999)}, [(0.6, 0.999), (0.7, 0.9)]))
def test_the_published_ratio_is_not_within_1(b1, b2):
    """The worst history of 60 norms attains Cauchy and Schwarz's bound."""
    age = np.arange(60)[::-1]
    first, second = ((1 - b) * b**age / (1 - b**60) for b in (b1, b2))
    bound = np.sqrt(np.sum(first**2 / second))
    worst = ratios(first / second, b1, b2, eps=0.0)[-1]
    np.testing.assert_allclose(worst, bound, rtol=1e-4)
    limit = (1 - b1) / np.sqrt((1 - b2) * (1 - b1**2 / b2))
    assert 1.3 < bound < limit + 1e-9
    assert max(ratios(first / second, b1, b2, eps=0.0, max_ratio=3.0)) < 3


def test_what_a_spike_leaves_behind():
    """Published: all are shortened by 1 / sqrt(1 + (1 - b2) S^2). Capped: none."""
    norms = [1.0] * 400
    norms[300] = 1000.0
    published = ratios(norms)
    weight = (1 - 0.999) / (1 - 0.999**400) * 0.999**99 * 1000**2
    np.testing.assert_allclose(published[-1], (1 + weight) ** -0.5, rtol=1e-2)
    capped = ratios(norms, max_ratio=3.0)
    assert min(capped[301:]) > 0.98
    assert max(capped) < 2.0


def test_a_stack_of_layers_is_not_one_norm():
    tx = jitted(oht.scale_by_stable_norm(layer_axis=0))
    grads = jnp.array([[3.0, 4.0], [3e-4, 4e-4]])
    updates, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates, [[0.6, 0.8]] * 2, rtol=1e-5)
    assert state.seen.shape == state.mean.shape == (2,)


def test_counts_of_leaves_are_their_own():
    """A leaf that sleeps for 50 updates starts as one that is new."""
    tx = jitted(oht.scale_by_stable_norm())
    state = tx.init({"a": jnp.zeros(1), "b": jnp.zeros(1)})
    for k in range(51):
        asleep = jnp.array([0.0 if k < 50 else 7.0])
        updates, state = tx.update({"a": jnp.ones(1), "b": asleep}, state)
    np.testing.assert_allclose(updates["b"], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(state.seen, [51, 1])
