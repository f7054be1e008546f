"""clip_by_value and the alias cclip."""

import functools

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
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
from tests.test_gclip import trees

TREE = {"w": np.array([[0.1, 0.2], [0.3, 0.4], [5.0, 6.0]]), "b": 0.25, "s": 0.5}


def _tau(name, i):
    return TREE["w"][i] if name == "w" else TREE[name]


@pytest.mark.parametrize(
    "kind", only({"tree schedule"}, ["number", "tree", "schedule", "tree schedule"])
)
def test_100_steps_follow_the_reference(kind):
    threshold, tau = {
        "number": (0.3, lambda k, name, i: 0.3),
        "tree": (TREE, lambda k, name, i: _tau(name, i)),
        "schedule": (
            lambda count: 0.1 * (count + 1) ** 0.5,
            lambda k, name, i: 0.1 * k**0.5,
        ),
        "tree schedule": (
            oht.clipping_threshold(TREE, 1.5),
            lambda k, name, i: _tau(name, i) * k ** (1 / 1.5),
        ),
    }[kind]
    grads = heavy_gradients()
    moments = reference.ema(grads, 0.9, debias=True)
    updates, iterates = reference.descend(
        starting_point(),
        reference.clip_by_value(moments, tau),
        rate=lambda k: 0.1,
        weight_decay=lambda k: 0.05,
    )
    with jax.enable_x64(True):
        tx = oht.cclip(0.1, threshold, weight_decay=0.05, bias_correction=True)
        got_updates, got_iterates, _ = follow(tx, grads)
    for step in range(100):
        for name in TREE:
            where = f"{name}, step {step}"
            # 100 steps of a few operations, each within 1e-16.
            assert_leaf_close(
                got_updates[step][name], updates[step][name], 1e-10, where
            )
            assert_leaf_close(
                got_iterates[step][name], iterates[step][name], 1e-10, where
            )


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


@pytest.mark.parametrize(
    "keywords",
    [{"bias_correction": True}, pytest.param({}, marks=pytest.mark.nightly)],
    ids=str,
)
def test_the_alias_is_the_composition_bit_for_bit(keywords):
    threshold = {"kernel": 0.5, "bias": 0.2}
    parts = optax.chain(
        oht.ema(0.9, debias=bool(keywords)),
        oht.clip_by_value(threshold),
        oht.add_decayed_weights(0.01, _matrices),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.cclip(0.1, threshold, weight_decay=0.01, mask=_matrices, **keywords)
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_in_float32_the_parts_may_be_those_of_optax():
    parts = optax.chain(
        optax.ema(0.9, debias=False),
        optax.clip(0.5),
        optax.add_decayed_weights(0.01, _matrices),
        optax.scale_by_learning_rate(0.1),
    )
    alias = oht.cclip(0.1, 0.5, weight_decay=0.01, mask=_matrices)
    got, want = (follow(tx, heavy_gradients(20))[0] for tx in (alias, parts))
    for u, v in zip(got, want, strict=True):
        assert_trees_equal(u, v)


def test_positions_of_the_arguments():
    params = {"w": jnp.array([[3.0], [-4.0]]), "b": jnp.array([2.0])}
    spelled = oht.cclip(
        learning_rate=0.2, threshold=1.0, b1=0.5, weight_decay=0.1, mask=_matrices
    )
    want = one_step(spelled, params, params)
    got = one_step(oht.cclip(0.2, 1.0, 0.5, 0.1, mask=_matrices), params, params)
    assert_trees_equal(got, want)
    assert_trees_equal(
        one_step(oht.cclip(0.2, 1.0), params),
        one_step(oht.cclip(0.2, 1.0, 0.9, 0.0, mask=None), params),
    )


@jax.jit
def _clip(threshold, grads):
    return one_step(oht.clip_by_value(threshold), grads)


@hypothesis.settings(max_examples=100)  # compiled once
@hypothesis.given(grads=trees, exponent=st.floats(-37, 37))
def test_properties_of_a_clip(grads, exponent):
    threshold = np.float32(10**exponent)
    u = _clip(threshold, grads)
    for clipped, g in zip(jax.tree.leaves(u), jax.tree.leaves(grads), strict=True):
        size = np.minimum(np.abs(g), threshold)
        np.testing.assert_array_equal(clipped, np.sign(g) * size)
    assert_trees_equal(_clip(threshold, u), u)  # idempotent


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_a_bad_threshold_of_a_schedule_is_loud(bad):
    tx = oht.clip_by_value(lambda count: {"a": np.float32([bad, 1.0]), "b": bad})
    got = one_step(tx, {"a": np.float32([0.5, 0.5]), "b": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(got["a"], [np.nan, 0.5])
    assert np.all(np.isnan(got["b"]))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_bad_entry_is_loud_and_alone(bad):
    got = _clip(np.float32(1.0), np.float32([0.5, bad, -3.0]))
    np.testing.assert_array_equal(got, [0.5, np.nan, -1.0])


def test_a_bad_gradient_stays_in_its_coordinate():
    tx = jitted(oht.cclip(1.0, 1.0, b1=0.5))
    _, state = tx.update(jnp.array([1.0, np.nan]), tx.init(jnp.zeros(2)))
    updates, _ = tx.update(jnp.array([1.0, 1.0]), state)
    np.testing.assert_array_equal(updates, [-0.75, np.nan])


def test_narrow_gradients_and_extreme_thresholds():
    grads = np.float16([300.0, -0.5, 6e-8])
    got = one_step(oht.clip_by_value(1e30), grads)
    np.testing.assert_array_equal(got, grads)
    got = one_step(oht.clip_by_value(0.25), grads)
    np.testing.assert_array_equal(got, np.float16([0.25, -0.25, 6e-8]))
    got = one_step(oht.clip_by_value(1e-30), np.float32([3e38, -2e-38, 1e-30]))
    np.testing.assert_array_equal(got, np.float32([1e-30, -2e-38, 1e-30]))


@pytest.mark.parametrize(
    "threshold",
    [{"w": np.ones(2), "b": 1.0}, {"w": np.ones((2, 1)), "b": 1.0}],
    ids=["missing dimension", "broadcast"],
)
def test_thresholds_must_fit_their_leaf(threshold):
    grads = {"w": np.ones((2, 3)), "b": np.ones(3)}
    with pytest.raises(ValueError, match=r"threshold of shape \(2.*shape \(2, 3\)"):
        one_step(oht.clip_by_value(threshold), grads)


def test_thresholds_must_have_the_tree_structure():
    with pytest.raises(ValueError, match="key"):
        one_step(oht.clip_by_value({"w": 1.0}), {"w": np.ones(2), "b": np.ones(2)})


class Gain(eqx.Module):
    """A tree that can be called, as most of Equinox's modules."""

    weight: jax.Array

    def __call__(self, x):
        return self.weight * x


def test_a_tree_of_thresholds_may_be_callable():
    tx = oht.clip_by_value(Gain(jnp.array([4.5, 0.05])))
    grads = Gain(jnp.array([9.0, 0.1]))
    updates = one_step(tx, grads)
    np.testing.assert_array_equal(updates.weight, np.float32([4.5, 0.05]))


def test_a_module_of_thresholds_whose_call_would_fail():
    grads = eqx.filter(eqx.nn.Linear(2, 2, key=jax.random.key(0)), eqx.is_array)
    limit = 0.1 * jnp.max(jnp.abs(grads.weight))
    tx = oht.cclip(1.0, jax.tree.map(lambda g: jnp.full_like(g, limit), grads), b1=0.0)
    updates = one_step(tx, grads)
    np.testing.assert_array_equal(
        updates.weight, -jnp.clip(grads.weight, -limit, limit)
    )


def _of_count(limit, count):
    return limit / (1 + count)


@pytest.mark.parametrize(
    "bind", [jax.tree_util.Partial, functools.partial], ids=["JAX's", "Python's"]
)
@pytest.mark.parametrize("limit", [0.5, jnp.float32(0.5)])
def test_a_schedule_that_binds_arrays_is_a_schedule(bind, limit):
    tx, grads = oht.clip_by_value(bind(_of_count, limit)), {"w": jnp.full(2, 9.0)}
    tx = jitted(tx)
    state = tx.init(grads)
    for want in (0.5, 0.25):
        updates, state = tx.update(grads, state)
        np.testing.assert_array_equal(updates["w"], np.float32([want, want]))


def test_a_schedule_that_is_a_module_is_named_where_trees_may_come():
    grads = {"w": jnp.ones(2)}
    tx = oht.clip_by_value(Gain(jnp.float32(1.0)))
    message = r"threshold, a Gain, is a tree that can be called;.*`lambda count: sch"
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(grads))
    # Where no tree may come it is the schedule that it is.
    one_step(oht.clip_by_norm(Gain(jnp.float32(1.0))), grads)


def test_a_schedule_inside_a_tree_of_thresholds_is_refused():
    with pytest.raises(TypeError, match="one schedule that returns a tree"):
        oht.clip_by_value({"w": 1.0, "b": lambda count: 1.0})
