"""PowerSign and AddSign."""

import functools
import itertools
import math

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
from tests.compare import assert_leaf_close, assert_same_bits, assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.in_time import only
from tests.registry import make_grads, make_params

# The schedule, and the same as a function of the step from 1.
DECAYS = {
    "none": (None, lambda k: 1.0),
    "linear": (
        optax.linear_schedule(1.0, 0.0, 100),
        lambda k: 1 - (k - 1) / 100,
    ),
    "cosine": (
        optax.cosine_decay_schedule(1.0, 100),
        lambda k: (1 + math.cos(math.pi * (k - 1) / 100)) / 2,
    ),
    "restarts": (
        oht.warm_restarts(1.0, t_0=20),
        lambda k: (1 + math.cos(math.pi * ((k - 1) % 20) / 20)) / 2,
    ),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    only(
        {("power", "cosine"), ("add", "restarts")},
        itertools.product(("power", "add"), DECAYS),
    ),
)
def test_100_steps_follow_the_reference(kind, name):
    decay, f = DECAYS[name]
    grads = heavy_gradients()
    if kind == "power":
        make = functools.partial(oht.scale_by_powersign, 0.9, 2.5)
        want = reference.sign_agreement(grads, 0.9, lambda k, s: 2.5 ** (f(k) * s))
    else:
        make = functools.partial(oht.scale_by_addsign, 0.9, 1.25)
        want = reference.sign_agreement(grads, 0.9, lambda k, s: 1.25 + f(k) * s)
    with jax.enable_x64(True):
        got, _, _ = follow(make(sign_decay=decay), grads)
    for step, (u, v) in enumerate(zip(got, want, strict=True)):
        for leaf in v:
            # Products of factors that are each within 1e-15.
            assert_leaf_close(u[leaf], v[leaf], 1e-13, f"{leaf}, step {step}")


def test_the_published_factors():
    grads = jnp.array([2.0])
    for tx, agree, differ in (
        (oht.scale_by_powersign(), math.e, 1 / math.e),
        (oht.scale_by_addsign(), 2.0, 0.0),
    ):
        update, state = jax.jit(tx.update), tx.init(grads)
        updates, state = update(grads, state)
        np.testing.assert_allclose(updates, 2 * agree, rtol=1e-6)
        updates, _ = update(-0.1 * grads, state)  # the average stays positive
        np.testing.assert_allclose(updates, -0.2 * differ, rtol=1e-6)


def test_a_zero_average_counts_as_no_agreement():
    """With b1 = 1/2 the averages cancel to exactly 0."""
    for tx, factor in (
        (oht.scale_by_powersign(0.5), 1),
        (oht.scale_by_addsign(0.5), 1),
    ):
        tx = jitted(tx)
        _, state = tx.update(jnp.array([4.0]), tx.init(jnp.zeros(1)))
        updates, state = tx.update(jnp.array([-2.0]), state)
        np.testing.assert_array_equal(state.mu, 0)
        np.testing.assert_allclose(updates, -2.0 * factor, rtol=1e-7)


@functools.cache
def _program(kind):
    @jax.jit
    def two_steps(x, f, first, second):
        def decay(count):
            return f / (1 + count)

        if kind == "power":
            tx = oht.scale_by_powersign(0.9, x, sign_decay=decay)
        else:
            tx = oht.scale_by_addsign(0.9, x, sign_decay=decay)
        _, state = tx.update(first, tx.init(first))
        return tx.update(second, state)[0]

    return two_steps


_numbers = st.one_of(
    st.just(0.0), st.floats(-30, 30).map(lambda e: 10**e), st.floats(-1, 1, width=32)
)
_vectors = hnp.arrays(np.float32, (4,), elements=_numbers.map(np.float32))


@pytest.mark.parametrize("kind", ["power", "add"])
@hypothesis.settings(max_examples=60)  # compiled once
@hypothesis.given(
    first=_vectors,
    second=_vectors,
    x=st.floats(0.25, 8.0, width=32),
    f=st.floats(0.0, 1.0, width=32),
    scale=st.sampled_from([2.0**-20, 0.5, 2.0**20]),
    order=st.permutations(range(4)),
)
def test_properties(kind, first, second, x, f, scale, order):
    program = _program(kind)
    u = np.float64(program(x, f, first, second))
    half = f / 2  # at the second step
    if kind == "power":
        low, high = sorted((x**-half, x**half))
    else:
        low, high = x - half, x + half
    size = np.abs(np.float64(second))
    # A float32 power and a product: within 1e-6. Denormal products may be flushed.
    normal = size > 1e-30
    assert np.all((np.abs(u) <= size * max(abs(low), high) * (1 + 1e-6)) | ~normal)
    if low >= 0:
        assert np.all((np.abs(u) >= size * low * (1 - 1e-6)) | ~normal)
        assert np.all(u * np.sign(second) >= 0)
    assert np.all(u[second == 0] == 0)
    order = list(order)
    permuted = program(x, f, first[order], second[order])
    np.testing.assert_array_equal(permuted, u[order])
    if np.all(normal | (size == 0)) and np.all(size < 1e30):
        first_scaled, second_scaled = (np.float32(scale) * g for g in (first, second))
        scaled = program(x, f, first_scaled, second_scaled)
        kept = (first == 0) | (np.abs(first) > 1e-30) & (np.abs(first) < 1e30)
        np.testing.assert_array_equal(scaled[kept], np.float32(scale * u)[kept])


def test_extreme_and_bad_gradients_do_what_is_documented():
    for tx in (oht.scale_by_powersign(), oht.scale_by_addsign()):
        tx = jitted(tx)
        grads = jnp.array([0.0, 1e-36, 1e37, jnp.inf, jnp.nan])
        updates, state = tx.update(grads, tx.init(grads))
        assert float(updates[0]) == 0
        growth = float(one_step(tx, jnp.ones(1))[0])
        np.testing.assert_allclose(updates[1:3], growth * grads[1:3], rtol=1e-6)
        assert np.all(~np.isfinite(updates[3:]))
        updates, state = tx.update(jnp.full(5, -1.0), state)
        # An infinite average keeps its sign; one that is not a number has none.
        disagreement = -1 / growth if growth > 2.5 else 0.0
        np.testing.assert_allclose(updates[3], disagreement, rtol=1e-6)
        assert np.isnan(updates[4])


@pytest.mark.parametrize(
    ("alias", "part", "number"),
    [
        (oht.powersign, oht.scale_by_powersign, "base"),
        (oht.addsign, oht.scale_by_addsign, "alpha"),
    ],
)
def test_the_alias_is_the_composition_bit_for_bit(alias, part, number):
    decay = optax.cosine_decay_schedule(1.0, 4)
    parts = optax.chain(
        part(0.8, 1.5, sign_decay=decay), oht.scale_by_learning_rate(0.1)
    )
    spelled = alias(
        **{"learning_rate": 0.1, "b1": 0.8, number: 1.5, "sign_decay": decay}
    )
    assert_same_bits(
        alias(0.1, 0.8, 1.5, sign_decay=decay), parts, make_grads(), make_params()
    )
    assert_same_bits(spelled, parts, make_grads()[:1], make_params())


def test_defaults():
    grads = make_grads()[0]
    for short, long in (
        (oht.powersign(0.1), oht.powersign(0.1, 0.9, math.e, sign_decay=None)),
        (oht.addsign(0.1), oht.addsign(0.1, 0.9, 1.0, sign_decay=None)),
    ):
        assert_trees_equal(one_step(short, grads), one_step(long, grads))
