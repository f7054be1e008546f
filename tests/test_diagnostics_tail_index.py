"""Point estimators of the tail index: formulas, known laws, and no answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from optax_heavytail import diagnostics

TAIL = {
    "hill": diagnostics.hill,
    "moment_ratio": diagnostics.moment_ratio,
    "pickands": diagnostics.pickands,
}
STABLE = {
    "log_moment": diagnostics.log_moment,
    "characteristic_function": diagnostics.characteristic_function,
}
ALL = {**{name: lambda x, f=f: f(x, 40) for name, f in TAIL.items()}, **STABLE}
each_tail = pytest.mark.parametrize("name", TAIL)
each = pytest.mark.parametrize("name", ALL)


def student(shape, df=2.0, seed=0):
    return np.random.default_rng(seed).standard_t(df, shape)


def expected(name, samples, k):
    """In float64, from the definitions."""
    x = np.sort(np.abs(samples))[::-1]
    excess = np.log(x[:k] / x[k]) if k < len(x) else None
    if name == "hill":
        return 1 / np.mean(excess)
    if name == "moment_ratio":
        return 2 * np.mean(excess) / np.mean(excess**2)
    q = k // 4
    ratio = (x[q - 1] - x[2 * q - 1]) / (x[2 * q - 1] - x[4 * q - 1])
    return np.log(2) / np.log(ratio) if ratio > 1 else np.inf


# Formulas


@each_tail
@pytest.mark.parametrize("k", [4, 199])
def test_tail_estimators_are_their_formulas(name, k):
    rows = student((3, 2, 200))
    want = [[expected(name, row, k) for row in pair] for pair in rows]
    # Float32 samples, whose differences Pickands' logarithm magnifies.
    np.testing.assert_allclose(TAIL[name](rows, k), want, rtol=2e-4)
    if name != "pickands":
        np.testing.assert_allclose(TAIL[name](rows, k), want, rtol=1e-5)


@each_tail
def test_an_array_of_ks_gives_each(name):
    rows, ks = student((2, 300)), np.array([[8, 40, 41], [100, 200, 299]])
    want = [[[expected(name, row, k) for k in line] for line in ks] for row in rows]
    np.testing.assert_allclose(TAIL[name](rows, ks), want, rtol=2e-4)


def test_the_hill_plot_is_hill_at_every_k():
    rows = student((2, 50))
    ks, indices = diagnostics.hill_plot(rows)
    assert ks.tolist() == list(range(1, 50))
    want = np.stack([[expected("hill", row, k) for k in range(1, 50)] for row in rows])
    np.testing.assert_allclose(indices, want, rtol=1e-5)


def test_log_moment_is_its_formula():
    x = student((2, 401))
    logs = np.log(np.abs(x[:, :200] - x[:, 200:400]))
    want = (6 / np.pi**2 * np.var(logs, axis=1) - 0.5) ** -0.5
    np.testing.assert_allclose(diagnostics.log_moment(x), want, rtol=1e-5)


def test_the_characteristic_function_is_that_of_all_pairs():
    x = scipy.stats.levy_stable.rvs(1.4, 0.8, size=200, random_state=1)
    low, high = np.quantile(x, [0.25, 0.75])
    gaps = (x[:, None] - x)[~np.eye(200, dtype=bool)] * 1.95 / (high - low)
    frequencies = np.arange(1, 11) / 10
    squared = [np.mean(np.cos(t * gaps)) for t in frequencies]
    want = np.polyfit(np.log(frequencies), np.log(-np.log(squared)), 1)[0]
    np.testing.assert_allclose(diagnostics.characteristic_function(x), want, rtol=1e-4)


def test_choose_k_has_the_smallest_distance():
    samples = student(300)
    x = np.sort(np.abs(samples))[::-1]
    ks = np.unique(np.geomspace(10, 150, 64).astype(int))
    fits = [scipy.stats.expon(scale=np.mean(np.log(x[:k] / x[k]))) for k in ks]
    distances = [
        scipy.stats.kstest(np.log(x[:k] / x[k]), fit.cdf).statistic
        for k, fit in zip(ks, fits, strict=True)
    ]
    assert diagnostics.choose_k(samples) == ks[np.argmin(distances)]


def test_choose_k_finds_where_a_power_law_begins():
    rng = np.random.default_rng(0)
    body, tail = rng.uniform(0, 1, (50, 1800)), 1 + rng.pareto(1.5, (50, 200))
    ks = diagnostics.choose_k(np.concatenate([body, tail], axis=1))
    assert ks.shape == (50,)
    assert np.all(ks <= 250)  # beyond the tail, the fit is soon off
    indices = jax.vmap(diagnostics.hill)(jnp.asarray(np.hstack([body, tail])), ks)
    # Each has a relative error of about 1 / sqrt(k), and they are 50.
    np.testing.assert_allclose(np.median(indices), 1.5, rtol=0.1)


# Known laws


@pytest.mark.parametrize("index", [0.7, 1.5, 4.0])
@each_tail
def test_pareto(name, index):
    rows = (1 + np.random.default_rng(1).pareto(index, (300, 2000))).astype(np.float32)
    k = {"hill": 100, "moment_ratio": 100, "pickands": 1000}[name]
    shapes = 1 / np.asarray(TAIL[name](rows, k))
    # Relative variance times k; of the moment ratio with the terms of order 1/k.
    slope = 2 ** (1 / index) - 1
    spread = {
        "hill": 1.0,
        "moment_ratio": 2.0,
        "pickands": (2 ** (2 / index + 1) + 1) / (np.log(2) * slope) ** 2,
    }[name]
    error = np.sqrt(spread / k) / index
    middle = np.mean(shapes) if name == "hill" else np.median(shapes)
    bias = {"hill": 0, "moment_ratio": 0.04, "pickands": 0}[name]
    assert abs(middle * index - 1) < bias + 4 * 1.25 * error * index / np.sqrt(300)
    if name != "pickands":
        np.testing.assert_allclose(np.std(shapes), error, rtol=0.2)


@pytest.mark.parametrize("index", [1.0, 1.3, 1.7, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("name", STABLE)
def test_stable(name, index, beta):
    """Whatever the skew, the location and the scale."""
    rows = scipy.stats.levy_stable.rvs(
        index, beta, loc=30, scale=4, size=(100, 2000), random_state=2
    )
    middle = np.median(np.asarray(STABLE[name](rows)))
    # Four standard errors of the median; one estimate has nearly ten times as many.
    assert (
        abs(middle - index)
        < {"log_moment": 0.06, "characteristic_function": 0.025}[name]
    )


@pytest.mark.parametrize("name", STABLE)
def test_no_stable_index_is_above_two(name):
    rng = np.random.default_rng(0)
    for rows in (rng.uniform(size=(20, 500)), rng.standard_normal((20, 500))):
        got = np.asarray(STABLE[name](rows))
        assert np.all((got > 1) & (got <= 2))
        assert np.any(got == 2)


def test_pickands_knows_a_bounded_law():
    rows = np.random.default_rng(0).uniform(size=(20, 4000))
    assert np.all(np.isinf(diagnostics.pickands(rows, 2000)))


# What does not matter


@each
def test_scale_sign_and_order_do_not_matter(name):
    x = student((2, 400))
    order = np.random.default_rng(0).permutation(200)
    both = np.concatenate([order, order + 200])  # the halves stay, for the differences
    for same in (-x, 1e30 * x, 1e-30 * x, x[:, both]):
        np.testing.assert_allclose(ALL[name](same), ALL[name](x), rtol=2e-4)


@pytest.mark.parametrize("name", ["pickands", *STABLE])
def test_a_shift_does_not_matter_to_some(name):
    x = np.abs(student((2, 400)))
    np.testing.assert_allclose(ALL[name](x + 7), ALL[name](x), rtol=1e-3)


@each
def test_jit_and_narrow_dtypes(name):
    x = jnp.asarray(student((2, 400)), jnp.float32)
    np.testing.assert_allclose(jax.jit(ALL[name])(x), ALL[name](x), rtol=1e-5)
    for dtype in (jnp.bfloat16, jnp.float16):
        got = ALL[name](x.astype(dtype))
        assert got.dtype == jnp.float32
        # Rounding to 8 bits shifts the logarithms by 0.2%, and makes ties.
        want = ALL[name](x.astype(dtype).astype(jnp.float32))
        np.testing.assert_array_equal(got, want)
    whole = jnp.round(1e6 * x).astype(jnp.int32)
    np.testing.assert_allclose(ALL[name](whole), ALL[name](x), rtol=1e-3)
    large = np.round(1e12 * np.asarray(x, np.float64)).astype(np.int64)
    for samples in (large, large.tolist()):
        np.testing.assert_allclose(ALL[name](samples), ALL[name](x), rtol=1e-5)


@each_tail
def test_a_traced_k(name):
    x = student((2, 300))
    traced = jax.jit(TAIL[name])
    for k in (4, 77, 299):
        want = [expected(name, row, k) for row in x]
        np.testing.assert_allclose(traced(x, k), want, rtol=2e-4)
    for k in (-3, 0, 301):
        assert np.all(np.isnan(traced(x, k)))


# No answer


NOTHING = {
    "nan": lambda x: np.where(np.arange(x.size) == 5, np.nan, x),
    "inf": lambda x: np.where(np.arange(x.size) == 5, -np.inf, x),
    "constant": lambda x: np.full_like(x, 3.0),
    "zero": np.zeros_like,
    "mostly zero": lambda x: np.where(np.arange(x.size) % 40 == 0, x, 0),
}


@pytest.mark.parametrize("kind", NOTHING)
@each
def test_there_is_no_answer(name, kind):
    """Nor does a row without one spoil another."""
    good = student(400)
    rows = np.stack([NOTHING[kind](good), good])
    got = np.asarray(ALL[name](rows))
    assert np.isnan(got[0])
    assert np.isfinite(got[1])
    if name == "hill":
        assert diagnostics.choose_k(NOTHING[kind](good)) == 0 or kind == "mostly zero"


@each_tail
def test_zeros_below_the_tail_do_not_matter(name):
    x = student((2, 200))
    padded = np.concatenate([x, np.zeros((2, 200))], axis=1)
    want = [expected(name, row, 40) for row in x]
    np.testing.assert_allclose(TAIL[name](padded, 40), want, rtol=2e-4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: diagnostics.hill(np.ones(9), 9), ValueError, "k must be from 1 to 8"),
        (lambda: diagnostics.hill(np.ones(9), 0), ValueError, "from 1 to 8, got 0"),
        (
            lambda: diagnostics.moment_ratio(np.ones(9), np.array([2, 9])),
            ValueError,
            "from 1 to 8",
        ),
        (lambda: diagnostics.pickands(np.ones(9), 3), ValueError, "from 4 to 9"),
        (lambda: diagnostics.hill(np.ones(9), 2.0), TypeError, "k must be integers"),
        (lambda: diagnostics.hill(1.0, 1), ValueError, "must have an axis"),
        (lambda: diagnostics.hill(np.ones(9, complex), 1), TypeError, "real numbers"),
        (lambda: diagnostics.log_moment(np.ones(9, bool)), TypeError, "real numbers"),
        (lambda: diagnostics.log_moment(np.ones(3)), ValueError, "at least 4, got 3"),
        (lambda: diagnostics.hill_plot(np.ones(1)), ValueError, "at least 2, got 1"),
        (lambda: diagnostics.choose_k(np.ones(19)), ValueError, "at least 20, got 19"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
