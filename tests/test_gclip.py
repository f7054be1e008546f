"""clip_by_norm and the alias gclip."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests import reference
from tests.compare import (
    as_float64,
    assert_leaf_close,
    assert_same_bits,
    assert_trees_close,
    assert_trees_equal,
)
from tests.driving import follow, heavy_gradients, jitted, one_step, starting_point
from tests.in_time import only
from tests.registry import make_grads, make_params


def _rate(count):
    return 0.1 * 0.99**count


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


@pytest.mark.parametrize("bias_correction", only({True}, [False, True]))
def test_100_steps_follow_the_reference(bias_correction):
    grads = heavy_gradients()
    directions = reference.clip_by_norm(
        reference.ema(grads, 0.9, bias_correction),
        threshold=lambda k: 0.5 * k ** (1 / 1.5),
    )
    updates, iterates = reference.descend(
        starting_point(),
        directions,
        rate=lambda k: _rate(k - 1),
        weight_decay=lambda k: 0.05,
        decayed={"w"},
    )
    with jax.enable_x64(True):
        tx = oht.gclip(
            _rate,
            oht.clipping_threshold(0.5, 1.5),
            weight_decay=0.05,
            mask=_matrices,
            bias_correction=bias_correction,
        )
        got_updates, got_iterates, _ = follow(tx, grads)
    for step in range(100):
        for name in ("w", "b", "s"):
            where = f"{name}, step {step}"
            # 100 steps of a few operations, each within 1e-16.
            assert_leaf_close(
                got_updates[step][name], updates[step][name], 1e-10, where
            )
            assert_leaf_close(
                got_iterates[step][name], iterates[step][name], 1e-10, where
            )


@pytest.mark.parametrize("scope", only({"leaf"}, ["global", "leaf"]))
def test_the_clip_alone_follows_the_reference(scope):
    grads = heavy_gradients()
    want = reference.clip_by_norm(grads, lambda k: 2.0, scope)
    with jax.enable_x64(True):
        got, _, _ = follow(oht.clip_by_norm(2.0, scope=scope), grads)
    for step, (u, v) in enumerate(zip(got, want, strict=True)):
        for name in v:
            assert_leaf_close(u[name], v[name], 1e-14, f"{name}, step {step}")


@pytest.mark.parametrize("keywords", [{}, {"bias_correction": True}], ids=str)
def test_the_alias_is_the_composition_bit_for_bit(keywords):
    parts = optax.chain(
        oht.ema(0.9, debias=bool(keywords)),
        oht.clip_by_norm(1.0),
        oht.add_decayed_weights(0.01, _matrices),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.gclip(0.1, 1.0, weight_decay=0.01, mask=_matrices, **keywords)
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_in_float32_the_parts_may_be_those_of_optax():
    parts = optax.chain(
        optax.ema(0.9, debias=False),
        oht.clip_by_norm(1.0),
        optax.add_decayed_weights(0.01, _matrices),
        optax.scale_by_learning_rate(0.1),
    )
    alias = oht.gclip(0.1, 1.0, weight_decay=0.01, mask=_matrices)
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_positions_of_the_arguments():
    params = {"w": jnp.array([[3.0], [-4.0]]), "b": jnp.array([2.0])}
    spelled = oht.gclip(
        learning_rate=0.2, threshold=1.0, b1=0.5, weight_decay=0.1, mask=_matrices
    )
    want = one_step(spelled, params, params)
    got = one_step(oht.gclip(0.2, 1.0, 0.5, 0.1, mask=_matrices), params, params)
    assert_trees_equal(got, want)
    assert_trees_equal(
        one_step(oht.gclip(0.2, 1.0), params),
        one_step(oht.gclip(0.2, 1.0, 0.9, 0.0, mask=None), params),
    )


def norm(tree):
    leaves = [as_float64(x).ravel() for x in jax.tree.leaves(tree)]
    return np.sqrt(np.sum(np.square(np.concatenate(leaves))))


@functools.cache
def _program(scope, nonfinite="propagate"):
    @jax.jit
    def clip(threshold, grads):
        return one_step(
            oht.clip_by_norm(threshold, scope=scope, nonfinite=nonfinite), grads
        )

    return clip


def vectors(largest, size):
    exponents = st.floats(-np.log10(largest), np.log10(largest))
    numbers = st.tuples(exponents, st.sampled_from([-1.0, 1.0, 0.0]))
    return hnp.arrays(
        np.float32, size, elements=numbers.map(lambda x: x[1] * 10 ** x[0])
    )


trees = st.fixed_dictionaries({"a": vectors(1e37, (3,)), "b": vectors(1e37, (2, 2))})
limits = st.floats(-30, 30).map(lambda x: np.float32(10**x))


@pytest.mark.parametrize("scope", ["global", "leaf"])
@hypothesis.settings(max_examples=100)  # compiled once
@hypothesis.given(grads=trees, threshold=limits)
def test_properties_of_a_clip(scope, grads, threshold):
    clip = _program(scope)
    u = clip(threshold, grads)
    groups = [(u, grads)] if scope == "global" else [(u[k], grads[k]) for k in grads]
    for clipped, g in groups:
        # Seven squares, their sum, a root and two factors in float32.
        want = min(norm(g), threshold)
        np.testing.assert_allclose(norm(clipped), want, rtol=1e-6)
        if norm(g) <= threshold * (1 - 1e-6):
            assert_trees_equal(clipped, jax.tree.map(jnp.asarray, g))
    for clipped, g in zip(jax.tree.leaves(u), jax.tree.leaves(grads), strict=True):
        assert np.all(np.abs(clipped) <= np.abs(g))  # nothing grows by even a bit
        assert np.all(np.sign(clipped) * np.sign(g) >= 0)
    again = clip(threshold, u)  # idempotent
    groups = [(again, u)] if scope == "global" else [(again[k], u[k]) for k in u]
    for twice, once in groups:  # what is 1e-38 of their norm may become 0
        lost = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), twice, once)
        assert norm(lost) <= 1e-6 * norm(once)


@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("size", [2e-38, 1e-30, 1e-15, 1.0, 1e15, 1e19, 1e30, 3e38])
@pytest.mark.parametrize("threshold", [1e-30, 1.0, 1e30])
def test_extreme_sizes_and_thresholds(scope, size, threshold):
    """With 16 entries of 3e38 the norm itself overflows float32."""
    grads = {"a": np.full((4, 2), size), "b": -np.full(8, size)}
    factor = min(threshold / size / (8 if scope == "leaf" else 16) ** 0.5, 1)
    got = _program(scope)(np.float32(threshold), jax.tree.map(np.float32, grads))
    assert_trees_close(got, jax.tree.map(lambda g: factor * g, grads), 1e-6)


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_float16_gradients_of_300(scope):
    grads = {"a": np.full(9, 300, np.float16), "b": np.full(16, -300, np.float16)}
    got = _program(scope)(np.float32(1.0), grads)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype("float16")}
    counts = (3.0, 4.0) if scope == "leaf" else (5.0, 5.0)
    np.testing.assert_allclose(got["a"], 1 / counts[0], rtol=2**-10)
    np.testing.assert_allclose(got["b"], -1 / counts[1], rtol=2**-10)


def test_a_long_float16_leaf():
    """The sum of 70,000 squares is beyond float16, and so is their count."""
    grads = np.full(70_000, 0.5, np.float16)
    got = _program("global")(np.float32(10.0), grads)
    np.testing.assert_allclose(got, 10 / 70_000**0.5, rtol=2**-9)


BAD = {"a": np.float32([3.0, np.nan, 4.0]), "b": np.float32([np.inf, -12.0])}


def test_bad_entries_propagate_to_all_that_share_the_norm():
    got = _program("global")(np.float32(1.0), BAD)
    assert all(np.all(np.isnan(x)) for x in got.values())
    got = _program("leaf")(np.float32(1.0), BAD | {"b": np.float32([5.0, -12.0])})
    assert np.all(np.isnan(got["a"]))
    np.testing.assert_allclose(got["b"], [5 / 13, -12 / 13], rtol=1e-6)


def test_below_the_threshold_bad_entries_are_loud_as_well():
    for bad in (np.inf, -np.inf, np.nan):
        got = one_step(oht.clip_by_norm(1e30), np.float32([1.0, bad]))
        assert np.all(np.isnan(got))


def test_bad_entries_become_zero_on_request_and_do_not_count():
    got = _program("global", "zero")(np.float32(1.3), BAD)
    np.testing.assert_allclose(got["a"], [0.3, 0, 0.4], rtol=1e-6)
    np.testing.assert_allclose(got["b"], [0, -1.2], rtol=1e-6)
    got = _program("leaf", "zero")(np.float32(1.0), BAD)
    np.testing.assert_allclose(got["a"], [0.6, 0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(got["b"], [0, -1], rtol=1e-6)


def test_a_bad_gradient_stays_in_the_momentum():
    tx = jitted(oht.gclip(0.1, 1.0))
    _, state = tx.update(jnp.array([1.0, np.nan]), tx.init(jnp.zeros(2)))
    assert np.all(np.isnan(tx.update(jnp.ones(2), state)[0]))


def test_the_threshold_may_be_a_schedule_from_count_zero():
    tx = jitted(oht.clip_by_norm(lambda count: count + 1.0))
    grads = jnp.array([30.0, 40.0])
    state = tx.init(grads)
    for k in range(1, 4):
        assert int(state.count) == k - 1
        updates, state = tx.update(grads, state)
        np.testing.assert_allclose(updates, k * jnp.array([0.6, 0.8]), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_a_bad_threshold_of_a_schedule_is_loud(bad):
    for scope in ("global", "leaf"):
        for size in (0.0, 1.0):
            tx = oht.clip_by_norm(lambda count: bad, scope=scope)
            assert np.all(np.isnan(one_step(tx, np.full(3, size, np.float32))))


def test_dtypes_mixed_within_a_tree():
    grads = {"a": jnp.full(9, 300, jnp.float16), "b": jnp.array([400.0])}
    got = one_step(oht.clip_by_norm(1.0), grads)
    assert got["a"].dtype == jnp.float16
    total = (9 * 300**2 + 400**2) ** 0.5
    np.testing.assert_allclose(got["a"], 300 / total, rtol=2**-10)
    np.testing.assert_allclose(got["b"], 400 / total, rtol=1e-6)


def test_the_state_tells_which_share_of_the_norm_was_kept():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.6, 0.8]), "c": jnp.zeros(2)}
    for scope, want in (
        ("global", (4 / 26) ** 0.5),
        ("leaf", {"a": 0.4, "b": 1.0, "c": 1.0}),
    ):
        tx = jitted(oht.clip_by_norm(2.0, scope=scope))
        state = tx.init(grads)
        assert all(float(x) == 1 for x in jax.tree.leaves(state.kept))
        _, state = tx.update(grads, state)
        assert_trees_close(state.kept, jax.tree.map(np.float32, want), 1e-6)
