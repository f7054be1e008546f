"""Reading a threshold or a momentum out of nested states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_trees_close, assert_trees_equal
from tests.in_time import in_time, only

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([4.0])}


def _state(tx, grads=PARAMS):
    @jax.jit
    def after_one_step(grads, params):
        return tx.update(grads, tx.init(params), params)[1]

    return after_one_step(grads, PARAMS)


def _acclip(**kwargs):
    return oht.acclip(0.1, b1=0.5, b2=0.75, **kwargs)


THRESHOLD = jax.tree.map(lambda g: 0.25 * jnp.abs(g), PARAMS)
MOMENTUM = jax.tree.map(lambda g: 0.5 * g, PARAMS)

WRAPPED = {
    "bare": _acclip(),
    "chain": optax.chain(optax.clip(10.0), _acclip()),
    "named chain": optax.named_chain(("a", optax.clip(10.0)), ("b", _acclip())),
    "masked": optax.masked(_acclip(), {"w": True, "b": True}),
    "partition": optax.partition(
        {"x": _acclip(), "y": _acclip()}, {"w": "x", "b": "y"}
    ),
    "inject_hyperparams": optax.inject_hyperparams(oht.acclip)(0.1, b1=0.5, b2=0.75),
    "MultiSteps": optax.MultiSteps(_acclip(), 1),
    "apply_if_finite": optax.apply_if_finite(_acclip(), 3),
    "average": oht.weighted_iterate_average(_acclip()),
    "deep": optax.MultiSteps(
        optax.chain(
            optax.partition(
                {
                    "x": optax.inject_hyperparams(oht.acclip)(0.1, b1=0.5, b2=0.75),
                    "y": optax.chain(_acclip()),
                },
                {"w": "x", "b": "y"},
            )
        ),
        1,
    ),
}


@pytest.mark.parametrize(
    "tx",
    in_time(
        WRAPPED,
        {"named chain", "masked", "MultiSteps", "average", "deep"}.__contains__,
    ),
)
def test_fields_are_found_inside(tx):
    state = _state(tx)
    # Injected decays are the same numbers in float32.
    assert_trees_close(oht.get_threshold(state), THRESHOLD, 1e-6)
    assert_trees_close(oht.get_momentum(state), MOMENTUM, 1e-6)


def test_a_hyperparameter_of_the_same_name_is_not_the_field():
    tx = optax.inject_hyperparams(oht.gclip)(0.1, threshold=3.0)
    with pytest.raises(ValueError, match="threshold"):
        oht.get_threshold(_state(tx))
    tx = optax.chain(tx, oht.adaptive_coordinate_threshold(b2=0.0))
    updates, _ = optax.chain(oht.gclip(0.1, threshold=3.0)).update(
        PARAMS, optax.chain(oht.gclip(0.1, threshold=3.0)).init(PARAMS)
    )
    want = jax.tree.map(jnp.abs, updates)
    assert_trees_close(oht.get_threshold(_state(tx)), want, 1e-6)


def test_leaves_that_are_masked_out_are_masked_nodes():
    got = oht.get_threshold(_state(optax.masked(_acclip(), {"w": True, "b": False})))
    np.testing.assert_allclose(got["w"], THRESHOLD["w"], rtol=1e-6)
    assert isinstance(got["b"], optax.MaskedNode)


def test_thresholds_of_other_scopes():
    leaf = oht.get_threshold(_state(oht.clip_by_moment(b2=0.75, scope="leaf")))
    np.testing.assert_allclose(leaf["w"], 0.25 * 5**0.5, rtol=1e-6)
    whole = oht.get_threshold(_state(oht.clip_by_moment(b2=0.75, scope="global")))
    np.testing.assert_allclose(whole, 0.25 * 21**0.5, rtol=1e-6)


def test_momentum_of_the_other_aliases_and_of_optax():
    for tx in (
        oht.gclip(0.1, 1.0, b1=0.5),
        oht.cclip(0.1, 1.0, b1=0.5),
        oht.ema(0.5, debias=False),
        optax.ema(0.5),
        oht.scale_by_acclip(b1=0.5),
    ):
        assert_trees_equal(oht.get_momentum(_state(tx)), MOMENTUM)


@pytest.mark.parametrize(
    ("read", "tx"),
    [
        (oht.get_threshold, optax.adam(0.1)),
        (oht.get_threshold, oht.clip_by_norm(1.0)),
        (oht.get_threshold, optax.identity()),
        (oht.get_momentum, oht.clip_by_moment()),
        (oht.get_momentum, optax.sgd(0.1)),
    ],
)
def test_nothing_to_read_is_one_clear_error(read, tx):
    word = read.__name__.removeprefix("get_")
    with pytest.raises(ValueError, match=word) as error:
        read(tx.init(PARAMS))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(_acclip(), _acclip()),
        optax.chain(optax.masked(_acclip(), {"w": True, "b": False}), _acclip()),
        optax.chain(
            oht.clip_by_moment(oht.ema(0.5, debias=False), scope="global"),
            oht.scale_by_acclip(),
        ),
    ],
    ids=["twice", "overlapping", "different structures"],
)
def test_more_than_one_is_ambiguous(tx):
    for read in (oht.get_threshold, oht.get_momentum):
        with pytest.raises(ValueError, match="2"):
            read(tx.init(PARAMS))


def test_states_of_no_leaves():
    with pytest.raises(ValueError, match="threshold"):
        oht.get_threshold(())


def test_reading_under_jit():
    tx = WRAPPED["partition"]

    @jax.jit
    def step(grads, state):
        _, state = tx.update(grads, state, PARAMS)
        return oht.get_threshold(state), oht.get_momentum(state)

    threshold, momentum = step(PARAMS, tx.init(PARAMS))
    assert_trees_close(threshold, THRESHOLD, 1e-6)
    assert_trees_close(momentum, MOMENTUM, 1e-6)


def _ratio(**kwargs):
    return oht.scale_by_clipped_trust_ratio(0.0, 2.0, **kwargs)


# Gradients of half the parameters: the raw ratios of both leaves are 2 c.
HALF = jax.tree.map(lambda p: 0.5 * p, PARAMS)

WITH_RATIOS = {
    "bare": lambda: _ratio(trust_coefficient=4.0),
    "chain": lambda: optax.chain(optax.clip(10.0), _ratio(trust_coefficient=4.0)),
    "masked": lambda: _ratio(trust_coefficient=4.0, mask={"w": True, "b": True}),
    "partition": lambda: optax.partition(
        {
            "x": _ratio(trust_coefficient=4.0),
            "y": optax.chain(_ratio(trust_coefficient=4.0), optax.scale(-1.0)),
        },
        {"w": "x", "b": "y"},
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(oht.larsc)(
        0.1, trust_coefficient=4.0, trust_ratio_bounds=(0.0, 2.0)
    ),
    "MultiSteps": lambda: optax.MultiSteps(_ratio(trust_coefficient=4.0), 1),
    "apply_if_finite": lambda: optax.apply_if_finite(_ratio(trust_coefficient=4.0), 3),
    "snapshots": lambda: oht.snapshot_ensemble(_ratio(trust_coefficient=4.0), 2, t_0=1),
}


@pytest.mark.parametrize(
    "name", only({"partition", "inject_hyperparams", "MultiSteps"}, WITH_RATIOS)
)
def test_trust_ratios_are_found_inside(name):
    tx = WITH_RATIOS[name]()
    state = _state(tx, HALF)
    for raw, want in ((False, 2.0), (True, 8.0)):
        got = oht.get_trust_ratio(state, raw=raw)
        assert_trees_close(got, {"w": np.array(want), "b": np.array(want)}, 1e-6)


def test_trust_ratios_of_the_aliases():
    for tx in (oht.lambc(0.1), oht.larsc(0.1, trust_coefficient=4.0)):
        state = _state(tx, HALF)
        ratio, raw = oht.get_trust_ratio(state), oht.get_trust_ratio(state, raw=True)
        for name in PARAMS:
            assert ratio[name] == np.clip(raw[name], 0.0, 1.0)
    np.testing.assert_allclose(raw["w"], 8.0, rtol=1e-6)


def test_masked_trust_ratios_are_masked_nodes():
    got = oht.get_trust_ratio(_state(_ratio(mask={"w": True, "b": False}), HALF))
    np.testing.assert_allclose(got["w"], 2.0, rtol=1e-6)
    assert isinstance(got["b"], optax.MaskedNode)


def test_one_reader_does_not_take_the_others_field():
    with pytest.raises(ValueError, match="no field 'threshold'"):
        oht.get_threshold(_state(oht.lambc(0.1)))
    with pytest.raises(ValueError, match="no field 'trust_ratio'"):
        oht.get_trust_ratio(_state(oht.acclip(0.1)))
    with pytest.raises(ValueError, match="no field 'raw_trust_ratio'"):
        oht.get_trust_ratio(_state(oht.acclip(0.1)), raw=True)
    with pytest.raises(ValueError, match="2 of field 'trust_ratio'"):
        oht.get_trust_ratio(_state(optax.chain(_ratio(), _ratio())))


def test_the_average_of_sign_agreement_is_a_momentum():
    for tx in (oht.powersign(0.1, b1=0.5), oht.addsign(0.1, b1=0.5)):
        assert_trees_equal(oht.get_momentum(_state(tx)), MOMENTUM)
    tx = oht.normalized_gd(0.1, b1=0.5)
    assert_trees_equal(oht.get_momentum(_state(tx)), MOMENTUM)


FIRST_MOMENTS = {
    "acclip": oht.acclip(0.1, b1=0.5),
    "adam": oht.adamw_decoupled(0.1, b1=0.5),
    "amsgrad": oht.amsgrad(0.1, b1=0.5),
    "lambc": oht.lambc(0.1, b1=0.5),
    "normalized_gd": oht.normalized_gd(0.1, b1=0.5),
    "optax.ema": optax.ema(0.5),
    "optax.adam": optax.adam(0.1, b1=0.5),
    "rounded": oht.gclip(0.1, 1.0, b1=0.5, mu_dtype=jnp.bfloat16),
}


@pytest.mark.parametrize(
    "tx",
    in_time(
        FIRST_MOMENTS,
        {"amsgrad", "normalized_gd", "optax.adam", "rounded"}.__contains__,
    ),
)
def test_a_first_moment_is_found_in_whatever_has_one(tx):
    # Half of these numbers is one of bfloat16.
    assert_trees_close(oht.get_momentum(_state(tx)), MOMENTUM, 0.0)


@pytest.mark.parametrize("tx", [oht.sgdw(1.0), optax.sgd(0.1, momentum=0.9)])
def test_a_decaying_sum_is_found_as_well(tx):
    assert_trees_equal(oht.get_momentum(_state(tx)), PARAMS)


def test_neumanns_momentum_is_its_last_step_and_no_coefficient():
    state = _state(oht.neumann(0.5))  # the first update is a reset: m = -eta g
    want = jax.tree.map(lambda g: -0.5 * g, PARAMS)
    assert_trees_equal(oht.get_momentum(state), want)
    np.testing.assert_allclose(state.momentum_coefficient, 0.5)


def test_where_there_is_no_momentum_or_two_an_error_says_so():
    with pytest.raises(ValueError, match="no momentum in this state"):
        oht.get_momentum(_state(oht.clip_by_norm(1.0)))
    with pytest.raises(ValueError, match="2 of momentum in this state"):
        oht.get_momentum(_state(optax.chain(oht.ema(0.5), oht.scale_by_adam())))


def test_no_state_of_ours_calls_its_first_moment_otherwise():
    for name in (name for name in oht.__all__ if name.endswith("State")):
        fields = getattr(getattr(oht, name), "_fields", ())
        assert not {"ema", "trace", "momentum", "m"} & {*fields}, name
