"""AdaShift: the window of gradients, and the second moment behind it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests import reference
from tests.compare import assert_leaf_close, assert_same_bits, assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.in_time import only
from tests.registry import make_grads, make_params


@pytest.mark.parametrize("n", only({3}, [1, 3, 10]))
def test_100_steps_follow_the_reference(n):
    """The window wraps around 100, 33 and 10 times."""
    grads = heavy_gradients()
    want = reference.adashift(grads, 0.9, 0.99, 1e-10, n)
    with jax.enable_x64(True):
        got, _, state = follow(oht.scale_by_adashift(0.9, 0.99, 1e-10, n=n), grads)
    for step, (u, v) in enumerate(zip(got, want, strict=True)):
        for name in v:
            # 100 steps of a few operations, each within 1e-16; sums may cancel.
            assert_leaf_close(u[name], v[name], 1e-10, f"{name}, step {step}")
    for name, window in state.window.items():
        newest = sorted(np.ravel(window).tolist())
        assert newest == sorted(np.ravel([g[name] for g in grads[-n:]]).tolist())


def test_nothing_moves_for_the_first_n_updates():
    tx = jitted(oht.scale_by_adashift(n=4))
    state = tx.init(jnp.zeros(2))
    for _ in range(4):
        updates, state = tx.update(jnp.array([3.0, -1e6]), state)
        np.testing.assert_array_equal(updates, 0)
        np.testing.assert_array_equal(state.nu, 0)
    updates, state = tx.update(jnp.array([3.0, -1e6]), state)
    # All five gradients are the same, so the root is their size.
    np.testing.assert_allclose(updates, [1.0, -1.0], rtol=1e-6)


def test_a_gradient_enters_its_own_scale_n_updates_later():
    tx = jitted(oht.scale_by_adashift(b1=0.0, b2=0.5, eps=0.0, n=2))
    state = tx.init(jnp.zeros(1))
    sizes = []
    for g in (1.0, 1.0, 1.0, 1000.0, 1.0, 1.0):
        updates, state = tx.update(jnp.array([g]), state)
        sizes.append(float(updates[0]))
    # With b1 = 0 the mean is the newest gradient: 1000 is seen in full, then damps.
    np.testing.assert_allclose(sizes[:5], [0, 0, 1, 1000, 1], rtol=1e-6)
    assert sizes[5] < 0.01


def test_weights_follow_the_age_across_the_wrap():
    """An impulse fades by b1 per update for n updates, wherever its slot is."""
    tx = jitted(oht.scale_by_adashift(b1=0.5, b2=0.0, eps=1.0, n=3))
    for position in range(4):
        state = tx.init(jnp.zeros(1))
        for _ in range(4 + position):
            _, state = tx.update(jnp.zeros(1), state)
        seen = []
        for g in (7.0, 0.0, 0.0, 0.0):
            updates, state = tx.update(jnp.array([g]), state)
            seen.append(float(updates[0]))
        # Weights 4/7, 2/7 and 1/7 over eps; then the impulse is 7 in the root alone.
        np.testing.assert_allclose(seen, [4.0, 2.0, 1.0, 0.0], rtol=1e-6)


def test_memory():
    params = {"w": jnp.zeros((3, 2), jnp.bfloat16), "s": jnp.zeros(())}
    state = oht.scale_by_adashift(n=5).init(params)
    assert state.window["w"].shape == (5, 3, 2)
    assert state.window["s"].shape == (5,)
    assert {x.dtype for x in jax.tree.leaves((state.window, state.nu))} == {
        jnp.dtype("float32")
    }


def test_float64_gradients_of_float32_parameters():
    with jax.enable_x64(True):
        tx = jitted(oht.scale_by_adashift(n=1, eps=0.0))
        state = tx.init(jnp.zeros(1, jnp.float32))
        for g in (4.0, 1.0):
            updates, state = tx.update(jnp.array([g]), state)
    assert updates.dtype == jnp.float64
    assert state.window.dtype == jnp.float32
    np.testing.assert_allclose(updates, 0.25, rtol=1e-6)


def test_bad_and_overflowing_entries_do_what_is_documented():
    tx = jitted(oht.scale_by_adashift(n=2))
    state = tx.init(jnp.zeros(4))
    bad = [jnp.nan, jnp.inf, 1e25, 1.0]
    for grads in ([1.0, 1.0, 1.0, 1.0], bad, *[[1.0, 1.0, 1.0, 1.0]] * 4):
        updates, state = tx.update(jnp.array(grads), state)
    np.testing.assert_allclose(updates, [np.nan, 0.0, 0.0, 1.0], rtol=1e-6)


def test_the_first_gradient_after_zeros_is_divided_by_eps_alone():
    for eps in (1e-10, 1e-2):
        tx = jitted(oht.scale_by_adashift(b1=0.0, eps=eps, n=1))
        state = tx.init(jnp.zeros(1))
        for g in (0.0, 0.0, 3.0):
            updates, state = tx.update(jnp.array([g]), state)
        np.testing.assert_allclose(updates, 3.0 / eps, rtol=1e-6)


def test_the_alias_is_the_composition_bit_for_bit():
    parts = optax.chain(
        oht.scale_by_adashift(0.8, 0.9, 1e-6, n=2), oht.scale_by_learning_rate(0.1)
    )
    alias = oht.adashift(0.1, 0.8, 0.9, 1e-6, n=2)
    assert_same_bits(alias, parts, make_grads(), make_params())
    spelled = oht.adashift(learning_rate=0.1, b1=0.8, b2=0.9, eps=1e-6, n=2)
    grads = make_grads()[0]
    assert_trees_equal(one_step(alias, grads), one_step(spelled, grads))
