import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_heavytail as oht
from optax_heavytail._stochastic_rounding import stochastic_round
from tests.in_time import only

SEEDS = jnp.arange(20_000, dtype=jnp.uint32)

NARROW = {
    "ema": lambda: oht.ema(0.9, debias=False, accumulator_dtype=jnp.bfloat16),
    "trace": lambda: oht.trace(0.9, accumulator_dtype=jnp.bfloat16),
    "estimator": lambda: oht.adaptive_coordinate_threshold(
        threshold_dtype=jnp.bfloat16
    ),
    "clip_by_moment": lambda: oht.clip_by_moment(
        scope="leaf", threshold_dtype=jnp.bfloat16
    ),
    "acclip": lambda: oht.acclip(
        0.1, mu_dtype=jnp.bfloat16, threshold_dtype="bfloat16"
    ),
    "gclip": lambda: oht.gclip(0.1, 1.0, mu_dtype=jnp.bfloat16),
    "cclip": lambda: oht.cclip(0.1, 1.0, mu_dtype=jnp.bfloat16),
    "lambc": lambda: oht.lambc(0.1, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16),
}


def states_after(tx, grads, steps):
    """The state after ``steps`` updates by a function of the step."""

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(
            0, steps, lambda i, s: tx.update(grads(i), s)[1], state
        )

    return run(tx.init(grads(0)))


@jax.jit
def roundings(x):
    return jax.vmap(lambda seed: stochastic_round(x, seed))(SEEDS).astype(jnp.float32)


@given(st.floats(2.0**-115, 2.0**126, width=32), st.booleans())
def test_only_the_neighbours_occur_and_their_mean_is_the_number(size, negative):
    x = jnp.float32(-size if negative else size)
    nearest = x.astype(jnp.bfloat16)
    values = np.asarray(roundings(x), np.float64)
    found = np.unique(values)
    assert len(found) <= 2
    if float(nearest) == float(x):
        assert found.tolist() == [float(x)]
        return
    assert abs(found - float(x)).max() < 2**-7 * size
    gap = 2.0 ** (np.floor(np.log2(size)) - 7)
    # The standard deviation of one rounding is at most half a gap; 6 of their mean's.
    assert abs(values.mean() - float(x)) < 6 * gap / 2 / np.sqrt(len(SEEDS))


def test_errors_of_neighbours_and_of_successive_steps_are_uncorrelated():
    x = jnp.full((200, 200), 1 + 2**-9)
    key = jax.random.bits(jax.random.key(0), (2,), jnp.uint32)
    round_once = jax.jit(stochastic_round)
    first, second = (
        np.asarray(round_once(x, seed), np.float64) - float(x[0, 0]) for seed in key
    )

    def correlation(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    for a, b in (
        (first, second),
        (first[1:], first[:-1]),
        (first[:, 1:], first[:, :-1]),
    ):
        assert abs(correlation(a, b)) < 5 / np.sqrt(a.size)


EMA = NARROW["ema"]

PAIRS = {  # what reads two fields of which each entry was rounded from the same number
    "momentum and threshold": (
        lambda: oht.acclip(
            0.1, b1=0.9, b2=0.9, mu_dtype=jnp.bfloat16, threshold_dtype=jnp.bfloat16
        ),
        lambda s: (oht.get_momentum(s)["a"], oht.get_threshold(s)["a"]),
    ),
    "both of Adam": (
        lambda: oht.scale_by_adam(
            0.9, 0.9, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16
        ),
        lambda s: (optax.tree.get(s, "mu")["a"], optax.tree.get(s, "nu")["a"]),
    ),
    "leaves": (EMA, lambda s: oht.get_momentum(s).values()),
    "groups": (
        lambda: optax.partition({"x": EMA(), "y": EMA()}, {"a": "x", "b": "y"}),
        lambda s: oht.get_momentum(s).values(),
    ),
}


@pytest.mark.parametrize("name", only({"momentum and threshold", "groups"}, PAIRS))
def test_fields_leaves_and_groups_are_rounded_independently(name):
    factory, read = PAIRS[name]
    tx = factory()
    grads = {name: jnp.ones(10_000) for name in "ab"}
    update = jax.jit(tx.update)
    _, state = update(grads, tx.init(grads), grads)
    first, second = (np.asarray(leaf, np.float64) for leaf in read(state))
    assert len(np.unique(first)) == len(np.unique(second)) == 2
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(first.size)


def test_special_numbers():
    largest = float(jnp.finfo(jnp.float32).max)
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0, -0.0, largest, -largest])
    each = jax.jit(jax.vmap(stochastic_round, (None, 0)))
    for rounded in np.asarray(each(x, SEEDS[:50]), np.float64):
        assert rounded[:2].tolist() == [np.inf, -np.inf]
        assert np.isnan(rounded[2])
        assert rounded[3:5].tolist() == [0, 0]
        assert np.signbit(rounded[3:5]).tolist() == [False, True]
        assert np.all(np.isfinite(rounded[5:]))


def test_the_slope_is_that_of_the_number_itself():
    def value(x):
        return jnp.sum(3 * stochastic_round(x, jnp.uint32(0)).astype(jnp.float32))

    assert jax.grad(value)(jnp.array([1.3, -2.7])).tolist() == [3, 3]


def test_bfloat16_second_moment_does_not_stall():
    def ones(_):
        return jnp.ones(1_000)

    naive = optax.adamw(1e-3, b2=0.999)
    narrow_params = jnp.ones(1_000, jnp.bfloat16)
    step = jax.jit(
        lambda s: jax.lax.fori_loop(
            0,
            10_000,
            lambda _, s: naive.update(jnp.ones_like(narrow_params), s, narrow_params)[
                1
            ],
            s,
        )
    )
    stalled = step(naive.init(narrow_params))
    assert np.all(np.asarray(optax.tree.get(stalled, "nu"), float) == 0.5)

    ours = states_after(oht.scale_by_adam(nu_dtype=jnp.bfloat16), ones, 10_000)
    nu = ours.inner_state.nu
    assert nu.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(nu, float), 1, rtol=0.02)
    assert np.asarray(nu, float).mean() == pytest.approx(1 - 0.999**10_000, rel=1e-3)


@pytest.mark.parametrize(
    ("b2", "steps"), only({(0.99, 500)}, [(0.99, 500), (0.999, 5_000)])
)
def test_thresholds_follow_gradients_that_fall_100_fold(b2, steps):
    def grads(i):
        return jnp.full(1_000, jnp.where(i < steps, 1.0, 0.01))

    wide, narrow = (
        np.asarray(
            oht.get_threshold(
                states_after(
                    oht.adaptive_coordinate_threshold(b2, threshold_dtype=dtype),
                    grads,
                    3 * steps,
                )
            ),
            float,
        )
        for dtype in (None, jnp.bfloat16)
    )
    # Each coordinate is right but for the noise of its roundings, which the average
    # forgets like everything else; their mean is right.
    np.testing.assert_allclose(narrow.mean(), wide.mean(), rtol=0.02)
    np.testing.assert_allclose(narrow, wide, rtol=0.5)

    # What rounding to the nearest neighbour makes of it: it stops on the way.
    def nearest(i, tau):
        new = b2 * tau.astype(jnp.float32) + (1 - b2) * grads(i)
        return new.astype(jnp.bfloat16)

    start = jnp.zeros(1_000, jnp.bfloat16)
    stuck = jax.jit(lambda t: jax.lax.fori_loop(0, 3 * steps, nearest, t))(start)
    assert np.all(np.asarray(stuck, float) > 1.5 * wide)


@pytest.mark.parametrize("name", only({"acclip", "lambc", "clip_by_moment"}, NARROW))
def test_every_bfloat16_state_has_a_key_that_changes(name):
    params = {"a": jnp.linspace(0.1, 2.0, 64), "b": jnp.ones(())}
    tx = NARROW[name]()
    update = jax.jit(tx.update)
    state = tx.init(params)
    keys = []
    for _ in range(3):
        _, state = update(params, state, params)
        found = optax.tree.get_all_with_path(state, "key")
        assert all(value.dtype == jnp.uint32 for _, value in found)
        keys.append(np.concatenate([value for _, value in found]).tolist())
    assert len({tuple(key) for key in keys}) == 3
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(state)}
    assert "bfloat16" in dtypes


def test_the_noise_is_that_of_the_key():
    tx = oht.ema(0.9, debias=False, accumulator_dtype=jnp.bfloat16)
    grads = jnp.linspace(0.1, 2.0, 1_000)
    state = tx.init(grads)
    other = state._replace(key=jnp.array([1, 2], jnp.uint32))
    update = jax.jit(tx.update)
    first, again, different = (
        update(grads, s)[1].inner_state.ema for s in (state, state, other)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, different)


def test_wide_states_have_no_key():
    for dtype in (None, jnp.float32):
        state = oht.scale_by_adam(mu_dtype=dtype, nu_dtype=dtype).init(jnp.ones(2))
        assert isinstance(state, optax.ScaleByAdamState)
