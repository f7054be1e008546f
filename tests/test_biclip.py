"""clip_by_interval and biclip."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_same_bits, assert_trees_close, assert_trees_equal
from tests.driving import heavy_gradients, jitted, one_step
from tests.in_time import only
from tests.registry import make_grads, make_params

GRADS = {"a": jnp.array([3.0, -4.0, 0.0]), "b": jnp.array([1e-3])}


def test_sizes_of_entries_and_signs():
    tx = oht.clip_by_interval(0.25, 2.0)
    for grads in heavy_gradients(5):
        got = one_step(tx, grads)
        for name, g in grads.items():
            want = np.sign(g) * np.clip(np.abs(g), 0.25, 2.0)
            np.testing.assert_allclose(got[name], want, rtol=1e-6)


@pytest.mark.parametrize("scope", only({"leaf"}, ["coordinate", "leaf", "global"]))
def test_twice_is_once(scope):
    tx = oht.clip_by_interval(0.5, 1.0, scope=scope)
    once = one_step(tx, GRADS)
    assert_trees_close(one_step(tx, once), once, 1e-6)


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_norms_lie_in_the_interval(scope):
    got = one_step(oht.clip_by_interval(0.5, 1.0, scope=scope), GRADS)
    if scope == "global":
        np.testing.assert_allclose(optax.tree.norm(got), 1.0, rtol=1e-6)
        np.testing.assert_allclose(got["a"], GRADS["a"] / 5, rtol=1e-6)
    else:
        np.testing.assert_allclose(got["a"], [0.6, -0.8, 0], rtol=1e-6)
        np.testing.assert_allclose(got["b"], [0.5], rtol=1e-6)


def test_its_two_limits():
    equal = one_step(oht.clip_by_interval(0.5, 0.5), GRADS)
    assert_trees_equal(equal, jax.tree.map(lambda g: 0.5 * jnp.sign(g), GRADS))
    clip = one_step(oht.clip_by_interval(0.0, 0.5), GRADS)
    assert_trees_close(clip, one_step(oht.clip_by_value(0.5), GRADS), 1e-6)
    norm = one_step(oht.clip_by_interval(0.0, 0.5, scope="global"), GRADS)
    assert_trees_close(norm, one_step(oht.clip_by_norm(0.5), GRADS), 1e-6)


def test_next_to_nothing_is_nothing():
    grads = jnp.array([0.0, 1e-40, -1e-45, 2e-38])
    got = one_step(oht.clip_by_interval(0.5, 1.0), grads)
    np.testing.assert_array_equal(got, [0.0, 0.0, 0.0, 0.5])


@pytest.mark.parametrize("bad", only({np.inf}, [np.inf, np.nan]))
def test_bad_entries(bad):
    grads = jnp.array([bad, 0.3])
    loud = one_step(oht.clip_by_interval(0.5, 1.0), grads)
    np.testing.assert_allclose(loud, [np.nan, 0.5])
    zeroed = oht.clip_by_interval(0.5, 1.0, nonfinite="zero")
    np.testing.assert_allclose(one_step(zeroed, grads), [0.0, 0.5])
    whole = one_step(oht.clip_by_interval(0.5, 1.0, scope="leaf"), grads)
    assert np.all(np.isnan(whole))


def test_bounds_may_be_trees_and_schedules():
    tx = oht.clip_by_interval({"a": jnp.array([0, 0, 0.5]), "b": 0.25}, 1.0)
    got = one_step(tx, GRADS)
    np.testing.assert_array_equal(got["a"], [1, -1, 0])
    np.testing.assert_array_equal(got["b"], [0.25])
    tx = oht.clip_by_interval(
        lambda count: {"a": 2.0 + count, "b": 5.0}, lambda count: 3.0, scope="leaf"
    )
    tx = jitted(tx)
    state = tx.init(GRADS)
    for want in (5.0 * 3 / 5, 3.0):
        updates, state = tx.update(GRADS, state)
        np.testing.assert_allclose(np.linalg.norm(updates["a"]), want, rtol=1e-6)
        np.testing.assert_allclose(updates["b"], [3.0], rtol=1e-6)  # the upper holds


def test_bounds_that_make_no_interval():
    with pytest.raises(
        ValueError, match=r"lower must be at most upper, got 2\.0 and 1\.0"
    ):
        oht.clip_by_interval(2.0, 1.0)
    with pytest.raises(ValueError, match=r"upper must be in \(0.0, inf\), got 0"):
        oht.clip_by_interval(0.0, 0.0)
    with pytest.raises(ValueError, match="lower must be one number with the scope"):
        oht.clip_by_interval({"a": 0.1, "b": 0.2}, 1.0, scope="global")


def test_the_alias_is_the_composition_bit_for_bit():
    parts = optax.chain(
        oht.clip_by_interval(0.1, 0.5, scope="leaf"),
        oht.add_decayed_weights(0.1),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.biclip(0.1, 0.1, 0.5, 0.1, scope="leaf")
    assert_same_bits(alias, parts, make_grads(), make_params())
