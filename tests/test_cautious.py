"""cautious, grams, and weight decay that does not work against the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.in_time import only

U, G = jnp.array([1.0, -2.0, 3.0, 0.0]), jnp.array([1.0, 1.0, 0.5, 1.0])


def returns(updates):
    """A transform with one answer."""
    return optax.stateless(lambda grads, params: updates)


def test_worked_values():
    def apply(make, **kwargs):
        return one_step(make(returns(U), **kwargs), G)

    np.testing.assert_allclose(apply(oht.cautious), [2, 0, 6, 0])
    np.testing.assert_allclose(
        apply(oht.cautious, normalization="paper"), [4 / 3, 0, 4, 0], rtol=1e-6
    )
    np.testing.assert_array_equal(apply(oht.grams), [1, 2, 3, 0])


def test_worked_values_of_the_decay():
    w = jnp.array([1.0, 1.0, -1.0, 2.0])
    tx = oht.add_decayed_weights(0.5, cautious=True)
    np.testing.assert_array_equal(one_step(tx, U, w) - U, [0.5, 0, 0, 1.0])
    # A weight of 0 decays as well, which shows in a NaN alone.
    lost = one_step(tx, jnp.array([1.0]), jnp.array([jnp.nan]))
    assert np.isnan(lost)


@pytest.mark.parametrize("make", only({oht.cautious}, [oht.cautious, oht.grams]))
def test_no_entry_goes_against_its_gradient(make):
    grads = heavy_gradients(30)
    updates, _, _ = follow(make(oht.ema(0.95)), grads)
    for u, g in zip(updates, grads, strict=True):
        for name in g:
            assert np.all(u[name] * g[name] >= 0)


def test_agreement_is_the_identity():
    tx, grads = oht.cautious(optax.identity()), {"w": G, "b": U[:3]}
    assert_trees_equal(one_step(tx, grads), grads)


def test_a_few_entries_that_agree_do_not_explode():
    """Others scale them up to the number of entries: by 1e6 here."""
    size = 1_000_000
    updates = np.ones(size, np.float32)
    grads = -updates
    grads[0] = 1.0
    mean = np.mean(updates * grads > 0)
    assert 1 / (mean + 1e-8) > 9e5  # as levanter has it
    got = one_step(oht.cautious(returns(updates)), grads)
    got = np.asarray(got)
    np.testing.assert_allclose(got[0], 1000, rtol=1e-6)
    np.testing.assert_array_equal(got[1:], 0)


def test_signs_do_not_underflow():
    tiny = jnp.array([1e-6, -1e-6], jnp.float16)
    assert np.all(np.asarray(tiny * tiny) == 0)
    got = one_step(oht.cautious(optax.identity()), tiny)
    np.testing.assert_array_equal(got, tiny)


def test_around_an_optimizer_that_goes_downhill():
    """Without ``descent`` the mask keeps exactly the wrong entries."""
    adam = optax.adam(1e-3)
    first = one_step(adam, G)
    np.testing.assert_array_equal(one_step(oht.cautious(adam), G), 0)
    np.testing.assert_allclose(one_step(oht.cautious(adam, descent=True), G), first)
    tx = oht.cautious(adam, descent=True)
    tx = jitted(tx)
    params, state = jnp.array([3.0, -2.0]), tx.init(jnp.zeros(2))
    for _ in range(30):
        updates, state = tx.update(params, state)
        assert np.all(updates * params <= 0)
        params += updates
    assert np.all(np.abs(params) < [3.0, 2.0])


def test_one_nan_stays_one():
    u = jnp.array([jnp.nan, 1.0, jnp.inf, -jnp.inf])
    g = jnp.array([1.0, jnp.nan, -1.0, 1.0])
    got = one_step(oht.cautious(returns(u)), g)
    np.testing.assert_array_equal(got, [np.nan, np.nan, 0, 0])
    got = one_step(oht.grams(returns(u)), g)
    np.testing.assert_array_equal(got, [np.nan, np.nan, -np.inf, np.inf])


def test_the_mean_is_of_each_leaf_or_of_all():
    updates = {"a": jnp.ones(2), "b": jnp.ones(2)}
    grads = {"a": jnp.array([1.0, -1.0]), "b": jnp.array([1.0, 1.0])}
    inner = returns(updates)
    leaf, whole = (
        one_step(oht.cautious(inner), grads),
        one_step(oht.cautious(inner, scope="global"), grads),
    )
    assert [float(leaf["a"][0]), float(leaf["b"][0])] == [2, 1]
    np.testing.assert_allclose([whole["a"][0], whole["b"][0]], 4 / 3, rtol=1e-6)


def test_extra_arguments_reach_the_inner_transform():
    def update(updates, state, params=None, *, value, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda u: value * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda _: (), update)
    for make in (oht.cautious, oht.grams):
        got, _ = make(inner).update(G, (), value=3.0)
        np.testing.assert_array_equal(got, 3 * G)


@pytest.mark.parametrize("make", [oht.cautious, oht.grams, oht.reset_moments])
def test_inner_is_a_transform(make):
    with pytest.raises(TypeError, match="inner must be a gradient transformation"):
        make(optax.adam)
