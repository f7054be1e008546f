"""Layer-wise rates: the ratio, its bounds, stacked layers, masks."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import optax_heavytail as oht
from tests import reference
from tests.compare import (
    as_float64,
    assert_leaf_close,
    assert_trees_close,
)
from tests.driving import follow, heavy_gradients, jitted, one_step, starting_point
from tests.in_time import only
from tests.test_sharding import make_mesh

WITHOUT_BOUNDS = oht.scale_by_clipped_trust_ratio(None, None)


@pytest.mark.parametrize(
    ("lower", "upper"),
    only(
        {(0.5, 2.0), (None, None)},
        [(0.0, 1.0), (0.5, 2.0), (None, 0.1), (0.3, None), (None, None)],
    ),
)
def test_30_steps_follow_the_reference(lower, upper):
    grads, w = heavy_gradients(30), starting_point()
    limits = (0.0 if lower is None else lower, np.inf if upper is None else upper)
    with jax.enable_x64(True):
        part = oht.scale_by_clipped_trust_ratio(
            lower, upper, trust_coefficient=0.5, eps=0.1
        )
        tx = optax.chain(part, optax.scale(-0.01))
        got, iterates, state = follow(tx, grads, w)
    for step, g in enumerate(grads):
        ratios = reference.trust_ratios(w, g, *limits, coefficient=0.5, eps=0.1)
        for name in w:
            want = -0.01 * ratios[name][0] * g[name]
            # A norm, a quotient and products, after up to 30 roundings of w.
            assert_leaf_close(got[step][name], want, 1e-12, f"{name}, step {step}")
        w = iterates[step]
    for name, (used, raw) in ratios.items():
        np.testing.assert_allclose(oht.get_trust_ratio(state)[name], used, rtol=1e-12)
        got_raw = oht.get_trust_ratio(state, raw=True)[name]
        np.testing.assert_allclose(got_raw, raw, rtol=1e-12)


def test_bounds_act_on_both_sides():
    params = {"a": jnp.array([8.0]), "b": jnp.array([1.0]), "c": jnp.array([0.25])}
    ones = jax.tree.map(jnp.ones_like, params)
    tx = jitted(oht.scale_by_clipped_trust_ratio(0.5, 2.0))
    updates, state = tx.update(ones, tx.init(params), params)
    want = {"a": 2.0, "b": 1.0, "c": 0.5}
    assert oht.get_trust_ratio(state) == want
    assert oht.get_trust_ratio(state, raw=True) == {"a": 8.0, "b": 1.0, "c": 0.25}
    assert {name: float(u[0]) for name, u in updates.items()} == want


def test_zero_norms_have_the_ratio_1_and_the_bounds_apply_to_it():
    params = {"w": jnp.zeros(2), "u": jnp.ones(2), "both": jnp.zeros(2)}
    updates = {"w": jnp.ones(2), "u": jnp.zeros(2), "both": jnp.zeros(2)}
    for bounds, want in (
        ((0.0, 0.25), 0.25),
        ((3.0, None), 3.0),
        ((None, None), 1.0),
        ((0.0, 1.0), 1.0),
    ):
        tx = oht.scale_by_clipped_trust_ratio(
            *bounds, trust_coefficient=0.001, eps=1e-3
        )
        got, state = jitted(tx).update(updates, tx.init(params), params)
        raw = oht.get_trust_ratio(state, raw=True)
        assert {float(r) for r in raw.values()} == {1.0}
        used = oht.get_trust_ratio(state)
        assert {float(r) for r in used.values()} == {want}
        np.testing.assert_allclose(got["w"], want, rtol=1e-7)
        np.testing.assert_array_equal(got["u"], 0)


def test_schedules_of_the_bounds_start_at_count_zero():
    tx = jitted(
        oht.scale_by_clipped_trust_ratio(
            lambda count: 1.0 - 0.25 * count, lambda count: 4.0 - count
        )
    )
    params, (small, large) = jnp.ones(1), (jnp.array([0.01]), jnp.array([100.0]))
    for updates, wants in ((small, (4.0, 3.0, 2.0)), (large, (1.0, 0.75, 0.5))):
        state = tx.init(params)
        for want in wants:
            _, state = tx.update(updates, state, params)
            assert float(oht.get_trust_ratio(state)) == want


def test_the_ratios_are_1_before_the_first_update():
    state = oht.scale_by_clipped_trust_ratio(layer_axis={"a": 1, "b": None}).init(
        {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(4)}
    )
    for ratios in (oht.get_trust_ratio(state), oht.get_trust_ratio(state, raw=True)):
        np.testing.assert_array_equal(ratios["a"], np.ones(3, np.float32))
        assert ratios["a"].dtype == jnp.float32
        assert ratios["b"].shape == ()


def test_defaults_are_those_of_the_paper():
    params, updates = jnp.array([3.0, 4.0]), jnp.array([0.0, 1.0])
    got = one_step(oht.scale_by_clipped_trust_ratio(), updates, params)
    np.testing.assert_array_equal(got, updates)  # 5, and at most 1
    got = one_step(oht.scale_by_clipped_trust_ratio(0.0, 10.0), updates, params)
    np.testing.assert_allclose(got, 5 * updates, rtol=1e-6)


def _layers(seed, scales):
    rng = np.random.default_rng(seed)
    return [np.float32(s * rng.normal(size=(3, 4))) for s in scales]


@pytest.mark.parametrize("axis", only({1, -1}, [0, 1, 2, -1, -2, -3]))
def test_slices_of_stacked_layers_are_layers(axis):
    """Beside optax, which takes one ratio for layers of norms 40 and 0.04."""
    params, updates = _layers(0, (10.0, 0.01, 1.0)), _layers(1, (1.0, 1.0, 0.0))
    stack = functools.partial(np.stack, axis=axis)
    tx = jitted(oht.scale_by_clipped_trust_ratio(0.001, None))
    got, state = tx.update(updates, tx.init(params), params)
    stacked_tx = oht.scale_by_clipped_trust_ratio(0.001, None, layer_axis=axis)
    args = (stack(updates), stacked_tx.init(stack(params)), stack(params))
    stacked, stacked_state = jax.jit(stacked_tx.update)(*args)
    assert_trees_close(stacked, stack(got), 1e-6)
    for raw in (False, True):
        want = np.stack(oht.get_trust_ratio(state, raw=raw))
        assert_leaf_close(oht.get_trust_ratio(stacked_state, raw=raw), want, 1e-6)
    ratios = oht.get_trust_ratio(stacked_state)
    assert ratios[0] > 500 * ratios[1]
    assert float(ratios[2]) == 1.0
    theirs = one_step(optax.scale_by_trust_ratio(), stack(updates), stack(params))
    first, second = (np.take(np.asarray(theirs), k, axis) / updates[k] for k in (0, 1))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_layer_axis_may_be_a_prefix():
    params = {
        "blocks": {"w": jnp.ones((2, 3)), "b": 4 * jnp.ones((2, 5))},
        "head": jnp.ones((2, 3)),
        "scale": jnp.ones(()),
    }
    updates = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    axes = {"blocks": 0, "head": None, "scale": None}
    tx = oht.scale_by_clipped_trust_ratio(None, None, layer_axis=axes)
    _, state = jitted(tx).update(updates, tx.init(params), params)
    ratios = oht.get_trust_ratio(state)
    np.testing.assert_allclose(ratios["blocks"]["w"], [2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(ratios["blocks"]["b"], [8.0, 8.0], rtol=1e-6)
    assert ratios["head"].shape == ratios["scale"].shape == ()


@pytest.mark.parametrize(
    ("axis", "shape"), [(2, (2, 3)), (-3, (2, 3)), (1, (4,))], ids=str
)
def test_an_axis_that_a_leaf_does_not_have_is_named(axis, shape):
    tx = oht.scale_by_clipped_trust_ratio(layer_axis=axis)
    with pytest.raises(ValueError, match="layer_axis"):
        tx.init({"w": jnp.ones(shape)})


@pytest.mark.parametrize(
    "mask",
    [
        {"a": True, "b": False},
        lambda params: {"a": True, "b": False},
    ],
    ids=["tree", "function"],
)
def test_masked_leaves_pass(mask):
    """True: the leaf takes the ratio, as in optax."""
    params = {"a": jnp.full(2, 4.0), "b": jnp.full(2, 4.0)}
    updates = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = jitted(oht.scale_by_clipped_trust_ratio(None, None, mask=mask))
    got, state = tx.update(updates, tx.init(params), params)
    np.testing.assert_allclose(got["a"], 4.0, rtol=1e-6)
    np.testing.assert_array_equal(got["b"], 1.0)
    assert isinstance(oht.get_trust_ratio(state)["b"], optax.MaskedNode)


def test_long_float16_leaves_and_tiny_norms():
    """Where the trust ratio of optax is NaN, or 1."""
    params = jnp.full(70_000, 300.0, jnp.float16)
    updates = jnp.ones(70_000, jnp.float16)
    assert not np.all(
        np.isfinite(one_step(optax.scale_by_trust_ratio(), updates, params))
    )
    tx = oht.scale_by_clipped_trust_ratio(0.0, None)
    got = one_step(tx, updates, params)
    assert got.dtype == jnp.float16
    np.testing.assert_allclose(np.float32(got), 300.0, rtol=2**-9)
    params, updates = jnp.array([3e-20, 4e-20]), jnp.array([0.0, 1.0])
    theirs = one_step(optax.scale_by_trust_ratio(), updates, params * 1e-5)
    np.testing.assert_array_equal(theirs, updates)
    np.testing.assert_allclose(
        one_step(tx, updates, params * 1e-5), [0.0, 5e-25], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("w", "u"), [(1e-30, 1e-30), (1e30, 1e30), (1e-15, 1e-30), (3e37, 2.0), (1e5, 1e30)]
)
def test_extreme_norms(w, u):
    got = one_step(WITHOUT_BOUNDS, np.full(9, u, "f"), np.full(9, -w, "f"))
    np.testing.assert_allclose(got, w, rtol=1e-6)


def test_a_norm_that_overflows_while_its_ratio_does_not():
    tx = oht.scale_by_clipped_trust_ratio(None, None, trust_coefficient=0.5)
    got = one_step(tx, jnp.full(16, -3e38), jnp.full(16, 3e38))
    np.testing.assert_allclose(got, -1.5e38, rtol=1e-6)


def test_mixed_dtypes_are_not_widened():
    params, updates = jnp.full(2, 3.0), jnp.ones(2, jnp.bfloat16)
    assert one_step(optax.scale_by_trust_ratio(), updates, params).dtype == jnp.float32
    tx = oht.scale_by_clipped_trust_ratio(0.0, None)
    assert one_step(tx, updates, params).dtype == jnp.bfloat16


def test_bad_entries_are_loud_in_their_own_layer():
    tx = oht.scale_by_clipped_trust_ratio()
    for bad in (np.inf, -np.inf, np.nan):
        updates = {"a": np.float32([1.0, bad]), "b": np.ones(2, np.float32)}
        params = jax.tree.map(np.ones_like, updates)
        for args in ((updates, params), (params, updates)):
            got = one_step(tx, *args)
            assert np.all(np.isnan(got["a"]))
            np.testing.assert_allclose(got["b"], 1.0, rtol=1e-6)
    stacked = jnp.array([[1.0, jnp.inf], [1.0, 1.0]])
    tx = oht.scale_by_clipped_trust_ratio(layer_axis=0)
    got = one_step(tx, stacked, jnp.ones((2, 2)))
    assert np.all(np.isnan(got[0]))
    np.testing.assert_allclose(got[1], 1.0, rtol=1e-6)


def test_flattening_around_a_layer_wise_rule_takes_its_layers_away():
    """Flatten inside it, or not at all: ours then keeps one ratio for each leaf."""
    params = {"a": jnp.full(2, 40.0), "b": jnp.full(2, 0.04)}
    updates = jax.tree.map(jnp.ones_like, params)
    for rule in (
        optax.scale_by_trust_ratio(),
        oht.scale_by_clipped_trust_ratio(None, None),
    ):
        flat = one_step(optax.flatten(rule), updates, params)
        np.testing.assert_allclose(flat["a"], flat["b"], rtol=1e-6)
    inside = optax.chain(
        optax.flatten(optax.scale_by_adam()),
        oht.scale_by_clipped_trust_ratio(None, None),
    )
    got = one_step(inside, updates, params)
    np.testing.assert_allclose(got["a"], 40.0, rtol=1e-5)
    np.testing.assert_allclose(got["b"], 0.04, rtol=1e-5)


@functools.cache
def _program():
    @jax.jit
    def scale(lower, upper, updates, params):
        tx = oht.scale_by_clipped_trust_ratio(lower, upper)
        scaled, state = tx.update(updates, tx.init(params), params)
        return scaled, state.trust_ratio

    return scale


_entries = st.tuples(st.floats(-15, 15), st.sampled_from([-1.0, 1.0, 0.0]))
_vectors = hnp.arrays(
    np.float32, (5,), elements=_entries.map(lambda x: np.float32(x[1] * 10 ** x[0]))
)


@hypothesis.settings(max_examples=60)  # compiled once
@hypothesis.given(
    w=_vectors,
    u=_vectors,
    lower=st.floats(0.0, 1.0, width=32),
    width=st.floats(0.0, 1e6, width=32),
    order=st.permutations(range(5)),
    scale=st.sampled_from([2.0**-30, 0.5, 8.0, 2.0**30]),
)
def test_properties(w, u, lower, width, order, scale):
    upper = np.float32(lower) + np.float32(width)
    scaled, ratio = _program()(np.float32(lower), upper, u, w)
    # Each to a rounding of float32.
    assert lower * (1 - 1e-6) <= ratio <= upper * (1 + 1e-6)
    assert np.all(np.sign(scaled) * np.sign(u) >= 0)
    order = list(order)
    permuted, _ = _program()(np.float32(lower), upper, u[order], w[order])
    assert_leaf_close(permuted, scaled[np.array(order)], 1e-6)
    if np.any(u) and np.any(w):
        # Unbounded, the step's length is that of the parameters, whatever u's.
        everything = (np.float32(0), np.float32(np.inf))
        first, _ = _program()(*everything, u, w)
        second, _ = _program()(*everything, np.float32(scale) * u, w)
        assert_leaf_close(second, first, 1e-6)
        np.testing.assert_allclose(
            np.linalg.norm(as_float64(first)), np.linalg.norm(as_float64(w)), rtol=2e-6
        )


def test_bounds_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"at most upper, got 2.0 and 1.0") as error:
        oht.scale_by_clipped_trust_ratio(2.0, 1.0)
    assert "\n" not in str(error.value)


def test_eight_devices_by_hand():
    """Every leaf in eight shards but one, which is whole on every device."""
    mesh = make_mesh(shape=(8,), names=("x",))
    rng = np.random.default_rng(0)
    params, updates = (
        {
            "rows": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
            "layers": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32),
            "whole": jnp.asarray(rng.normal(size=3), jnp.float32),
        }
        for _ in range(2)
    )
    specs = {"rows": P("x"), "layers": P(None, "x"), "whole": P()}
    layer_axis = {"rows": None, "layers": 0, "whole": None}
    make = functools.partial(
        oht.scale_by_clipped_trust_ratio, 0.5, 1.5, layer_axis=layer_axis
    )
    axes = {"rows": "x", "layers": "x", "whole": None}

    def both(updates, params, *, tx):
        """The state is made inside, and keeps its type from step to step."""

        def step(state, u):
            scaled, state = tx.update(u, state, params)
            return state, scaled

        stacked = jax.tree.map(lambda u: jnp.stack([u, 2 * u]), updates)
        state, scaled = jax.lax.scan(step, tx.init(params), stacked)
        return jax.tree.map(lambda u: u[1], scaled), state

    by_hand = jax.shard_map(
        functools.partial(both, tx=make(axis_name=axes)),
        mesh=mesh,
        in_specs=(specs, specs),
        out_specs=(specs, P()),
    )
    got = jax.jit(by_hand)(updates, params)
    want = jax.jit(functools.partial(both, tx=make()))(updates, params)
    assert_trees_close(got, want, 2e-6)  # sums in another order


@pytest.mark.parametrize(("w", "u"), [(1e20, 1e-16), (1e-16, 1e20), (1e-30, 1e-37)])
def test_ratios_of_norms_at_both_ends_of_float32(w, u):
    tx = jitted(WITHOUT_BOUNDS)
    params, updates = jnp.array([w, 0.0]), jnp.array([0.0, u])
    got, state = tx.update(updates, tx.init(params), params)
    np.testing.assert_allclose(oht.get_trust_ratio(state), w / u, rtol=1e-5)
    np.testing.assert_allclose(got, [0.0, w], rtol=1e-5)
