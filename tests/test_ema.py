"""The dtype-stable moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests import reference
from tests.compare import assert_leaf_close, assert_same_bits
from tests.driving import follow, heavy_gradients
from tests.registry import make_grads, make_params


@pytest.mark.parametrize("debias", [False, True])
def test_100_steps_follow_the_reference(debias):
    grads = heavy_gradients()
    with jax.enable_x64(True):
        got, _, _ = follow(oht.ema(0.9, debias), grads)
    for step, want in enumerate(reference.ema(grads, 0.9, debias)):
        for name in want:
            # 100 steps of a few operations, each within 1e-16; sums may cancel.
            assert_leaf_close(got[step][name], want[name], 1e-12, f"{name}, {step}")


@pytest.mark.parametrize("debias", [False, True])
def test_equal_to_optax_in_float32(debias):
    ours, theirs = oht.ema(0.9, debias), optax.ema(0.9, debias)
    assert_same_bits(ours, theirs, make_grads(), make_params())


def test_the_bias_is_not_corrected_by_default():
    tx = oht.ema(0.75, debias=False)
    updates, _ = tx.update(jnp.array([4.0]), tx.init(jnp.zeros(1)))
    assert float(updates[0]) == 1.0


def test_narrow_gradients_are_averaged_in_float32():
    """In float16 the product 1e-3 * 1e-4 would lose most of its digits."""
    tx = oht.ema(0.999, debias=False)
    grads = jnp.full(3, 1e-4, jnp.float16)
    updates, state = tx.update(grads, tx.init(grads))
    assert updates.dtype == jnp.float16
    assert state.ema.dtype == jnp.float32
    want = np.float32(np.float16(1e-4)) * (1 - np.float32(0.999))
    # 1 - 0.999 is exact to 3e-8 / 1e-3.
    np.testing.assert_allclose(state.ema, want, rtol=1e-4)


def test_accumulator_dtypes():
    grads = jnp.ones(3, jnp.bfloat16)
    for dtype in (jnp.bfloat16, jnp.float32):
        tx = oht.ema(0.9, debias=False, accumulator_dtype=dtype)
        state = tx.init(grads)
        _, new_state = tx.update(grads.astype(jnp.float32), state)
        if dtype == jnp.bfloat16:  # rounded stochastically, by a wrapper
            state, new_state = state.inner_state, new_state.inner_state
        assert state.ema.dtype == new_state.ema.dtype == dtype
    with jax.enable_x64(True):
        assert (
            oht.ema(0.9, debias=False).init(jnp.ones(3, jnp.float64)).ema.dtype
            == jnp.float64
        )
