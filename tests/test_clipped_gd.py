"""Clipped and normalised gradient descent."""

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
from tests.compare import as_float64, assert_leaf_close, assert_same_bits
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.in_time import only
from tests.registry import make_grads, make_params


def norm(tree):
    leaves = [as_float64(x).ravel() for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


@functools.cache
def _clipped():
    @jax.jit
    def step(rate, limit, grads):
        return one_step(oht.clipped_gd(rate, limit), grads)

    return step


_exponents = st.tuples(st.floats(-15, 15), st.sampled_from([-1.0, 1.0, 0.0]))
_vectors = hnp.arrays(
    np.float32, (4,), elements=_exponents.map(lambda x: np.float32(x[1] * 10 ** x[0]))
)


@hypothesis.settings(max_examples=100)  # compiled once
@hypothesis.given(
    grads=st.fixed_dictionaries({"a": _vectors, "b": _vectors}),
    rate=st.floats(-6, 2).map(lambda x: np.float32(10**x)),
    limit=st.floats(-6, 6).map(lambda x: np.float32(10**x)),
)
def test_the_update_is_the_smaller_of_two_steps(grads, rate, limit):
    u = _clipped()(rate, limit, grads)
    # Products, eight squares, their sum, a root and a quotient in float32.
    want = min(float(rate) * norm(grads), float(limit))
    np.testing.assert_allclose(norm(u), want, rtol=2e-6)
    assert norm(u) <= limit * (1 + 2e-6)
    factor = min(rate, limit / norm(grads)) if norm(grads) else 0.0
    for name, g in grads.items():
        np.testing.assert_allclose(
            u[name], -factor * as_float64(g), rtol=2e-6, atol=1e-37
        )


def test_the_rate_does_not_scale_the_bound():
    """A learning rate behind the clip would; schedules of both start at count 0."""
    tx = jitted(
        oht.clipped_gd(lambda count: 8.0 * 0.5**count, lambda count: 1.0 + count)
    )
    grads = jnp.array([0.6, 0.8])
    state = tx.init(grads)
    sizes = []
    for _ in range(5):
        updates, state = tx.update(grads, state)
        sizes.append(norm(updates))
    np.testing.assert_allclose(sizes, [1, 2, 2, 1, 0.5], rtol=1e-6)


def test_compositions_bit_for_bit():
    parts = optax.chain(
        oht.ema(0.5, debias=False),
        oht.normalize_by_norm(1e-3),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.normalized_gd(0.1, 1e-3, 0.5)
    assert_same_bits(alias, parts, make_grads(), make_params())
    spelled = oht.normalized_gd(learning_rate=0.1, offset=1e-3, b1=0.5)
    assert_same_bits(spelled, parts, make_grads()[:1], make_params())


@pytest.mark.parametrize("momentum", only({0.9}, [0.0, 0.9]))
def test_normalized_gd_follows_the_reference(momentum):
    grads = heavy_gradients()
    moments = reference.ema(grads, momentum)
    with jax.enable_x64(True):
        got, _, _ = follow(oht.normalized_gd(0.1, 0.5, momentum), grads)
    for step, (u, m) in enumerate(zip(got, moments, strict=True)):
        for name in m:
            want = -0.1 * m[name] / (norm(m) + 0.5)
            assert_leaf_close(u[name], want, 1e-12, f"{name}, step {step}")


def test_the_whole_of_normalised_momentum():
    """Clip, average from the first gradient, look ahead, divide: in plain NumPy."""
    grads = heavy_gradients(30)
    rate, momentum = oht.normalized_momentum(scale=0.1)
    with jax.enable_x64(True):
        tx = oht.normalized_gd(
            rate, 0.5, momentum, init="first", scope="leaf", max_norm=3.0, nesterov=True
        )
        got, _, _ = follow(tx, grads)
    m = {}
    for t, (u, g) in enumerate(zip(got, grads, strict=True), 1):
        beta = 1 - t**-0.5
        for name, x in g.items():
            x = x * min(1.0, 3.0 / max(norm(x), 1e-300))
            m[name] = beta * m.get(name, x) + (1 - beta) * x
            ahead = beta * m[name] + (1 - beta) * x
            want = -0.1 * t**-0.75 * ahead / (norm(ahead) + 0.5)
            assert_leaf_close(u[name], want, 1e-12, f"{name}, step {t}")


def test_each_leaf_or_layer_has_steps_of_one_length():
    grads = {"w": jnp.array([[3.0, 4.0], [3e-20, 4e-20]]), "b": jnp.array([-1e20])}
    tx = oht.normalize_by_norm(0.0, scope="leaf", layer_axis={"w": 0, "b": None})
    got = one_step(tx, grads)
    np.testing.assert_allclose(got["w"], [[0.6, 0.8]] * 2, rtol=1e-6)
    np.testing.assert_array_equal(got["b"], [-1.0])


def test_compositions_with_a_clip_bit_for_bit():
    parts = optax.chain(
        oht.clip_by_norm(0.5, scope="leaf"),
        oht.ema(0.5, init="first"),
        oht.normalize_by_norm(1e-3, scope="leaf"),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.normalized_gd(0.1, 1e-3, 0.5, init="first", scope="leaf", max_norm=0.5)
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_zero_gradients_stay_zero():
    zeros = jnp.zeros(3)
    assert np.all(np.isnan(one_step(optax.contrib.normalize(), zeros)))
    for tx in (
        oht.normalize_by_norm(),
        oht.normalize_by_norm(offset=0.0),
        oht.normalized_gd(0.1, offset=0.0, b1=0.9),
        oht.clipped_gd(0.1, 1.0),
    ):
        np.testing.assert_array_equal(one_step(tx, zeros), 0)
    slope = jax.grad(lambda g: one_step(oht.normalize_by_norm(0.0), g)[0])(zeros)
    assert np.all(np.isfinite(slope))


@jax.jit
def _normalized(offset, grads):
    return one_step(oht.normalize_by_norm(offset), grads)


@pytest.mark.parametrize("size", [2e-38, 1e-30, 1e-15, 1.0, 1e15, 1e30, 3e38])
@pytest.mark.parametrize("offset", [0.0, 1e-8, 1e20])
def test_extreme_sizes(size, offset):
    """With 16 entries of 3e38 the norm itself overflows float32."""
    got = _normalized(np.float32(offset), {"a": np.full(16, size, np.float32)})["a"]
    want = size / (4 * size + offset)
    if want > 1e-37:
        np.testing.assert_allclose(got, want, rtol=1e-6)
    else:
        assert np.all(np.abs(got) < 1.1e-37)


def test_float16():
    grads = jnp.full(4, 6e4, jnp.float16)
    got = one_step(oht.normalize_by_norm(), grads)
    assert got.dtype == jnp.float16
    np.testing.assert_allclose(got, 0.5, rtol=2**-10)


@pytest.mark.parametrize(
    ("grads", "rate"),
    [
        (jnp.full(4, 3e3, jnp.float16), 30.0),
        (jnp.full(4, 3e37, jnp.float32), 30.0),
        (jnp.full(4, 3e38, jnp.float32), 1.0),
        (jnp.full(4, 1e-30, jnp.float32), 1e32),
    ],
    ids=["step-float16", "step", "norm", "tiny"],
)
def test_a_bounded_update_is_right_where_the_whole_step_or_its_norm_overflows(
    grads, rate
):
    got = one_step(oht.clipped_gd(rate, 1.0), grads)
    assert got.dtype == grads.dtype
    np.testing.assert_allclose(got, -0.5, rtol=2**-10)


def test_a_tiny_bound_on_a_huge_gradient():
    """Their quotient is no float32."""
    got = one_step(oht.clipped_gd(0.1, 1e-25), jnp.array([3e18, 4e18]))
    np.testing.assert_allclose(got, [-6e-26, -8e-26], rtol=1e-6)


@pytest.mark.parametrize("bound", [np.nan, -1.0])
def test_a_bad_bound_of_a_schedule_is_loud(bound):
    got = one_step(oht.clipped_gd(0.1, lambda count: bound), jnp.array([3.0, 4.0]))
    assert np.all(np.isnan(got))


def test_bad_entries_are_loud():
    rules = (
        oht.normalize_by_norm(),
        oht.clipped_gd(0.1, 1.0),
        oht.normalized_gd(0.1),
    )
    for bad in (np.inf, -np.inf, np.nan):
        grads = {"a": np.float32([1.0, bad]), "b": np.ones(2, np.float32)}
        for tx in rules:
            updates = one_step(tx, grads)
            assert all(np.all(np.isnan(u)) for u in updates.values())


def test_averages_of_gradients_whose_direction_is_steady_go_at_the_full_rate():
    tx = jitted(oht.normalized_gd(0.1, offset=0.0, b1=0.99))
    state = tx.init(jnp.zeros(2))
    for k in range(3):
        updates, state = tx.update(jnp.array([3.0, -4.0]) * 10.0**k, state)
        np.testing.assert_allclose(updates, [-0.06, 0.08], rtol=1e-6)


def test_the_state_tells_which_share_of_the_step_was_kept():
    tx = jitted(oht.clipped_gd(0.5, 1.0))
    for length, want in ((1.0, 1.0), (8.0, 0.25), (0.0, 1.0)):
        _, state = tx.update(jnp.array([length, 0.0]), tx.init(jnp.zeros(2)))
        np.testing.assert_allclose(state.kept, want, rtol=1e-6)


# The constants of published steps for (L0, L1)-smooth objectives.


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        ("simple", (1.0, 0.25, 0.003322)),
        ("clipped", (0.5, 0.166667, 0.001667)),
        ("gorbunov", (0.283572, 0.094524, 0.001411)),
    ],
)
def test_constants_of_published_steps(rule, want):
    """For norms that are nearly 0, 1 and 100."""
    constants = oht.l0l1_constants(1.0, 2.0, rule)
    for norm, step in zip((1e-12, 1.0, 100.0), want, strict=True):
        if rule == "clipped":
            got = min(constants["learning_rate"], constants["max_update_norm"] / norm)
        else:
            got = constants["learning_rate"] / (norm + constants["offset"])
        assert round(got, 6) == step


@pytest.mark.parametrize(
    ("rule", "factory", "steps"),
    [
        ("simple", oht.normalized_gd, 541),
        ("clipped", oht.clipped_gd, 1078),
        ("gorbunov", oht.normalized_gd, 1865),
    ],
)
def test_constants_on_a_quartic(rule, factory, steps):
    """w^4 from 10 to below 1e-6."""
    with jax.enable_x64(True):
        tx = factory(**oht.l0l1_constants(4.0, 3.0, rule))

        def step(carry):
            w, state, count = carry
            updates, state = tx.update(4 * w**3, state)
            return w + updates, state, count + 1

        start = (jnp.array(10.0), tx.init(jnp.array(10.0)), 0)
        run = jax.jit(
            lambda c: jax.lax.while_loop(lambda c: c[0] ** 4 >= 1e-6, step, c)
        )
        assert int(run(start)[2]) == steps


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((1.0, 0.0), r"l1 must be in \(0.0, inf\), got 0.0"),
        ((-1.0, 1.0), r"l0 must be in \[0.0, inf\), got -1.0"),
        ((0.0, 1.0, "clipped"), r"l0 must be in \(0.0, inf\), got 0.0"),
        ((1.0, 1.0, "exact"), "rule must be one of .* got 'exact'"),
    ],
)
def test_constants_out_of_range(args, message):
    with pytest.raises(ValueError, match=message):
        oht.l0l1_constants(*args)
