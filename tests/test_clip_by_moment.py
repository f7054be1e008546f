"""clip_by_moment and the threshold estimator by itself."""

import functools
import itertools

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
from tests.compare import assert_leaf_close, assert_trees_close, assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.in_time import only

# name: (inner, what it makes of the gradients, arguments of the clip)
VARIANTS = {
    "identity": (None, lambda g: g, {}),
    "ema": (oht.ema(0.9, debias=False), lambda g: reference.ema(g, 0.9), {"b2": 0.999}),
    "nesterov": (
        optax.trace(0.9, nesterov=True),
        lambda g: reference.nesterov(g, 0.9),
        {"alpha": 1.5},
    ),
    "eps": (None, lambda g: g, {"eps": 0.5}),
    "corrected": (None, lambda g: g, {"alpha": 1.5, "bias_correction": True}),
    "normalize": (
        oht.ema(0.9, debias=True),
        lambda g: reference.ema(g, 0.9, debias=True),
        {"alpha": 2, "normalize": True, "bias_correction": True},
    ),
    "normalize-uncorrected": (
        oht.ema(0.9, debias=False),
        lambda g: reference.ema(g, 0.9),
        {"eps": 0.1, "normalize": True, "bias_correction": False},
    ),
    "leaf": (None, lambda g: g, {"scope": "leaf"}),
    "leaf-normalize": (
        oht.ema(0.9, debias=False),
        lambda g: reference.ema(g, 0.9),
        {"scope": "leaf", "alpha": 2.0, "normalize": True, "bias_correction": True},
    ),
    "leaf-power": (None, lambda g: g, {"scope": "leaf", "alpha": 1.5, "eps": 0.3}),
    "global": (
        oht.ema(0.9, debias=False),
        lambda g: reference.ema(g, 0.9),
        {"scope": "global", "b2": 0.9},
    ),
    "global-power": (None, lambda g: g, {"scope": "global", "alpha": 1.2, "eps": 0.0}),
    "global-normalize": (
        oht.ema(0.9, debias=True),
        lambda g: reference.ema(g, 0.9, debias=True),
        {"scope": "global", "alpha": 2, "normalize": True, "bias_correction": True},
    ),
}


@pytest.mark.parametrize(
    "variant",
    only({"ema", "normalize", "leaf-power", "global", "global-normalize"}, VARIANTS),
)
def test_100_steps_follow_the_reference(variant):
    inner, moment, kwargs = VARIANTS[variant]
    grads = heavy_gradients()
    want = reference.clip_by_moment(grads, moment(grads), **kwargs)
    with jax.enable_x64(True):
        got, _, state = follow(oht.clip_by_moment(inner, **kwargs), grads)
    # 100 steps of a few operations, each within 1e-16, sums of positive terms.
    for step, (u, v) in enumerate(zip(got, want, strict=True)):
        for name in v:
            assert_leaf_close(u[name], v[name], 1e-11, f"{name}, step {step}")
    keys = ("b2", "alpha", "scope")
    tau = reference.thresholds(
        grads,
        **{"b2": 0.99, "alpha": 1.0} | {k: v for k, v in kwargs.items() if k in keys},
    )[-1]
    read = oht.get_threshold(state)
    if kwargs.get("scope") == "global":
        read = {None: read}
    for group, value in tau.items():
        name, index = group if isinstance(group, tuple) else (group, ())
        np.testing.assert_allclose(read[name][index], value, rtol=1e-11)


def test_normalize_corrects_the_bias_unless_told_otherwise():
    grads = heavy_gradients(10)
    make = functools.partial(oht.clip_by_moment, normalize=True)
    default, corrected, raw = (
        follow(tx, grads)[0]
        for tx in (make(), make(bias_correction=True), make(bias_correction=False))
    )
    assert_trees_equal(default, corrected)
    with pytest.raises(AssertionError):
        assert_trees_close(default, raw, 0.1)
    literal, uncorrected = (
        follow(tx, grads)[0]
        for tx in (oht.clip_by_moment(), oht.clip_by_moment(bias_correction=False))
    )
    assert_trees_equal(literal, uncorrected)


# One compiled program per setting serves all examples.
STEPS, WIDTH = 6, 5


@functools.cache
def _program(**kwargs):
    """Thresholds, moments and updates of each step; ``b1`` makes the moment an ema."""
    b1 = kwargs.pop("b1", None)
    inner = optax.identity() if b1 is None else oht.ema(b1, debias=False)
    tx = oht.clip_by_moment(inner, **kwargs)

    @jax.jit
    def run(grads):
        def step(carry, g):
            state, inner_state = carry
            u, state = tx.update(g, state)
            m, inner_state = inner.update(g, inner_state)
            return (state, inner_state), (state.threshold, m, u)

        return jax.lax.scan(step, (tx.init(grads[0]), inner.init(grads[0])), grads)[1]

    return lambda grads: jax.tree.map(np.asarray, run(jnp.asarray(grads)))


def gradients(largest):
    """Steps of float32 numbers of any size from 1 / largest to largest, and zeros."""
    exponents = st.floats(-np.log10(largest), np.log10(largest))
    numbers = st.tuples(exponents, st.sampled_from([-1.0, 1.0, 1.0, -1.0, 0.0]))
    return hnp.arrays(
        np.float32, (STEPS, WIDTH), elements=numbers.map(lambda x: x[1] * 10 ** x[0])
    )


SETTINGS = [
    {"b1": b1, "b2": b2, "alpha": alpha}
    for b1, b2, alpha in ((None, 0.99, 1.0), (0.9, 0.5, 1.5), (0.9, 0.99, 2))
]


@pytest.mark.parametrize("kwargs", SETTINGS)
@hypothesis.given(grads=gradients(1e18))
def test_updates_stay_within_threshold_and_moment(kwargs, grads):
    tau, m, u = _program(**kwargs)(grads)
    # tau / (|m| + eps) * m is two roundings away from tau.
    assert np.all(np.abs(u) <= tau * (1 + 4e-7))
    assert np.all(np.abs(u) <= np.abs(m))
    assert np.all((u == 0) | (np.sign(u) == np.sign(m)))


@pytest.mark.parametrize("scope", ["leaf", "global"])
@hypothesis.given(grads=gradients(1e18))
def test_norms_stay_within_threshold_and_moment(scope, grads):
    tau, m, u = _program(b1=0.9, b2=0.9, scope=scope)(grads)
    norms = np.linalg.norm(u.astype(np.float64), axis=-1)
    # The norm is a sum of five squares and a root in float32, the factor two more.
    assert np.all(norms <= tau * (1 + 1e-6))
    # min(., 1) is exact: no entry grows by even a bit.
    assert np.all(np.abs(u) <= np.abs(m))
    assert np.all((u == 0) | (np.sign(u) == np.sign(m)))


@pytest.mark.parametrize(
    ("scope", "eps"),
    only(
        {("coordinate", 1e-5), ("leaf", 0.0), ("global", 0.0)},
        itertools.product(("coordinate", "leaf", "global"), (0.0, 1e-5)),
    ),
)
@hypothesis.given(grads=gradients(1e18))
def test_normalized_updates_stay_within_one(scope, eps, grads):
    _, _, u = _program(b1=0.9, scope=scope, eps=eps, normalize=True)(grads)
    sizes = np.abs(u) if scope == "coordinate" else np.linalg.norm(u, axis=-1)
    assert np.all(sizes <= 1 + 1e-6)  # as above


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 1.5])
@hypothesis.given(grads=gradients(1e3), power=st.integers(-66, 66))
def test_scaling_the_gradients_scales_the_updates(normalize, alpha, grads, power):
    """From 1e-20 to 1e20, and bit for bit: powers of two commute with rounding."""
    run = _program(b1=0.9, alpha=alpha, eps=0.0, normalize=normalize)
    c = np.float32(2.0**power)
    _, _, small = run(grads)
    tau, _, large = run(c * grads)
    np.testing.assert_array_equal(large, small if normalize else c * small)
    np.testing.assert_array_equal(tau, c * run(grads)[0])


@pytest.mark.parametrize("scope", ["leaf", "global"])
@hypothesis.given(grads=gradients(1e3), power=st.integers(-66, 66))
def test_scaling_by_norms(scope, grads, power):
    run = _program(b1=0.9, scope=scope, alpha=1.5, eps=0.0)
    c = np.float32(2.0**power)
    small, large = run(grads)[2], run(c * grads)[2]
    # Squares that underflow without the second pass are at most 1e-8 of the sum each.
    np.testing.assert_allclose(large, c * small, rtol=1e-6)


@hypothesis.given(grads=gradients(1e18))
def test_corrected_thresholds_grow_with_alpha(grads):
    b2, k = 0.9, np.arange(1, STEPS + 1)[:, None]
    means = [
        _program(b2=b2, alpha=alpha)(grads)[0].astype(np.float64)
        / (1 - b2**k) ** (1 / alpha)
        for alpha in (1.0, 1.25, 1.5, 2.0)
    ]
    for low, high in itertools.pairwise(means):
        # A power and a root of it in float32, six times, where both means are equal.
        assert np.all(low <= high * (1 + 3e-6))


@hypothesis.given(grads=gradients(1e6), order=st.permutations(range(WIDTH)))
def test_coordinates_do_not_know_their_place(grads, order):
    run = _program(b1=0.9, alpha=1.5)
    assert_trees_equal(run(grads[:, order])[2], run(grads)[2][:, order])
    # Sums in another order: five terms.
    run = _program(b1=0.9, scope="global")
    got, want = run(grads[:, order])[2], run(grads)[2][:, order]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("b2", only({0.99}, [0.9, 0.99, 0.999]))
@hypothesis.given(grads=gradients(1e3))
def test_rmsprop_is_clipping_up_to_a_factor_of_two(b2, grads):
    e, lr = 1e-8, 0.1
    rms = optax.scale_by_rms(decay=b2, eps=e, eps_in_sqrt=False)

    @jax.jit
    def both(grads):
        *earlier, last = grads
        state = rms.init(last)
        for g in earlier:
            _, state = rms.update(g, state)
        old = e + jnp.sqrt(b2 * state.nu)
        clipped = one_step(oht.clip_by_value(old / np.sqrt(1 - b2)), last)
        return jnp.abs(lr * rms.update(last, state)[0]), jnp.abs(lr / old * clipped)

    h_rms, h_clip = map(np.asarray, both(grads))
    assert np.all(h_clip / 2 <= h_rms * (1 + 1e-5))  # a dozen roundings
    assert np.all(h_rms <= h_clip * (1 + 1e-5))


@pytest.mark.parametrize(
    "alpha",
    [1.0, 1.5, *(pytest.param(x, marks=pytest.mark.nightly) for x in (1, 2, 2.0))],
)
def test_concrete_and_traced_orders_agree(alpha):
    grads = heavy_gradients(20)
    kwargs = {"b2": 0.75, "eps": 0.0}  # exact in float32, where injection has them
    want, _, state = follow(oht.clip_by_moment(alpha=alpha, **kwargs), grads)

    tx = optax.inject_hyperparams(oht.clip_by_moment, hyperparam_dtype=jnp.float32)(
        alpha=alpha, **kwargs
    )
    got, _, injected = follow(tx, grads)
    # Each step adds a power and a root, within 1e-7 each, to what the last one forgot.
    assert_trees_close(got, want, 1e-6)
    assert_trees_close(oht.get_threshold(injected), state.threshold, 1e-6)


def _primitives(alpha):
    tx = oht.clip_by_moment(alpha=alpha)
    jaxpr = jax.make_jaxpr(tx.update)(jnp.ones(3), tx.init(jnp.ones(3)))
    return {eqn.primitive.name for eqn in jaxpr.jaxpr.eqns}


def test_concrete_orders_one_and_two_take_no_power():
    powers = {"pow", "exp", "log"}
    assert not _primitives(1) & (powers | {"sqrt"})
    assert not _primitives(1.0) & (powers | {"sqrt"})
    assert not _primitives(2.0) & powers
    assert "sqrt" in _primitives(2)
    assert "pow" in _primitives(1.5)


@pytest.mark.parametrize(
    ("scope", "alpha"),
    only(
        {("coordinate", 1.3), ("leaf", 2.0), ("global", 1.3)},
        itertools.product(("coordinate", "leaf", "global"), (1.0, 1.3, 2.0)),
    ),
)
def test_sizes_whose_powers_leave_float32(scope, alpha):
    kwargs = {"scope": scope, "alpha": alpha, "b2": 0.9, "eps": 0.0}
    tx = jitted(oht.clip_by_moment(**kwargs))
    for size in (1e-33, 1e-20, 1e20, 1e36):
        grads = [
            {k: size * np.clip(v, -3, 3) for k, v in g.items()}
            for g in heavy_gradients(4)
        ]
        want = reference.clip_by_moment(grads, grads, **kwargs)
        state = tx.init(jax.tree.map(jnp.float32, grads[0]))
        for g, expected in zip(grads, want, strict=True):
            updates, state = tx.update(jax.tree.map(jnp.float32, g), state)
            assert_trees_close(updates, expected, 3e-6)  # four powers and roots


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_norms_beyond_float32_count_as_its_largest_number(scope):
    """Finite gradients stay finite: a threshold of inf would never clip again."""
    tx = jitted(oht.clip_by_moment(scope=scope, b2=0.5, eps=0.0))
    grads = jnp.full(16, 3e38)
    updates, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates, 1.5e38, rtol=1e-6)
    np.testing.assert_allclose(
        jax.tree.leaves(state.threshold)[0], np.finfo(np.float32).max / 2, rtol=1e-6
    )


def test_float16_gradients_of_300():
    grads = jnp.full(8, 300.0, jnp.float16)  # 300^2 overflows float16
    for scope in ("coordinate", "leaf", "global"):
        tx = oht.clip_by_moment(scope=scope, b2=0.5, alpha=2, eps=0.0)
        updates = one_step(tx, grads)
        assert updates.dtype == jnp.float16
        np.testing.assert_allclose(updates, 300 * 0.5**0.5, rtol=2**-10)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_bad_coordinate_is_loud_and_alone(bad):
    tx = jitted(oht.clip_by_moment())
    good, spoilt = jnp.array([1.0, -2.0, 3.0]), jnp.array([1.0, bad, 3.0])
    state = tx.init(good)
    _, before = tx.update(good, state)
    updates, after = tx.update(spoilt, before)
    want, healthy = tx.update(good, before)
    assert np.isnan(updates[1])
    np.testing.assert_array_equal(updates[::2], want[::2])
    np.testing.assert_array_equal(after.threshold[1], before.threshold[1])
    np.testing.assert_array_equal(after.threshold[::2], healthy.threshold[::2])
    assert np.all(np.isfinite(tx.update(good, after)[0]))  # and it is over


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_bad_entry_spoils_the_updates_that_share_its_norm_once(bad):
    good = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    spoilt = {"a": jnp.array([1.0, bad]), "b": jnp.array([3.0])}
    for scope, b_is_spoilt in (("leaf", False), ("global", True)):
        tx = jitted(oht.clip_by_moment(scope=scope))
        _, before = tx.update(good, tx.init(good))
        updates, after = tx.update(spoilt, before)
        assert np.all(np.isnan(updates["a"]))
        assert np.all(np.isnan(updates["b"])) == b_is_spoilt
        for leaf in jax.tree.leaves(tx.update(good, after)[0]):
            assert np.all(np.isfinite(leaf))


def test_state_dtypes():
    params = {
        "half": jnp.ones(2, jnp.bfloat16),
        "single": jnp.ones(2),
    }
    threshold = oht.clip_by_moment().init(params).threshold
    assert {x.dtype for x in jax.tree.leaves(threshold)} == {jnp.dtype("float32")}
    for scope in ("coordinate", "leaf", "global"):
        tx = oht.clip_by_moment(scope=scope, threshold_dtype=jnp.bfloat16)
        leaves = jax.tree.leaves(tx.init(params).inner_state.threshold)
        assert {x.dtype for x in leaves} == {jnp.dtype(jnp.bfloat16)}
    with jax.enable_x64(True):
        wide = oht.clip_by_moment().init(jnp.ones(2, jnp.float64)).threshold
        assert wide.dtype == jnp.float64


def test_shapes_of_the_thresholds():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    shapes = {
        scope: jax.tree.map(jnp.shape, oht.clip_by_moment(scope=scope).init(params)[1])
        for scope in ("coordinate", "leaf", "global")
    }
    assert shapes["coordinate"] == {"a": (2, 3), "b": (4,)}
    assert shapes["leaf"] == {"a": (), "b": ()}
    assert shapes["global"] == ()


def test_the_inner_transform_gets_parameters_and_extra_arguments():
    def update(updates, state, params=None, *, value, **extra_args):
        del extra_args
        return jax.tree.map(lambda g, p: g + value * p, updates, params), state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = oht.clip_by_moment(inner, b2=0.0, eps=0.0)
    params, grads = jnp.array([1.0, -8.0]), jnp.array([4.0, 4.0])
    updates, _ = jitted(tx).update(grads, tx.init(params), params, value=0.5)
    np.testing.assert_allclose(updates, [4.0, 0.0])  # 4.5 is clipped at tau = 4


def test_an_inner_transform_with_a_random_key():
    tx = jitted(oht.clip_by_moment(optax.add_noise(0.1, 0.55, jax.random.key(0))))
    grads = jnp.ones(3)
    state = tx.init(grads)
    updates, new_state = tx.update(grads, state)
    assert np.all(np.isfinite(updates))
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_the_estimator_measures_and_changes_nothing():
    grads = heavy_gradients(30)
    for alpha in (1.0, 1.5, 2.0):
        _, _, state = follow(oht.clip_by_moment(b2=0.9, alpha=alpha), grads)
        estimator = oht.adaptive_coordinate_threshold(b2=0.9, alpha=alpha)
        updates, _, estimate = follow(estimator, grads)
        # Fused with other operations: the last bit may differ.
        assert_trees_close(estimate.threshold, state.threshold, 1e-6)
        for u, g in zip(updates, grads, strict=True):
            assert_trees_equal(u, jax.tree.map(np.float32, g))


def test_the_estimator_passes_bad_numbers_on_and_leaves_them_out():
    tx = oht.adaptive_coordinate_threshold(b2=0.5)
    _, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    updates, after = tx.update(jnp.array([np.nan, np.inf, 1.0]), state)
    np.testing.assert_array_equal(updates, [np.nan, np.inf, 1.0])
    np.testing.assert_array_equal(after.threshold, [0.5, 0.5, 0.75])


@pytest.mark.parametrize(
    ("scope", "normalize"),
    only(
        {("coordinate", False), ("leaf", True), ("global", False)},
        itertools.product(("coordinate", "leaf", "global"), (False, True)),
    ),
)
def test_the_report_tells_what_was_taken_away(scope, normalize):
    make = functools.partial(
        oht.clip_by_moment,
        oht.ema(0.5, debias=False),
        b2=0.5,
        eps=0.0,
        scope=scope,
        normalize=normalize,
    )
    grads = heavy_gradients(6)
    silent, told = (jitted(make(report=report)) for report in (False, True))
    states = [tx.init(grads[0]) for tx in (silent, told)]
    for g in grads:
        want, states[0] = silent.update(g, states[0])
        updates, states[1] = told.update(g, states[1])
        assert_trees_close(updates, want, 1e-6)
        state = states[1]
        assert (states[0].clipped, states[0].kept, states[0].raw) == (None,) * 3
        raw, out = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]).astype(float)
            for t in (state.raw, updates)
        )
        norms = np.linalg.norm(out), np.linalg.norm(raw)
        np.testing.assert_allclose(state.kept, norms[0] / norms[1], rtol=1e-5)
        share = np.mean(np.abs(out) < 0.999 * np.abs(raw))
        np.testing.assert_allclose(state.clipped, share, atol=1e-6)
    if not normalize:  # without units it is the average itself
        assert_trees_close(state.raw, oht.get_momentum(state), 1e-6)
    assert 0 < state.kept <= 1


def test_it_is_no_guard_for_an_optimizer():
    """As its docstring says: it clips 42% of calm gradients, and steps by chance."""
    rng = np.random.default_rng(0)
    grads = jnp.asarray(rng.normal(size=(400, 500)), jnp.float32)
    tx = oht.clip_by_moment(eps=0.0)

    def step(state, grad):
        updates, state = tx.update(grad, state)
        return state, jnp.mean(jnp.abs(updates) < jnp.abs(grad))

    run = jax.jit(lambda grads: jax.lax.scan(step, tx.init(grads[0]), grads)[1])
    shares = run(grads)
    assert 0.41 < float(jnp.mean(shares[300:])) < 0.44
    around, bare = oht.clip_by_moment(optax.adamw(1e-3), eps=0.0), optax.adamw(1e-3)
    for size, is_clipped in ((1.0, False), (1e-6, True)):
        params, grad = jnp.ones(3), size * jnp.array([1.0, -1.0, 2.0])
        got, want = one_step(around, grad, params), one_step(bare, grad, params)
        assert bool(jnp.all(jnp.abs(got) < 0.1 * jnp.abs(want))) == is_clipped
