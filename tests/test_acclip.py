"""scale_by_acclip and the alias acclip."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests import reference
from tests.compare import assert_leaf_close, assert_same_bits, assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted, one_step, starting_point
from tests.in_time import only
from tests.registry import make_grads, make_params


def _rate(count):
    return 0.1 * 0.99**count


def _decay(count):
    return 0.05 / (count + 1)


@pytest.mark.parametrize(
    "clip",
    [
        pytest.param(
            {"b2": 0.99, "alpha": 1.0, "eps": 1e-5, "normalize": False},
            id="literal",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"b2": 0.999, "alpha": 1.5, "eps": 1e-8, "normalize": True}, id="normalize"
        ),
    ],
)
def test_100_steps_follow_the_reference(clip):
    """With a mask, and schedules of the learning rate and the weight decay."""
    correct = clip["normalize"]
    grads = heavy_gradients()
    directions = reference.clip_by_moment(
        grads,
        reference.ema(grads, 0.9, debias=correct),
        bias_correction=correct,
        **clip,
    )
    updates, iterates = reference.descend(
        starting_point(),
        directions,
        rate=lambda k: _rate(k - 1),
        weight_decay=lambda k: _decay(k - 1),
        decayed={"w"},
    )
    mask = {"w": True, "b": False, "s": False}
    with jax.enable_x64(True):
        tx = oht.acclip(_rate, b1=0.9, weight_decay=_decay, mask=mask, **clip)
        got_updates, got_iterates, _ = follow(tx, grads)
    for step in range(100):
        for name in mask:
            where = f"{name}, step {step}"
            # 100 steps of a few operations, each within 1e-16.
            assert_leaf_close(
                got_updates[step][name], updates[step][name], 1e-10, where
            )
            assert_leaf_close(
                got_iterates[step][name], iterates[step][name], 1e-10, where
            )


def _mask(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


@pytest.mark.parametrize(
    "keywords",
    [
        {"normalize": True},
        pytest.param({}, marks=pytest.mark.nightly),
        pytest.param(
            {"bias_correction": True, "alpha": 1.5}, marks=pytest.mark.nightly
        ),
    ],
    ids=str,
)
def test_the_alias_is_the_composition_bit_for_bit(keywords):
    correct = any(keywords.get(k) for k in ("normalize", "bias_correction"))
    parts = optax.chain(
        oht.clip_by_moment(oht.ema(0.9, debias=correct), b2=0.99, **keywords),
        oht.add_decayed_weights(0.01, _mask),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.acclip(0.1, weight_decay=0.01, mask=_mask, **keywords)
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_in_float32_the_parts_may_be_those_of_optax():
    parts = optax.chain(
        oht.clip_by_moment(optax.ema(0.9, debias=False)),
        optax.add_decayed_weights(0.01, _mask),
        optax.scale_by_learning_rate(0.1),
    )
    alias = oht.acclip(0.1, weight_decay=0.01, mask=_mask)
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_the_threshold_comes_from_the_gradient_and_the_clip_acts_on_the_momentum():
    tx = jitted(oht.scale_by_acclip(b1=0.5, b2=0.5, eps=0.0))
    grads = jnp.array([8.0])
    updates, state = tx.update(grads, tx.init(grads))
    assert float(updates[0]) == 4.0  # m = tau = 4
    updates, state = tx.update(-grads, state)
    assert float(updates[0]) == -2.0  # m = -2, tau = 6: the sign has turned
    assert float(oht.get_threshold(state)[0]) == 6.0
    for _ in range(3):
        updates, state = tx.update(jnp.zeros(1), state)
    assert float(oht.get_threshold(state)[0]) == 0.75


def test_positions_and_defaults_of_the_arguments():
    grads = {"w": np.array([1.0, -30.0])}
    spelled = oht.acclip(
        learning_rate=0.2,
        b1=0.9,
        b2=0.99,
        alpha=1.0,
        eps=1e-5,
        weight_decay=1e-5,
        mask=None,
        bias_correction=None,
        normalize=False,
        mu_dtype=None,
        threshold_dtype=None,
    )
    by_place = oht.acclip(0.2, 0.9, 0.99, 1.0, 1e-5, 1e-5, mask=None)
    params = {"w": jnp.array([1.0, 2.0])}
    want = one_step(spelled, grads, params)
    assert_trees_equal(one_step(by_place, grads, params), want)
    assert_trees_equal(one_step(oht.acclip(0.2), grads, params), want)
    bare = one_step(oht.scale_by_acclip(0.9, 0.99, 1.0, 1e-5), grads)
    assert_trees_equal(one_step(oht.scale_by_acclip(), grads), bare)


def test_dtypes_of_the_state():
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    for mu_dtype, threshold_dtype in ((None, None), (jnp.bfloat16, jnp.float32)):
        tx = oht.scale_by_acclip(mu_dtype=mu_dtype, threshold_dtype=threshold_dtype)
        state = tx.init(params)
        assert oht.get_momentum(state)["w"].dtype == (mu_dtype or jnp.float32)
        assert oht.get_threshold(state)["w"].dtype == (threshold_dtype or jnp.float32)


@pytest.mark.parametrize("noise", only({0.5}, [0.0, 0.5]))
def test_guarded_a_spike_costs_a_few_steps_and_not_hundreds(noise):
    """What docs/methods/acclip.md tells: updates below half the usual, steps behind."""
    grads = 1 + noise * np.random.default_rng(0).normal(size=(1000, 50))
    grads[300] *= 1e4
    grads = jnp.asarray(grads, jnp.float32)

    def sizes(tx):
        def step(state, g):
            updates, state = tx.update(g, state)
            return state, jnp.mean(jnp.abs(updates))

        found = jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])(grads)
        return np.asarray(found[300:] / jnp.median(found[200:300]))

    kwargs = {"normalize": True, "eps": 1e-8}
    published = sizes(oht.scale_by_acclip(**kwargs))
    assert np.sum(published < 0.5) > 300
    for guard in (
        {"winsorise": 8.0},
        {"max_growth": 8.0, "include_current": False},
    ):
        found = sizes(oht.scale_by_acclip(**kwargs, **guard))
        assert np.all(found > 0.5)
        assert np.abs(np.cumsum(found - 1)).max() < 6
