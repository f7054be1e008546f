"""Decoupled weight decay and its masks. The frameworks' trees are in test_interop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_same_bits
from tests.driving import one_step
from tests.registry import make_grads, make_params


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


@pytest.mark.parametrize(
    "args",
    [(0.1,), (lambda count: 0.1 / (count + 1),), (0.1, _matrices)],
    ids=["number", "schedule", "mask"],
)
def test_equal_to_optax_in_float32(args):
    ours, theirs = oht.add_decayed_weights(*args), optax.add_decayed_weights(*args)
    assert_same_bits(ours, theirs, make_grads(), make_params())


def test_decay_is_that_of_the_parameters_and_schedules_start_at_zero():
    tx = oht.add_decayed_weights(lambda count: 0.5**count)
    params, grads = jnp.array([8.0]), jnp.array([1.0])
    state = tx.init(params)
    for want in (9.0, 5.0, 3.0):
        updates, state = tx.update(grads, state, params)
        assert float(updates[0]) == want


def test_masks_may_be_trees_prefixes_or_functions():
    params = {"a": {"w": jnp.ones(2), "b": jnp.ones(2)}, "c": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    full = {"a": {"w": True, "b": True}, "c": False}
    for mask in (full, {"a": True, "c": False}, lambda params: full):
        got = one_step(oht.add_decayed_weights(0.5, mask), zeros, params)
        np.testing.assert_array_equal(got["a"]["w"], 0.5)
        np.testing.assert_array_equal(got["a"]["b"], 0.5)
        np.testing.assert_array_equal(got["c"], 0.0)


def test_updates_keep_the_dtype_of_the_gradients():
    grads, params = jnp.full(2, 1.0, jnp.float16), jnp.full(2, 3.0)
    got = one_step(oht.add_decayed_weights(1e-4), grads, params)
    assert got.dtype == jnp.float16
    got = one_step(oht.add_decayed_weights(1e-4), params, grads)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, np.float32(3.0) + np.float32(1e-4))


def test_a_python_zero_needs_no_parameters_and_a_zero_array_does():
    grads = jnp.ones(2)
    for zero in (0, 0.0):
        tx = oht.add_decayed_weights(zero)
        updates, _ = tx.update(grads, tx.init(grads))
        assert updates is grads
    tx = oht.add_decayed_weights(jnp.float32(0.0))
    with pytest.raises(ValueError, match="needs the current parameters"):
        tx.update(grads, tx.init(grads))


def test_a_mask_inside_an_alias_is_found_at_init():
    tx = oht.acclip(0.1, weight_decay=0.5, mask=oht.decay_mask)
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = one_step(tx, zeros, params)
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], 0.0)
    with pytest.raises(ValueError, match="decay_mask covers 0 of 1 leaves"):
        tx.init({"b": jnp.ones(2)})


def test_a_mask_that_is_a_module_is_not_called():
    params = eqx.filter(eqx.nn.Linear(2, 2, key=jax.random.key(0)), eqx.is_array)
    mask = eqx.tree_at(lambda m: (m.weight, m.bias), params, (True, False))
    tx = oht.add_decayed_weights(0.5, mask)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates.weight, 0.5 * params.weight)
    np.testing.assert_array_equal(updates.bias, 0)
    assert oht.mask_coverage(mask, params).parameters == 4


@pytest.mark.parametrize("mask", [True, np.True_, np.array(True)])
def test_a_mask_that_is_one_bool_is_refused(mask):
    """As `optax.inject_hyperparams` makes one of a function of the parameters."""
    with pytest.raises(TypeError, match=r'static_args=\("mask",\)'):
        oht.add_decayed_weights(0.1, mask)
    with pytest.raises(TypeError, match=r'static_args=\("trust_ratio_mask",\)'):
        oht.lambc(0.1, trust_ratio_mask=mask)
