"""Tail estimates: intervals that cover, nulls that are null, reasons for no number."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats

from optax_heavytail import diagnostics
from optax_heavytail.diagnostics.tails import (
    _surrogates,
    _tail_inference,
    _tail_intervals,
    _tail_methods,
)
from tests.in_time import in_time

METHODS = tuple(_tail_methods.METHODS)
TAIL_METHODS = METHODS[:3]
over_iterations = functools.partial(
    diagnostics.estimate_tail, over="iterations", num_null=20
)
over_coordinates = functools.partial(
    diagnostics.estimate_tail, over="coordinates", num_null=20
)
each = pytest.mark.parametrize("method", METHODS)
# The others' hundreds of estimates wait for the nightly.
each_in_time = pytest.mark.parametrize(
    "method", in_time({name: name for name in METHODS}, "hill".__eq__)
)


def student(shape, df=2.0, seed=0):
    return np.random.default_rng(seed).standard_t(df, shape)


def autoregression(rows, n, phi, seed=0):
    """Gaussian, of variance 1."""
    noise = np.random.default_rng(seed).standard_normal((rows, n + 100))
    series = scipy.signal.lfilter([1.0], [1.0, -phi], noise, axis=1)[:, 100:]
    return series * np.sqrt(1 - phi**2)


def pareto_series(rows, n, phi, seed=0, index=1.5):
    return scipy.stats.norm.sf(autoregression(rows, n, phi, seed)) ** (-1 / index)


# Intervals


COVERED = {
    "hill": (pareto_series, 1.5),
    "moment_ratio": (pareto_series, 1.5),
    "pickands": (lambda *a: pareto_series(*a)[:, :1000] + 5.0, 1.5),  # shifts are free
    "characteristic_function": (
        lambda rows, n, phi: scipy.stats.levy_stable.rvs(
            1.4, 0.5, loc=3, size=(rows, n), random_state=0
        ),
        1.4,
    ),
    "log_moment": (
        lambda rows, n, phi: scipy.stats.levy_stable.rvs(
            1.2, 0.0, size=(rows, n), random_state=0
        ),
        1.2,
    ),
}


@pytest.mark.nightly
@each_in_time
def test_nine_tenths_of_the_intervals_cover(method):
    samples, truth = COVERED[method]
    found = [over_coordinates(row, method=method) for row in samples(100, 1000, 0.0)]
    share = np.mean([e.low <= truth <= e.high for e in found])
    # A share of 100 errs by 0.03; the study in the documentation has more of them.
    assert 0.81 <= share <= 0.99
    assert all(e.low <= e.index <= e.high for e in found)


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["hill", "moment_ratio"])
def test_they_cover_series_that_depend_on_themselves(method):
    rows = pareto_series(100, 1000, 0.8, seed=1)
    found = [over_iterations(row, method=method) for row in rows]
    blind = [over_coordinates(row, method=method) for row in rows]
    assert np.mean([e.low <= 1.5 <= e.high for e in found]) >= 0.82
    widths = [np.median([e.high / e.low for e in all_]) for all_ in (found, blind)]
    assert widths[0] > 1.2 * widths[1]  # as if of half as many samples


def test_a_higher_confidence_widens_the_interval():
    x = student(300)
    ends = [
        over_iterations(x, confidence=c, num_null=n)
        for c, n in ((0.5, 20), (0.9, 20), (0.99, 199))
    ]
    # With the fewest nulls for it, one that is below all of them is heavier.
    assert ends[2].null_p_value == 1 / 200
    assert ends[2].heavier_than_null
    assert ends[2].low < ends[1].low < ends[0].low < ends[0].index
    assert ends[0].index < ends[0].high < ends[1].high < ends[2].high


def test_the_interval_of_hill_is_that_of_the_gamma_law():
    """Of k exponential numbers, to what Wilson and Hilferty leave of it."""
    found = over_coordinates(student(300))
    quantiles = scipy.stats.gamma.ppf([0.05, 0.95], 17) / 17
    np.testing.assert_allclose(
        [found.low, found.high], found.index * quantiles, rtol=2e-3
    )


@pytest.mark.parametrize(("phi", "low", "high"), [(0.0, 1.0, 1.15), (0.8, 1.5, 3.0)])
def test_what_dependence_does_to_the_variance(phi, low, high):
    rows = pareto_series(20, 4000, phi, seed=2)
    factors = [_tail_intervals.dependence_factor(row, 63) for row in rows]
    assert low <= np.median(factors) <= high
    estimates = 1 / np.asarray(diagnostics.hill(pareto_series(200, 4000, phi), 63))
    true = 63 * np.var(estimates) / np.mean(estimates) ** 2
    # The deeper tail that it looks at depends a little more on itself.
    assert 0.9 * true < np.median(factors) < 1.6 * true


def test_the_variance_of_a_sum():
    """An autoregression's sum has 1 / (1 - phi)^2 times the variance of its noise."""
    rows = autoregression(20, 4000, 0.7)
    want = (1 - 0.7**2) / (1 - 0.7) ** 2
    lengths = [_surrogates.block_length(row) for row in rows]
    assert 15 < np.median(lengths) < 60
    got = [
        _surrogates.block_variance(row, length)
        for row, length in zip(rows, lengths, strict=True)
    ]
    # One errs by about sqrt(2 * length / n), the median of 20 by a third of that.
    np.testing.assert_allclose(np.median(got), want, rtol=0.15)
    white = np.random.default_rng(0).standard_normal(4000)
    assert _surrogates.block_length(white) <= 4
    assert _surrogates.block_variance(white, 10) >= np.var(white)


def test_several_draws():
    draws = student((30, 300))
    found = over_coordinates(draws)
    indices = np.asarray(diagnostics.hill(draws, 17))
    np.testing.assert_allclose(found.index, np.median(indices), rtol=1e-5)
    # The sign test's interval for a median of 30: the 11th and the 20th.
    low, high = np.sort(indices)[[10, 19]]
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=0.06)
    assert (found.k, found.num_samples) == (17, 300)
    one = over_coordinates(draws[:1])
    assert one == over_coordinates(draws[0])


# Nulls


def test_gaussian_series_have_the_autocorrelation():
    series = pareto_series(1, 2000, 0.8)[0]
    surrogates = _surrogates.gaussian_series(series, 50, np.random.default_rng(0))
    assert surrogates.shape == (50, 2000)
    np.testing.assert_allclose(surrogates.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(surrogates.std(axis=1), 1, rtol=1e-6)
    for lag, want in ((1, 0.8), (3, 0.8**3)):
        products = surrogates[:, lag:] * surrogates[:, :-lag]
        # The correlation of 2000 such samples errs by about 0.02.
        np.testing.assert_allclose(products.mean(axis=1), want, atol=0.08)
    assert scipy.stats.kstest(surrogates[:, ::40].ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(surrogates)[0, 1:]).max() < 0.3


def test_equal_samples_have_equal_scores():
    scores = _surrogates.normal_scores(np.array([3.0, 1.0, 3.0, 0.0]))
    assert scores[0] == scores[2] > scores[1] > scores[3]
    want = scipy.stats.norm.ppf([0.75, 0.375, 0.125])
    np.testing.assert_allclose(scores[[0, 1, 3]], want, rtol=1e-5)


def test_gaussian_draws_have_scales_and_correlations():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((200, 3)) * [1.0, 10.0, 0.0]
    draws[:, 0] += 0.1 * draws[:, 1] + 7
    null = _surrogates.gaussian_draws(draws, 50, rng).reshape(-1, 3)
    want = np.cov(draws.T)
    # 10,000 draws, and scales from quartiles, which err by 8% here.
    np.testing.assert_allclose(np.cov(null.T), want, rtol=0.25, atol=1e-6)
    np.testing.assert_allclose(
        null.mean(axis=0)[:2] / null.std(axis=0)[:2], 0, atol=0.05
    )
    mostly_zero = np.where(np.arange(200)[:, None] % 10, 0, draws)
    null = _surrogates.gaussian_draws(mostly_zero, 50, rng).reshape(-1, 3)
    np.testing.assert_allclose(
        null.std(axis=0)[:2], mostly_zero.std(axis=0)[:2], rtol=0.1
    )


@each_in_time
def test_gaussian_noise_is_not_heavier_than_gaussian_noise(method):
    """One in twenty is; that a fifth of 40 were has a chance of 2e-3."""
    series = [over_iterations(x, method=method) for x in autoregression(40, 300, 0.6)]
    draws = [over_coordinates(x, method=method) for x in autoregression(40, 300, 0.0)]
    for found in (series, draws):
        assert np.mean([e.heavier_than_null for e in found]) < 1 / 5


@each
def test_heavy_tails_are_heavier(method):
    rows = 3 + np.abs(student((10, 300), 1.2))
    found = [over_iterations(x, method=method) for x in rows]
    least = {"pickands": 0.2, "log_moment": 0.3}.get(method, 0.95)
    assert np.mean([e.heavier_than_null for e in found]) >= least
    if least > 0.9:
        assert all(e.index < e.null_low < e.null_high for e in found)


def test_uneven_scales_need_several_draws():
    """One draw cannot tell them from a heavy tail."""
    rng = np.random.default_rng(0)
    scales = np.exp(1.5 * rng.standard_normal(300))
    sets = rng.standard_normal((30, 20, 300)) * scales
    assert np.mean([over_coordinates(x[0]).heavier_than_null for x in sets]) > 0.9
    assert np.mean([over_coordinates(x).heavier_than_null for x in sets]) < 0.2
    heavy = rng.standard_t(1.5, (20, 20, 300)) * scales
    assert np.mean([over_coordinates(x).heavier_than_null for x in heavy]) > 0.9


def test_a_null_of_the_callers():
    x, null = student(300), student((40, 300), 3.0, seed=1)
    found = over_iterations(x, null=null)
    indices = np.sort(np.asarray(diagnostics.hill(null, 17)))
    np.testing.assert_allclose(
        [found.null_low, found.null_high], indices[[1, 37]], rtol=1e-5
    )
    assert found.null_p_value == (1 + np.sum(indices <= found.index)) / 41
    draws = student((10, 300))
    same = over_coordinates(draws, null=np.stack([draws] * 20))
    assert same.null_low == same.null_high == same.index
    assert same.null_p_value == 1.0
    assert not same.heavier_than_null


def test_the_null_is_made_in_batches(monkeypatch):
    draws, null = student((10, 300)), student((25, 10, 300), 4.0, seed=1)
    whole = over_coordinates(draws, null=null)
    monkeypatch.setattr(_tail_methods, "_MAX_ELEMENTS", 4 * 10 * 300)
    parts = over_coordinates(draws, null=null)
    for name in ("null_low", "null_high", "null_p_value"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name))
    assert over_coordinates(draws).null_p_value is not None


# Goodness of fit


@pytest.mark.nightly
@pytest.mark.parametrize("phi", [0.0, 0.8])
def test_what_fits_is_not_rejected(phi):
    """A fifth of 40 has a chance of 2e-3."""
    rows = pareto_series(40, 300, phi)
    values = [over_iterations(row, num_null=39).p_value for row in rows]
    assert np.mean(np.array(values) <= 0.05) < 1 / 5
    assert np.mean(values) > 0.35
    stable = scipy.stats.levy_stable.rvs(1.5, 0.5, size=(40, 300), random_state=0)
    for method in METHODS[3:]:
        values = [over_iterations(row, method=method).p_value for row in stable]
        assert np.mean(np.array(values) <= 0.05) < 1 / 5


def test_what_does_not_fit_is_rejected():
    rng = np.random.default_rng(0)
    lumps = np.concatenate([rng.uniform(1, 2, 900), rng.uniform(100, 101, 100)])
    assert over_coordinates(lumps, k=120).p_value <= 0.05
    assert over_coordinates(np.stack([lumps] * 8), k=120).p_value <= 0.1
    modes = np.concatenate([rng.normal(-3, 1, 500), rng.normal(3, 1, 500)])
    for method in METHODS[3:]:
        assert over_coordinates(modes, method=method).p_value <= 0.05


def test_where_the_fit_cannot_be_told_there_is_no_p_value():
    x = np.sort(np.abs(student(300)))[::-1]
    few = np.where(np.arange(300) < 68, x, 0)  # the 69th, from which excesses go, is 0
    # Half of the range is 0, but no difference of the two halves.
    halves = np.concatenate([np.zeros(150), x[:75], -x[75:150], [0]])
    for samples, method in ((few, "pickands"), (halves, "log_moment")):
        found = over_coordinates(samples, method=method)
        assert found.index > 0
        assert found.p_value is None


# No number


REASONS = {
    "not finite": (lambda x: np.where(np.arange(300) < 3, np.nan, x), "3 of 300 "),
    "infinite": (lambda x: np.where(np.arange(300) < 1, -np.inf, x), "1 of 300 "),
    "few": (lambda x: x[:99], "99 samples are too few: at least 100 are needed."),
    "none": (lambda x: x[:0], "0 samples are too few: at least 100 are needed."),
    "constant": (lambda x: np.full(300, 1.5), "All samples are equal."),
    "zero": (lambda x: np.zeros(300), "All samples are equal."),
    "mostly zero": (
        lambda x: np.where(np.arange(300) % 50 == 0, x, 0),
        "Too many samples are 0 or equal.",
    ),
}


@pytest.mark.parametrize("kind", REASONS)
@each
def test_there_is_a_reason_for_no_number(method, kind):
    change, reason = REASONS[kind]
    for estimate in (over_iterations, over_coordinates):
        found = estimate(change(student(300)), method=method)
        assert found.reason.startswith(reason)
        numbers = ("index", "low", "high", "p_value", "null_low", "null_p_value")
        assert all(getattr(found, name) is None for name in numbers)
        assert found.heavier_than_null is None


def test_reasons_of_draws():
    draws = student((10, 300))
    draws[3] = 0
    assert over_coordinates(draws).reason == "In 1 draws all samples are equal."
    assert over_coordinates(draws[:7]).reason == (
        "7 draws are too few: 1 or at least 8 are needed."
    )
    found = over_coordinates(draws[0], k=300)
    assert found.reason == "300 samples are too few: at least 301 are needed."


# The rest


@each
def test_the_scale_does_not_matter(method):
    x = student(300)
    want = over_iterations(x, method=method)
    for scale in (1e-250, 1e250):
        found = dataclasses.asdict(over_iterations(scale * x, method=method))
        assert found.keys() == dataclasses.asdict(want).keys()
        numbers = ("index", "low", "high", "p_value", "null_low", "null_high")
        for name in numbers:
            np.testing.assert_allclose(found[name], getattr(want, name), rtol=1e-4)


def test_the_same_seed_gives_the_same_estimate():
    x = student(300)
    assert over_iterations(x, seed=3) == over_iterations(x, seed=3)
    other = over_iterations(x, seed=4)
    assert other.index == over_iterations(x, seed=3).index
    assert other.null_low != over_iterations(x, seed=3).null_low


def test_an_estimate_is_plain_values():
    for x in (jnp.asarray(student(300), jnp.bfloat16), student(300).tolist()):
        found = over_iterations(x)
        assert json.loads(json.dumps(dataclasses.asdict(found))) == vars(found)
        assert type(found.heavier_than_null) is bool


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"over": "layers"}, ValueError, "over must be one of"),
        ({"method": "hil"}, ValueError, "method must be one of"),
        ({"confidence": 1.0}, ValueError, "confidence must be in"),
        ({"num_bootstrap": 19}, ValueError, "num_bootstrap must be"),
        ({"num_null": 0}, ValueError, "num_null must be"),
        ({"confidence": 0.95, "num_null": 38}, ValueError, "= 39 .* 0.95, got 38"),
        (
            {"confidence": 0.95, "null": student((38, 300))},
            ValueError,
            "null samples must be at least .* = 39",
        ),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"k": 9}, ValueError, "k must be an integer of at least 10, got 9"),
        ({"k": 20, "method": "log_moment"}, ValueError, "no k, got k=20"),
        ({"samples": np.ones((2, 300))}, ValueError, "over iterations must be"),
        ({"samples": np.ones(300, complex)}, TypeError, "must be real numbers"),
        ({"samples": ["a"]}, TypeError, "must be real numbers"),
        ({"null": np.ones((20, 100))}, ValueError, r"\(number, 300\)"),
        ({"null": np.ones((19, 300))}, ValueError, "at least 20"),
        ({"null": np.full((20, 300), np.nan)}, ValueError, "null must be finite"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    arguments = {"samples": student(300), "over": "iterations", **kwargs}
    with pytest.raises(error, match=message):
        diagnostics.estimate_tail(arguments.pop("samples"), **arguments)


def test_every_method_is_a_function_of_that_name():
    x = student(300)
    for method, spec in _tail_methods.METHODS.items():
        function = getattr(diagnostics, method)
        k = () if spec.default_k is None else (spec.default_k(300),)
        np.testing.assert_allclose(
            over_coordinates(x, method=method).index, function(x, *k), rtol=1e-4
        )
    assert _tail_inference.METHODS is _tail_methods.METHODS
