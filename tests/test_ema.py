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


def test_from_the_first_gradient_on():
    for debias in (False, True):  # which has nothing to do
        tx = oht.ema(0.75, debias, init="first")
        state = tx.init(jnp.zeros(1))
        for grad, want in ((4.0, 4.0), (8.0, 5.0)):
            updates, state = tx.update(jnp.array([grad]), state)
            assert float(updates[0]) == want


def test_elsewhere_the_average_starts_at_the_weights():
    """As public code for signum, SGD and normalised SGD with momentum has it."""
    params, grads = jnp.array([100.0]), jnp.array([1.0])
    buffer = params
    for _ in range(10):
        buffer = 0.9 * buffer + 0.1 * grads
    assert float(buffer[0]) > 30  # of weights; the gradient is 1
    for init in ("zero", "first"):
        tx = oht.ema(0.9, debias=False, init=init)
        state = tx.init(params)
        for _ in range(10):
            updates, state = tx.update(grads, state, params)
            assert 0 < float(updates[0]) <= 1


def test_nesterov_looks_ahead_and_its_weights_sum_to_1():
    plain, ahead = (oht.ema(0.5, debias=False, nesterov=x) for x in (False, True))
    states = [plain.init(jnp.zeros(1)), ahead.init(jnp.zeros(1))]
    for grad in (4.0, -2.0):
        (m, states[0]), (u, states[1]) = (
            tx.update(jnp.array([grad]), s)
            for tx, s in zip((plain, ahead), states, strict=True)
        )
        np.testing.assert_allclose(u, 0.5 * m + 0.5 * grad)
    debiased = oht.ema(0.9, debias=True, nesterov=True)
    state = debiased.init(jnp.zeros(1))
    for _ in range(3):
        updates, state = debiased.update(jnp.ones(1), state)
        np.testing.assert_allclose(updates, 1.0, rtol=1e-6)


def test_a_decay_may_be_a_schedule():
    # The mean of all so far.
    tx = oht.ema(lambda count: 1 - 1 / (count + 1), debias=False)
    state = tx.init(jnp.zeros(1))
    for grad, want in ((1.0, 1.0), (3.0, 2.0), (8.0, 4.0)):
        updates, state = tx.update(jnp.array([grad]), state)
        np.testing.assert_allclose(updates, want, rtol=1e-6)
    with pytest.raises(ValueError, match="debias must be False where decay is a sch"):
        oht.ema(lambda count: 0.9)
