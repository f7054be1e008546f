"""The dtype-stable heavy ball."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests import reference
from tests.compare import assert_leaf_close, assert_same_bits
from tests.driving import follow, heavy_gradients, jitted
from tests.registry import make_grads, make_params


@pytest.mark.parametrize("nesterov", [False, True])
def test_100_steps_follow_the_reference(nesterov):
    grads = heavy_gradients()
    with jax.enable_x64(True):
        got, _, _ = follow(oht.trace(0.9, nesterov), grads)
    for step, want in enumerate(reference.trace(grads, 0.9, nesterov)):
        for name in want:
            # 100 steps of a few operations, each within 1e-16; sums may cancel.
            assert_leaf_close(got[step][name], want[name], 1e-12, f"{name}, {step}")


@pytest.mark.parametrize("nesterov", [False, True])
def test_equal_to_optax_in_float32(nesterov):
    ours, theirs = oht.trace(0.9, nesterov), optax.trace(0.9, nesterov)
    assert_same_bits(ours, theirs, make_grads(), make_params())


def test_narrow_gradients_are_summed_in_float32():
    """In bfloat16 the sum would stop at 256: there 256 + 1 is 256."""
    tx = jitted(oht.trace(0.999))
    grads = jnp.ones(1, jnp.bfloat16)
    state = tx.init(grads)
    for _ in range(400):
        updates, state = tx.update(grads, state)
    assert updates.dtype == jnp.bfloat16
    want = (1 - 0.999**400) / 0.001
    np.testing.assert_allclose(state.trace, want, rtol=1e-5)  # 400 roundings
    np.testing.assert_allclose(np.float32(updates), want, rtol=2**-8)


def test_a_bad_entry_stays_in_its_coordinate():
    tx = jitted(oht.trace(0.5))
    _, state = tx.update(jnp.array([jnp.nan, jnp.inf, 2.0]), tx.init(jnp.zeros(3)))
    updates, _ = tx.update(jnp.ones(3), state)
    np.testing.assert_array_equal(updates, [np.nan, np.inf, 2.0])
