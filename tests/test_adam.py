"""scale_by_adam and the decoupled AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests import reference
from tests.compare import (
    assert_leaf_close,
    assert_same_bits,
    assert_trees_close,
    assert_trees_equal,
)
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.in_time import only
from tests.registry import make_grads, make_params


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


@pytest.mark.parametrize("bias_correction", only({True}, [False, True]))
def test_100_steps_follow_the_reference(bias_correction):
    grads = heavy_gradients()
    want = reference.adam(grads, 0.9, 0.99, 1e-8, bias_correction)
    with jax.enable_x64(True):
        tx = oht.scale_by_adam(0.9, 0.99, 1e-8, bias_correction=bias_correction)
        got, _, _ = follow(tx, grads)
    for step, (u, v) in enumerate(zip(got, want, strict=True)):
        for name in v:
            # 100 steps of a few operations, each within 1e-16; sums may cancel.
            assert_leaf_close(u[name], v[name], 1e-10, f"{name}, step {step}")


def test_equal_to_optax_in_float64():
    """In float32 it is more exact, as the next test shows."""
    with jax.enable_x64(True):
        grads = heavy_gradients(20)
        got, _, _ = follow(oht.scale_by_adam(), grads)
        want, _, _ = follow(optax.scale_by_adam(), grads)
    assert_trees_close(got, want, 1e-10)


def test_the_first_corrections_are_exact():
    """1 - 0.999 in float32 has lost 5 of 7 digits, and its root one less."""
    grads = jnp.ones(1)
    theirs = one_step(optax.scale_by_adam(eps=0.0), grads)
    assert abs(float(theirs[0]) - 1) > 5e-6
    tx = jitted(oht.scale_by_adam(eps=0.0))
    state = tx.init(grads)
    for _ in range(10):
        updates, state = tx.update(grads, state)
        np.testing.assert_allclose(updates, 1.0, rtol=1e-6)


def test_the_second_moment_does_not_stall_beside_bfloat16_parameters():
    """In bfloat16 it stops where its increments fall below 2^-9: at half its limit."""
    grads = jnp.ones(2, jnp.bfloat16)

    def after_10_000_steps(tx):
        def step(state, _):
            return tx.update(grads, state)[1], None

        run = jax.jit(lambda s: jax.lax.scan(step, s, length=10_000)[0])
        return run(tx.init(grads)).nu

    assert np.all(after_10_000_steps(optax.scale_by_adam()) == 0.5)
    # 10,000 roundings of which each forgets all but the last 1,000: 1e-4.
    want = 1 - 0.999**10_000
    np.testing.assert_allclose(after_10_000_steps(oht.scale_by_adam()), want, rtol=1e-4)


def test_dtypes_of_the_averages():
    grads = jnp.ones(2, jnp.bfloat16)
    tx = oht.scale_by_adam(mu_dtype=jnp.bfloat16, nu_dtype=jnp.float32)
    fresh = jax.eval_shape(tx.init, grads)
    for state in (fresh, jax.eval_shape(tx.update, grads, fresh)[1]):
        adam = state.inner_state
        assert (adam.mu.dtype, adam.nu.dtype) == (jnp.bfloat16, jnp.float32)
    state = oht.scale_by_adam().init(grads)
    assert state.mu.dtype == state.nu.dtype == jnp.float32


def test_extreme_and_bad_gradients_do_what_is_documented():
    tx = jitted(oht.scale_by_adam())
    grads = jnp.array([0.0, 1e-25, 1e25, jnp.inf, jnp.nan, 1.0])
    updates, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates[:3], [0.0, 1e-17, 0.0], rtol=1e-5)
    assert np.all(np.isnan(updates[3:5]))
    np.testing.assert_allclose(updates[5], 1.0, rtol=1e-6)
    updates, _ = tx.update(jnp.ones(6), state)
    assert np.all(np.isnan(updates[3:5]))
    assert np.all(np.isfinite(updates[jnp.array([0, 1, 2, 5])]))


@pytest.mark.parametrize("bias_correction", only({False}, [False, True]))
def test_the_alias_is_the_composition_bit_for_bit(bias_correction):
    parts = optax.chain(
        oht.scale_by_adam(0.8, 0.9, 1e-6, bias_correction=bias_correction),
        oht.scale_by_learning_rate(0.05, flip_sign=False),
        oht.add_decayed_weights(0.5 * 0.01, _matrices),
        optax.scale(-1.0),
    )
    alias = oht.adamw_decoupled(
        0.1,
        0.8,
        0.9,
        1e-6,
        0.01,
        multiplier=0.5,
        bias_correction=bias_correction,
        mask=_matrices,
    )
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_equal_to_adamw_with_the_weight_decay_divided_by_the_rate():
    with jax.enable_x64(True):
        grads = heavy_gradients(20)
        ours = follow(oht.adamw_decoupled(0.1, weight_decay=0.02), grads)[:2]
        theirs = follow(optax.adamw(0.1, weight_decay=0.2), grads)[:2]
    assert_trees_close(ours, theirs, 1e-10)


def test_the_multiplier_scales_gradient_and_decay_and_the_rate_only_the_gradient():
    params, grads = jnp.array([8.0]), jnp.array([1.0])

    def first(rate, decay, multiplier):
        tx = oht.adamw_decoupled(
            rate, 0.0, 0.0, 0.0, weight_decay=decay, multiplier=multiplier
        )
        return float(one_step(tx, grads, params)[0])

    assert first(0.5, 0.25, 1.0) == -0.5 - 2.0
    assert first(0.25, 0.25, 1.0) == -0.25 - 2.0
    assert first(0.5, 0.25, 0.5) == (-0.5 - 2.0) / 2


@pytest.mark.parametrize("where", ["learning_rate", "weight_decay", "multiplier"])
def test_schedules_start_at_count_zero(where):
    values = {"learning_rate": 0.5, "weight_decay": 0.25, "multiplier": 1.0}
    start = values[where]
    kwargs = values | {where: lambda count: start * 0.5**count}
    tx = jitted(oht.adamw_decoupled(b1=0.0, b2=0.0, eps=0.0, **kwargs))
    params, grads = jnp.array([8.0]), jnp.array([1.0])
    state = tx.init(params)
    for count in range(3):
        updates, state = tx.update(grads, state, params)
        now = values | {where: start * 0.5**count}
        want = now["learning_rate"] + 8 * now["weight_decay"]
        assert float(updates[0]) == -now["multiplier"] * want


def test_positions_of_the_arguments():
    params = make_params()
    grads = make_grads()[0]
    spelled = oht.adamw_decoupled(
        learning_rate=0.2,
        b1=0.5,
        b2=0.6,
        eps=1e-3,
        weight_decay=0.1,
        multiplier=0.5,
        bias_correction=False,
    )
    got = oht.adamw_decoupled(
        0.2, 0.5, 0.6, 1e-3, 0.1, multiplier=0.5, bias_correction=False
    )
    assert_trees_equal(one_step(got, grads, params), one_step(spelled, grads, params))
    assert_trees_equal(
        one_step(oht.adamw_decoupled(0.2), grads, params),
        one_step(
            oht.adamw_decoupled(
                0.2, 0.9, 0.999, 1e-8, 0.0, multiplier=1.0, bias_correction=True
            ),
            grads,
        ),
    )
