"""compress_state: one byte for each number of a state."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_heavytail as oht
from optax_heavytail._compress_state import decode, encode
from tests import compilation
from tests.compare import assert_trees_close, assert_trees_equal

ROWS = (4, 128)
LARGEST = np.finfo(np.float32).max
SMALLEST = np.finfo(np.float32).tiny


@jax.jit
def _there_and_back(x, seed):
    return decode(encode(x, seed))


def back(x, seed=7):
    return np.asarray(_there_and_back(jnp.asarray(x, jnp.float32), jnp.uint32(seed)))


def heavy(shape=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_t(1.5, size=shape).astype(np.float32)


def neighbours(x):
    """The multiples of an eighth of the power of two below, around ``|x|``."""
    unit = 2.0 ** (np.floor(np.log2(x)) - 3)
    return np.floor(x / unit) * unit, np.ceil(x / unit) * unit


@given(
    arrays.arrays(
        np.float64,
        ROWS,
        elements=st.floats(-60, 60),  # binary logarithms
    ),
    st.integers(0, 2**32 - 1),
)
def test_a_number_becomes_one_of_its_neighbours_or_the_end_of_the_codes(logs, seed):
    x = np.float32(2.0**logs)
    got = back(x, seed)
    low, high = neighbours(np.float64(x))
    within = logs > np.max(logs, axis=1, keepdims=True) - 31
    assert np.all(((got == low) | (got == high))[within])
    # Below, the smallest code of the row: more than the number and less than the rest.
    assert np.all(got[~within] >= x[~within])
    smallest = np.max(x, axis=1, keepdims=True) * 2.0**-30
    assert np.all((got < smallest)[~within & (logs < np.max(logs) - 32)])
    signs = np.where(np.arange(ROWS[1]) % 2, -1, 1)
    signed = back(x * signs, seed)
    within = logs > np.max(logs, axis=1, keepdims=True) - 15
    right = (signed == low * signs) | (signed == high * signs)
    assert np.all(right | (~within & (signed == 0)))


@given(st.integers(0, 2**32 - 1))
def test_what_was_read_back_is_stored_as_it_is(seed):
    """A state that does not change would otherwise drift."""
    for x in (heavy(), heavy() ** 2):
        once = back(x, seed)
        np.testing.assert_array_equal(back(once, seed + 1 & 0xFFFF), once)


def test_the_mean_over_the_seeds_is_the_number():
    x = heavy() ** 2 + 1e-3
    mean = np.mean([back(x, 7919 * seed) for seed in range(400)], axis=0)
    # The distance of neighbours is at most x / 8, and a mean of 400 has a 20th of it.
    np.testing.assert_allclose(mean, x, rtol=4 * 0.5 / 8 / 20)


def test_zeros_stay_and_nothing_else_becomes_zero_in_a_row_without_signs():
    x = np.zeros(ROWS, np.float32)
    x[1, :3] = 1.0, 1e-30, SMALLEST
    x[2] = -0.0
    got = back(x)
    np.testing.assert_array_equal(got == 0, x == 0)
    assert got[1, 1] == got[1, 2] < 2.0**-31
    x[1, 3] = -1e-3  # 15 powers of two, and the rest is 0
    assert back(x)[1, 1:4].tolist() == [0, 0, pytest.approx(-1e-3, rel=0.125)]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_ends_of_float32(sign):
    x = np.full(ROWS, sign * LARGEST, np.float32)
    x[0] = sign * SMALLEST
    got = back(x)
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got, x, rtol=0.125)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_comes_back_and_changes_no_other(bad):
    for x in (heavy(), heavy() ** 2 + 1):
        with_bad = x.copy()
        with_bad[1, 2] = bad
        got, want = back(with_bad), back(x)
        np.testing.assert_array_equal(got[1, 2], np.float32(bad))
        np.testing.assert_array_equal(got[[0, 2, 3]], want[[0, 2, 3]])
        others = np.arange(ROWS[1]) != 2
        np.testing.assert_allclose(got[1, others], x[1, others], rtol=0.2, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((4096,), (1,)),
        ((64, 256), (64, 1)),
        ((3, 3, 64, 64), (3, 3, 64, 1)),
        ((3, 3, 64, 10), (3, 3, 1, 1)),
        ((5000, 1), (1, 1)),
    ],
)
def test_a_row_has_64_entries_or_more(shape, scales):
    stored = jax.eval_shape(encode, jnp.ones(shape), jnp.uint32(0))
    assert stored.codes.shape == shape
    assert stored.codes.dtype == jnp.uint8
    assert stored.scales.shape == scales
    assert stored.scales.dtype == jnp.uint16


@pytest.mark.parametrize(
    "make", [optax.adamw, oht.acclip, oht.stable_adamw], ids=lambda f: f.__name__
)
def test_two_moments_take_two_bytes_a_parameter(make):
    shapes = {"a": (300, 128), "b": (128, 512), "bias": (512,), "scalar": ()}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    state = jax.eval_shape(oht.compress_state(make(1e-3)).init, params)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert size / sum(x.size for x in params.values()) < 2.2


def test_only_large_float32_leaves_are_compressed():
    params = {
        "large": jnp.ones((64, 64)),
        "small": jnp.ones((64, 63)),
        "half": jnp.ones((64, 64), jnp.bfloat16),
        "integers": jnp.ones((64, 64)),
    }
    tx = oht.compress_state(optax.trace(0.9))
    trace = jax.eval_shape(tx.init, params).inner_state.trace
    assert isinstance(trace["large"], oht.CompressedArray)
    assert trace["small"].dtype == jnp.float32
    assert trace["half"].dtype == jnp.bfloat16


def _noisy_steps(tx, number, scales, dtype=jnp.float32):
    """The last state, and root mean squares of updates, for gradients of such sizes."""
    params = jnp.zeros((64, len(scales)), dtype)

    def step(state, key):
        grads = jax.random.normal(key, params.shape) * scales[None]
        updates, state = tx.update(grads.astype(dtype), state, params)
        return state, jnp.sqrt(jnp.mean(updates**2, axis=0))

    keys = jax.random.split(jax.random.key(0), number)
    run = jax.jit(
        lambda keys: jax.lax.scan(step, tx.init(params), keys),
        compiler_options=compilation.as_users_do(),  # many steps
    )
    return run(keys)


@pytest.mark.nightly
def test_a_second_moment_of_long_memory_follows_and_fluctuates_by_a_fifth():
    """To the nearest it would stay where it is: 0.001 is less than half a sixteenth."""
    scales = jnp.logspace(-4, 0, 64)
    state, sizes = _noisy_steps(oht.compress_state(optax.adamw(1e-3)), 1500, scales)
    nu = optax.tree.get(oht.decompress_state(state), "nu")
    relative = np.asarray(nu / scales[None] ** 2)
    assert abs(relative.mean() - (1 - 0.999**1500)) < 0.02
    assert 0.1 < relative.std() < 0.25
    _, want = _noisy_steps(optax.adamw(1e-3), 1500, scales)
    got, want = (np.asarray(x[-500:].mean(axis=0)) for x in (sizes, want))
    np.testing.assert_allclose(got, want, rtol=0.1)
    # The mean of 1 / sqrt(v) is a little above that of a v without noise.
    assert 1 < np.mean(got / want) < 1.04


def test_a_small_gradient_beside_large_ones_makes_no_long_step():
    """Its second moment is below the codes, and 0 would leave 1 / eps."""
    scales = jnp.ones(64).at[5].set(1e-6)
    tx = oht.compress_state(optax.adamw(1.0))
    _, sizes = _noisy_steps(tx, 30, scales)
    assert sizes[2:].max() < 2


def test_it_goes_on_bit_for_bit_from_what_was_stored():
    tx = oht.compress_state(optax.adamw(1e-2))
    update = jax.jit(tx.update)
    params = {"w": heavy((64, 64))}
    grads = [{"w": heavy((64, 64), seed)} for seed in range(4)]
    state, history = jax.jit(tx.init)(params), []
    for g in grads[:2]:
        _, state = update(g, state, params)
    stored = jax.tree.map(np.array, state)
    for start in (state, jax.tree.map(jnp.asarray, stored)):
        for g in grads[2:]:
            updates, start = update(g, start, params)
        history.append((updates, start))
    assert_trees_equal(*history)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (AxisType.Explicit, P(None, "x")),
        pytest.param(AxisType.Auto, P("x", "y"), marks=pytest.mark.nightly),
        pytest.param(AxisType.Auto, P("x"), marks=pytest.mark.nightly),
        pytest.param(AxisType.Explicit, P("x", "y"), marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_codes_are_spread_as_the_parameters_are(kind, spec):
    devices = jax.devices("cpu")[:4]
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2, devices=devices)
    tx = oht.compress_state(optax.adamw(1e-2))
    params, grads = jnp.ones((64, 256)), jnp.asarray(heavy((64, 256)))
    want = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, spec)
        params, grads = (jax.device_put(x, place) for x in (params, grads))
        # Where types tell no shardings a program would not know them.
        state = (jax.jit(tx.init) if spec == P(None, "x") else tx.init)(params)
        got = jax.jit(tx.update)(grads, state, params)
        for s in (state, got[1]):
            codes = optax.tree.get(s, "mu").codes
            assert codes.sharding.is_equivalent_to(params.sharding, 2)
        assert jax.tree.map(jax.typeof, got[1]) == jax.tree.map(jax.typeof, state)
    assert_trees_close(got, want, 1e-6)


def test_one_pass_finds_both_ends_of_a_row():
    x, seed = jnp.zeros((64, 128)), jnp.uint32(0)
    program = jax.jit(encode).lower(x, seed).as_text()
    passes = re.findall(r"stablehlo\.reduce\(.*tensor<64x128xf32>", program)
    assert len(passes) == 2  # the second one where a number is not finite


def test_the_compiler_is_not_given_the_zeros_of_a_new_state_to_reduce():
    # It would take a second for each 256 x 1024 of them.
    tx = oht.compress_state(optax.trace(0.9))
    program = jax.jit(tx.init).lower(jnp.zeros((64, 128))).compile().as_text()
    assert " reduce(" in program


def test_readers_find_arrays_in_what_was_read_back():
    tx = oht.compress_state(oht.acclip(0.1))
    params = jnp.ones((64, 64))
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    plain = oht.decompress_state({"optimizer": (state, 3)})["optimizer"][0]
    momentum = oht.get_momentum(plain)
    assert momentum.shape == params.shape
    np.testing.assert_allclose(momentum, momentum[0, 0], rtol=0.13)


@pytest.mark.parametrize("inner", [None, 3, optax.adamw])
def test_what_is_no_transform_is_refused(inner):
    with pytest.raises(TypeError, match="inner"):
        oht.compress_state(inner)
