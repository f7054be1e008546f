"""AMSGrad: that of Optax, and that of the paper without bias correction."""

import re

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


@pytest.mark.parametrize("bias_correction", only({False}, [False, True]))
def test_100_steps_follow_the_reference(bias_correction):
    grads = heavy_gradients()
    want = reference.adam(grads, 0.9, 0.99, 1e-8, bias_correction, keep_largest=True)
    with jax.enable_x64(True):
        tx = oht.scale_by_amsgrad(0.9, 0.99, 1e-8, bias_correction=bias_correction)
        got, _, _ = follow(tx, grads)
    for step, (u, v) in enumerate(zip(got, want, strict=True)):
        for name in v:
            # 100 steps of a few operations, each within 1e-16; sums may cancel.
            assert_leaf_close(u[name], v[name], 1e-10, f"{name}, step {step}")


def test_no_slope_rests_on_a_maximum_being_one_of_its_arguments_in_every_bit():
    """XLA may compute an argument anew, to other last bits; then it equals neither."""
    tx, w = oht.scale_by_amsgrad(), jnp.ones(3)

    def summed(grads, state):
        return jnp.sum(tx.update(grads, state)[0])

    program = str(jax.make_jaxpr(jax.grad(summed))(w, tx.init(w)))
    assert "select_n" in program
    assert re.findall(r"= eq \w+ [a-z]\w*", program) == []


def test_it_is_that_of_optax():
    with jax.enable_x64(True):
        grads = heavy_gradients(20)
        got = follow(oht.amsgrad(0.1, b2=0.9), grads)[:2]
        want = follow(optax.amsgrad(0.1, b2=0.9), grads)[:2]
    assert_trees_close(got, want, 1e-10)


def test_the_largest_second_moment_never_shrinks():
    tx = jitted(oht.scale_by_amsgrad(b2=0.5, bias_correction=False))
    state = tx.init(jnp.zeros(3))
    rng = np.random.default_rng(0)
    for _ in range(50):
        before = state.nu_max
        _, state = tx.update(jnp.asarray(rng.standard_t(1.5, 3), jnp.float32), state)
        assert np.all(state.nu_max >= before)
        assert np.all(state.nu_max >= state.nu)
    assert np.all(state.nu_max > 2 * state.nu)


def test_one_huge_gradient_damps_its_coordinate_for_good():
    updates = {}
    for name, tx in (
        ("amsgrad", oht.scale_by_amsgrad(bias_correction=False)),
        ("adam", oht.scale_by_adam()),
    ):
        grads = np.ones((3001, 2), np.float32)
        grads[0, 0] = 1e4
        *_, updates[name] = follow(tx, list(grads), np.zeros(2, np.float32))[0]
    # The largest average is 0.001 * 1e8, and stays; in Adam's it has decayed to 5%.
    np.testing.assert_allclose(updates["amsgrad"][0], 1e-5**0.5, rtol=1e-3)
    assert updates["adam"][0] > 4 * updates["amsgrad"][0]


def test_bad_entries_stay_in_their_coordinate():
    tx = jitted(oht.scale_by_amsgrad())
    _, state = tx.update(jnp.array([jnp.nan, jnp.inf, 2.0]), tx.init(jnp.zeros(3)))
    updates, _ = tx.update(jnp.ones(3), state)
    assert np.all(np.isnan(updates[:2]))
    assert np.isfinite(updates[2])


@pytest.mark.parametrize("bias_correction", only({True}, [False, True]))
def test_the_alias_is_the_composition_bit_for_bit(bias_correction):
    parts = optax.chain(
        oht.scale_by_amsgrad(0.8, 0.9, 1e-6, bias_correction=bias_correction),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.amsgrad(0.1, 0.8, 0.9, 1e-6, bias_correction=bias_correction)
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_as_published_the_bias_is_not_corrected():
    tx = oht.amsgrad(1.0, 0.75, 0.75, 0.0, bias_correction=False)
    # 0.25 g over the root of 0.25 g^2.
    assert float(one_step(tx, jnp.array([4.0]))[0]) == -0.5
    grads = make_grads()[0]
    assert_trees_equal(
        one_step(oht.amsgrad(0.2), grads),
        one_step(oht.amsgrad(0.2, 0.9, 0.999, 1e-8, bias_correction=True), grads),
    )
