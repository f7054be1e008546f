"""Step sizes and thresholds from the theory."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from optax_heavytail._schedules import batch_growth, normalized, survey, theory
from tests.in_time import only

COUNTS = (0, 1, 2, 9, 999, 10**6)


def _check(schedule, formula):
    """At Python, numpy and traced counts; steps k are counted from 1."""
    for count in COUNTS:
        # A power in float32: 1e-7 times the logarithm of its argument.
        for got in (schedule(count), schedule(np.int32(count))):
            np.testing.assert_allclose(got, formula(count + 1), rtol=1e-6)
    traced = jax.jit(jax.vmap(schedule))(jnp.array(COUNTS))
    want = [formula(count + 1) for count in COUNTS]
    np.testing.assert_allclose(traced, want, rtol=1e-6)
    assert traced.dtype == jnp.float32
    with jax.enable_x64(True):
        got = schedule(jnp.asarray(COUNTS[-1]))
        np.testing.assert_allclose(got, want[-1], rtol=1e-13)


def test_strongly_convex_step():
    _check(oht.strongly_convex_step(0.5), lambda k: 4 / (0.5 * (k + 1)))
    assert float(oht.strongly_convex_step(4.0)(0)) == 0.5  # 2 / mu


@pytest.mark.parametrize(
    ("order", "rate", "weight"),
    [(2.0, 3 / 4, 1 / 2), (1.5, 0.8, 0.6), (None, 0.75, 0.5)],
)
def test_normalized_momentum_of_a_known_length(order, rate, weight):
    """And the rate of the mean gradient norm: 1/4 for order 2, 1/5 for 1.5."""
    eta, beta = oht.normalized_momentum(10_000, order, scale=3.0)
    _check(eta, lambda k: 3.0 * 10_000**-rate)
    _check(beta, lambda k: 1 - 10_000**-weight)
    # What must balance: 1 / (eta T), eta / (1 - beta), (1 - beta)^((p - 1) / p).
    if order is not None:
        np.testing.assert_allclose(
            [1 - rate, rate - weight], [weight * (order - 1) / order] * 2
        )


def test_normalized_momentum_of_an_unknown_length():
    eta, beta = oht.normalized_momentum()
    _check(eta, lambda k: k**-0.75)
    _check(beta, lambda k: 1 - k**-0.5)
    with pytest.raises(ValueError, match=r"tail_order=1\.5 needs num_steps"):
        oht.normalized_momentum(tail_order=1.5)


def test_batch_for_normalized():
    assert oht.batch_for_normalized(100, 2.0) == 100
    assert oht.batch_for_normalized(101, 4 / 3) == 101**2  # a power just above it
    assert oht.batch_for_normalized(10, 1.5) == 32  # of 31.6
    with pytest.raises(ValueError, match="must be further above 1"):
        oht.batch_for_normalized(1e6, 1.001)


@pytest.mark.parametrize("order", [1.2, 1.5, 2.0, 2])
def test_clipping_threshold(order):
    _check(oht.clipping_threshold(3.0, order), lambda k: 3.0 * k ** (1 / order))
    assert float(oht.clipping_threshold(3.0, order)(0)) == 3.0


def test_clipping_threshold_of_a_tree():
    bounds = {"w": np.float32([1.0, 2.0]), "b": 4.0}
    schedule = oht.clipping_threshold(bounds, 1.5)
    got = jax.jit(schedule)(7)
    np.testing.assert_allclose(got["w"], [4.0, 8.0], rtol=1e-6)
    np.testing.assert_allclose(got["b"], 16.0, rtol=1e-6)


@pytest.mark.parametrize("order", [1.2, 1.5, 2.0])
@pytest.mark.parametrize("steps", [1, 1000, 10**7])
def test_nonconvex_schedules_are_constant(order, steps):
    a = order
    _check(
        oht.nonconvex_step(0.3, steps, order),
        lambda k: 0.3 * steps ** (-a / (3 * a - 2)),
    )
    _check(
        oht.nonconvex_threshold(2.0, steps, order),
        lambda k: 2.0 * steps ** (1 / (3 * a - 2)),
    )


def test_hyperparameters_may_be_traced():
    @jax.jit
    def values(x, order):
        return (
            oht.strongly_convex_step(x)(3),
            oht.clipping_threshold(x, order)(3),
            oht.nonconvex_step(x, 100 * x, order)(3),
            oht.nonconvex_threshold(x, 100 * x, order)(3),
        )

    want = (
        4 / (2 * 5),
        2 * 4 ** (1 / 1.5),
        2 * 200 ** (-1.5 / 2.5),
        2 * 200 ** (1 / 2.5),
    )
    np.testing.assert_allclose(values(2.0, 1.5), want, rtol=1e-6)


def test_they_fit_optax():
    tx = optax.scale_by_schedule(oht.strongly_convex_step(1.0))
    state = tx.init(jnp.zeros(1))
    for want in (2.0, 4 / 3, 1.0):
        updates, state = tx.update(jnp.ones(1), state)
        np.testing.assert_allclose(updates, want, rtol=1e-6)


def _starts(t_0, t_mult, number):
    """The counts at which cycles start, in whole Python numbers."""
    starts, length = [0], float(t_0)
    for _ in range(number):
        starts.append(starts[-1] + round(length))
        length *= t_mult
    return starts


@pytest.mark.parametrize(
    ("t_0", "t_mult"), [(1, 1), (7, 1), (1, 2), (10, 2), (10, 1.5), (3, 1.1), (5, 3)]
)
def test_warm_restarts_are_exact_at_every_restart(t_0, t_mult):
    """At the start of each cycle the maximum, just before it the end of a cosine."""
    most = {1: 50, 1.5: 40, 1.1: 150, 2: 27, 3: 17}[t_mult]
    starts = _starts(t_0, t_mult, most)
    starts = [s for s in starts if s < 2**31]
    schedule = jax.jit(jax.vmap(oht.warm_restarts(3.0, t_0, t_mult, min_value=1.0)))
    np.testing.assert_array_equal(schedule(np.array(starts, np.int32)), 3.0)
    lengths = np.diff(starts)
    last = np.array(starts[1:], np.int32) - 1
    position = (lengths - 1) / lengths
    want = 1 + (1 + np.cos(np.pi * position))
    # The cosine of a number near pi in float32.
    np.testing.assert_allclose(schedule(last), want, rtol=0, atol=1e-6)


def test_warm_restarts_within_the_cycles():
    schedule = oht.warm_restarts(2.0, 4, 2, min_value=0.5)
    got = [schedule(count) for count in range(4 + 8 + 16)]
    want = [
        0.5 + 0.75 * (1 + np.cos(np.pi * k / length))
        for length in (4, 8, 16)
        for k in range(length)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_warm_restarts_at_large_counts():
    """Where a float32 no longer tells one count from the next."""
    schedule = jax.jit(oht.warm_restarts(1.0, 1000))
    for count in (2**24 + 1, 10**9, 2**31 - 1000):
        phase = count % 1000 / 1000
        want = (1 + np.cos(np.pi * phase)) / 2
        np.testing.assert_allclose(schedule(count), want, atol=1e-6)
    doubling = jax.jit(oht.warm_restarts(1.0, 1, 2))
    for power in range(20, 31):  # a cycle starts at each 2^n - 1
        assert float(doubling(2**power - 1)) == 1.0
        assert float(doubling(2**power - 2)) < 1e-6
    assert np.isfinite(doubling(2**31 - 1))


def test_warm_restarts_are_those_of_sgdr_in_optax():
    """There for a fixed number of cycles, and each warms up."""
    cycles = [
        {"init_value": 2.0, "peak_value": 2.0, "end_value": 0.5, "warmup_steps": 0}
        | {"decay_steps": 5 * 2**i}
        for i in range(4)
    ]
    counts = jnp.arange(5 * 15)
    want = jax.vmap(optax.sgdr_schedule(cycles))(counts)
    got = jax.vmap(oht.warm_restarts(2.0, 5, 2, 0.5))(counts)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_transformer_schedule():
    dim, warmup = 512, 4000
    _check(
        oht.transformer_schedule(dim, warmup, scale=2.0),
        lambda k: 2.0 * dim**-0.5 * min(k**-0.5, k * warmup**-1.5),
    )
    rates = jax.vmap(oht.transformer_schedule(dim, warmup))(jnp.arange(3 * warmup))
    assert int(jnp.argmax(rates)) == warmup - 1
    np.testing.assert_allclose(jnp.max(rates), (dim * warmup) ** -0.5, rtol=1e-6)
    assert np.all(np.diff(rates[:warmup]) > 0)
    assert np.all(np.diff(rates[warmup:]) < 0)


def test_neumann_momentum():
    _check(oht.neumann_momentum(), lambda k: min(max(1 - 1 / (1 + k), 0.5), 0.9))
    _check(oht.neumann_momentum(0.6, 0.99), lambda k: min(max(k / (1 + k), 0.6), 0.99))
    with pytest.raises(ValueError, match="minimum must be at most maximum"):
        oht.neumann_momentum(0.9, 0.5)


DECAYING = {
    "steps": optax.piecewise_constant_schedule(0.8, {40: 0.25, 80: 0.25}),
    "cosine": optax.cosine_decay_schedule(0.8, 120),
    "linear to zero": optax.linear_schedule(0.8, 0.0, 100),
    "warm-up": optax.warmup_cosine_decay_schedule(0.0, 0.8, 20, 120),
    "constant": optax.constant_schedule(0.8),
}


@pytest.mark.parametrize("multiple_of", only({8}, [1, 8]))
@pytest.mark.parametrize("name", DECAYING)
def test_grow_batch_keeps_the_ratio_and_the_examples(name, multiple_of):
    schedule, steps, batch, most = DECAYING[name], 120, 32, 200
    plan = oht.grow_batch(schedule, steps, batch, most, multiple_of=multiple_of)
    rates, sizes = plan.learning_rate, plan.batch_size
    assert len(rates) == len(sizes) <= steps
    # As many examples, up to one last batch.
    assert steps * batch <= np.sum(sizes) < steps * batch + sizes[-1]
    assert np.all(sizes % multiple_of == 0)
    assert np.min(sizes) == batch
    assert np.max(sizes) <= most // multiple_of * multiple_of
    assert np.all(np.diff(sizes) >= 0)
    # Each update has the ratio of the schedule after as many examples.
    seen = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    base = np.asarray(jax.vmap(schedule)(jnp.asarray(seen // batch)), np.float64)
    np.testing.assert_allclose(rates / sizes, base / batch, rtol=1e-6)
    # The rate keeps its peak while the batch can grow, to what a multiple leaves.
    peaks = np.maximum.accumulate(base)
    free = (sizes < np.max(sizes)) & (peaks > 0)
    assert np.all(rates[free] <= peaks[free] * (1 + 1e-5))
    assert np.all(rates[free] > peaks[free] * (1 - multiple_of / sizes[free]) - 1e-9)


def test_grow_batch_by_hand():
    decay = optax.piecewise_constant_schedule(0.8, {4: 0.5, 8: 0.25})
    plan = oht.grow_batch(decay, 24, 4, max_batch_size=16)
    # Eight updates at half the rate are four of twice the batch, and so on.
    assert plan.batch_size.tolist() == [4] * 4 + [8] * 2 + [16] * 4
    want = [0.8] * 4 + [0.8] * 2 + [0.4] * 4
    np.testing.assert_allclose(plan.learning_rate, want, rtol=1e-6)


def test_the_schedule_of_a_plan():
    plan = oht.grow_batch(DECAYING["steps"], 120, 32, 64)
    schedule = jax.jit(plan.schedule())
    counts = (0, len(plan.learning_rate) - 1, len(plan.learning_rate), 10**6)
    for count in counts:
        want = plan.learning_rate[min(count, len(plan.learning_rate) - 1)]
        np.testing.assert_allclose(schedule(count), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps must be .*got 0"),
        ({"batch_size": 30, "multiple_of": 4}, "multiple of 4, got 30"),
        ({"max_batch_size": 31}, "max_batch_size must be .*at least 32, got 31"),
        ({"multiple_of": 0}, "multiple_of must be .*got 0"),
    ],
)
def test_grow_batch_names_bad_numbers(change, message):
    kwargs = {"num_steps": 10, "batch_size": 32, "max_batch_size": 64} | change
    with pytest.raises(ValueError, match=message) as error:
        oht.grow_batch(DECAYING["cosine"], **kwargs)
    assert "\n" not in str(error.value)


def test_warm_restarts_take_numbers_that_are_arrays():
    want = oht.warm_restarts(1.0, 2, 2)
    got = oht.warm_restarts(1.0, np.int32(2), jnp.array(2.0))
    assert [got(k) for k in range(9)] == [want(k) for k in range(9)]


@pytest.mark.parametrize("rate", [np.nan, np.inf, -0.5])
def test_grow_batch_names_a_bad_rate(rate):
    def schedule(count):
        return jnp.where(count == 2, rate, 0.5)

    message = rf"learning_rate must be in \[0, inf\), got {rate} at count 2"
    with pytest.raises(ValueError, match=message):
        oht.grow_batch(schedule, 4, 4, 16)
    with pytest.raises(TypeError, match=r"must be a schedule, got 0.1"):
        oht.grow_batch(0.1, 4, 4, 16)  # pyright: ignore[reportArgumentType]


def test_warm_restarts_name_bad_numbers():
    for change in (
        {"t_0": 0},
        {"t_0": 2.5},
        {"t_mult": 0.5},
        {"t_mult": 1.0001},
        {"max_value": -1.0},
    ):
        name, value = next(iter(change.items()))
        with pytest.raises(ValueError, match=f"{name} must be .*got {value}"):
            oht.warm_restarts(**{"max_value": 1.0, "t_0": 2} | change)


def test_all_are_exported():
    """But for the two helpers that tell where cycles start and end."""
    public = {
        name
        for module in (theory, normalized, survey, batch_growth)
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and value.__module__ == module.__name__
    }
    public -= {"restarts", "cycle_at"}
    assert public <= set(oht.__all__)
    assert len(public) == 10
