"""clip_spikes, scale_by_spam and spam."""

import jax
import jax.numpy as jnp
import numpy as np

import optax_heavytail as oht
from tests.compare import assert_leaf_close
from tests.driving import follow, heavy_gradients, jitted


def test_worked_values():
    """Step 2 is clipped as well, since v is not corrected: 1 > 9 * 0.01."""
    inner = oht.scale_by_spam(0.9, 0.99, threshold=9.0, grace=1)
    tx = jitted(oht.reset_moments(inner, 4, warmup_steps=2))
    state, got = tx.init(jnp.zeros(1)), []
    for size in (1.0, 1.0, 50.0, 1.0, 1.0):
        updates, state = tx.update(jnp.array([size]), state)
        got.append(float(updates[0]))
    want = [0.999999, 0.857318, 0.819519, 0.01, 0.220759]
    np.testing.assert_allclose(got, want, rtol=5e-6)


def test_without_a_threshold_it_is_adam():
    with jax.enable_x64(True):
        grads = heavy_gradients(30)
        got, _, _ = follow(oht.scale_by_spam(threshold=1e30), grads)
        want, _, _ = follow(oht.scale_by_adam(eps=1e-6), grads)
    for u, v in zip(got, want, strict=True):
        for name in v:
            assert_leaf_close(u[name], v[name], 1e-13, name)


def test_entries_stay_within_their_history():
    grads = heavy_gradients(30)
    got, _, state = follow(oht.clip_spikes(4.0, 0.9, grace=1), grads)
    square = {name: np.zeros_like(g) for name, g in grads[0].items()}
    for u, g in zip(got, grads, strict=True):
        for name, v in square.items():
            limit = np.where(v > 0, 2 * np.sqrt(v), np.abs(g[name]))
            assert np.all(np.abs(u[name]) <= limit * (1 + 1e-5))
            square[name] = 0.9 * v + 0.1 * np.square(u[name])
    for name, v in square.items():
        np.testing.assert_allclose(state.root[name], np.sqrt(v), rtol=1e-5)


def test_a_coordinate_that_slept_wakes_up():
    """Published code sets it to 0 where v is 0, and so leaves v at 0 for ever."""
    theirs, v = [], 0.0
    for k in range(40):
        g = 0.0 if k < 30 else 1.0
        if k >= 20 and g**2 > 5000 * v:
            g = np.sign(g) * np.sqrt(5000 * v)
        v = 0.999 * v + 0.001 * g**2
        theirs.append(g)
    assert theirs[30:] == [0.0] * 10
    tx = jitted(oht.clip_spikes())
    state, ours = tx.init(jnp.zeros(1)), []
    for k in range(40):
        updates, state = tx.update(jnp.array([0.0 if k < 30 else 1.0]), state)
        ours.append(float(updates[0]))
    assert ours[30:] == [1.0] * 10
    adam = jitted(oht.scale_by_spam())
    state = adam.init(jnp.zeros(1))
    for k in range(31):
        updates, state = adam.update(jnp.array([0.0 if k < 30 else 1.0]), state)
    assert float(updates[0]) > 0.1


def test_an_inf_is_limited_where_there_is_a_limit_and_loud_where_not():
    tx = oht.clip_spikes(4.0, 0.0, grace=2)
    state = tx.init(jnp.zeros(3))
    for grads in ([1.0, 0.0, 1.0], [-jnp.inf, jnp.inf, jnp.nan]):
        updates, new = tx.update(jnp.array(grads), state)
        roots, state = state.root, new
    np.testing.assert_array_equal(updates, [-2.0, np.inf, np.nan])
    np.testing.assert_array_equal(state.root, [2.0, 0.0, 1.0])
    np.testing.assert_array_equal(roots, [1.0, 0.0, 1.0])


def test_early_updates_pass():
    tx = oht.clip_spikes(1.0, 0.5, grace=3)
    state = tx.init(jnp.zeros(1))
    for size, want in ((1.0, 1.0), (100.0, 100.0), (1e6, 70.7)):
        updates, state = tx.update(jnp.array([size]), state)
        np.testing.assert_allclose(updates[0], want, rtol=1e-3)
