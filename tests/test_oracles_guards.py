"""Oracles of limits from the past against worked values and laws.

NumPy only. A value quoted with k digits is compared with k digits.
"""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from tests.oracles import methods
from tests.oracles.trying import lengths, run

# clip_by_history.


def test_history_limits_by_the_past_as_it_came():
    got = lengths(
        "clip_by_history", [1, 3, 2, 100, 9, 1], factor=2.0, window=3, warmup_steps=2
    )
    # Medians of (1, 3), (1, 3, 2), (3, 2, 100), (2, 100, 9).
    assert got == [1, 3, 2, 4, 6, 1]


def test_history_of_what_is_not_finite():
    grads = [1.0, np.nan, 0.0, np.inf, 50.0]
    for nonfinite, bad in (("zero", 0.0), ("propagate", np.nan)):
        got, readings = run(
            "clip_by_history", grads, warmup_steps=0, nonfinite=nonfinite
        )
        np.testing.assert_array_equal(np.ravel(got), [1, bad, 0, bad, 2])
        assert [x["threshold"] for x in readings] == [np.inf] * 4 + [2]


@pytest.mark.parametrize("window", [4, 5, 10])
def test_history_adopts_a_new_level_as_its_window_fills(window):
    norms = [1.0] * window + [10.0] * window
    got = lengths("clip_by_history", norms, window=window, warmup_steps=1)
    clipped = [n < 10 for n in got[window:]]
    # 2 (1 + 10) / 2 passes 10: with an even window half of it is enough.
    adopted = window // 2 if window % 2 == 0 else window // 2 + 1
    assert clipped == [True] * adopted + [False] * (window - adopted)


# skip_if_unsafe.


def taken(norms, values=None, **kwargs):
    step = methods.build(
        {"factory": "skip_if_unsafe", "kwargs": {"inner": IDENTITY, **kwargs}}
    )
    values = [None] * len(norms) if values is None else values
    found = []
    for n, value in zip(norms, values, strict=True):
        g = {"w": np.array([float(n)])}
        u, aux = step(g, g, **({} if value is None else {"value": value}))
        found.append(u["w"][0] == n)
    return found, aux


IDENTITY = {"factory": "optax.chain", "args": []}


def test_one_loss_that_is_no_number_costs_one_step():
    norms, values = np.ones(300), np.linspace(3, 2, 300)
    values[150] = np.nan
    found, aux = taken(norms, values, max_value_deviations=6.0)
    assert found == [t != 150 for t in range(300)]
    assert aux["num_nonfinite"] == 1
    assert aux["num_value_spikes"] == 0


@pytest.mark.parametrize("rule", ["median", "mean"])
@pytest.mark.parametrize("max_in_a_row", [1, 3, 10])
def test_a_level_that_stays_is_taken_after_the_limit(rule, max_in_a_row):
    noise = 1 + 0.01 * np.sin(np.arange(60))
    values = np.where(np.arange(60) < 40, 1, 20) * noise
    found, aux = taken(
        np.ones(60),
        values,
        window=16,
        rule=rule,
        max_deviations=None,
        max_value_deviations=6.0,
        max_in_a_row=max_in_a_row,
    )
    assert found == [t < 40 or t >= 40 + max_in_a_row for t in range(60)]
    assert aux["num_value_spikes"] == max_in_a_row
    assert aux["limit_reached"]


def test_the_mean_rule_counts_what_it_skipped_if_it_is_to_remember_all():
    norms = [1.0, 2.0, 1.0, 2.0, 40.0, 30.0]
    kwargs = {"window": 8, "rule": "mean", "max_deviations": 6.0}
    # From 4 norms on: mean 1.5 and Bessel deviation 0.577, so 4.96 is the limit.
    assert taken(norms, **kwargs)[0] == [True] * 4 + [False] * 2
    found = taken(norms, remember="all", **kwargs)[0]
    assert found == [True] * 4 + [False, True]
    assert taken([1, 2, 1, 2, 4.9], **kwargs)[0][-1]
    assert not taken([1, 2, 1, 2, 5.0], **kwargs)[0][-1]


# clip_by_norm_ema.


def test_adagc_worked():
    grads = [
        {"a": np.array([a]), "b": np.array([b])}
        for a, b in ((5.0, 0.0), (0.5, 0.5), (5.0, 0.6), (5.0, 0.6))
    ]
    got, readings = run("clip_by_norm_ema", grads, warmup_steps=2)
    gammas = [[x["threshold/a"], x["threshold/b"]] for x in readings]
    np.testing.assert_allclose(gammas[1], [0.5, 0.5], rtol=1e-12)
    np.testing.assert_allclose([*got[2].values()], [[0.525], [0.525]], rtol=1e-12)
    np.testing.assert_allclose(gammas[2], [0.5005, 0.5005], rtol=1e-12)
    np.testing.assert_allclose([*got[3].values()], [[0.525525], [0.525525]], rtol=1e-12)
    np.testing.assert_allclose(gammas[3], [0.501, 0.501], atol=5e-7)


def test_adagc_grows_by_a_thousandth_a_step_while_it_clips():
    for ratio, steps in ((2, 645), (10, 2255), (1000, 6862)):
        norms = [1.0, *[ratio] * (steps + 2)]
        got = lengths("clip_by_norm_ema", norms, warmup_steps=0)
        clipped = np.array(got[1:]) < ratio
        np.testing.assert_allclose(got[1:100], 1.05 * 1.001 ** np.arange(99))
        assert np.log(ratio / 1.05) / np.log(1.001) == pytest.approx(steps, abs=0.5)
        assert np.argmin(clipped) in (steps, steps + 1)  # then the limit is above


@pytest.mark.parametrize(
    ("relative", "rows"),
    [
        (1.05, "0.996 19, 0.972 42, 0.896 62, 0.809 71, 0.636 79, 0.319 86"),
        (1.5, "1.00 0, 1.01 0, 1.02 2, 1.03 7, 1.03 19, 0.93 37"),
        (2.0, "1.00 0, 1.01 0, 1.02 0, 1.04 1, 1.10 6, 1.20 19"),
    ],
)
def test_adagc_fixed_points(relative, rows):
    """gamma solves E min(n / gamma, lambda) = 1; n is lognormal with median 1."""
    z = scipy.stats.norm
    for s, row in zip((0.05, 0.1, 0.2, 0.3, 0.5, 1.0), rows.split(", "), strict=True):

        def excess(gamma, s=s):
            top = np.log(relative * gamma) / s
            mean = np.exp(s**2 / 2) / gamma * z.cdf(top - s)
            return mean + relative * z.sf(top) - 1

        gamma = scipy.optimize.brentq(excess, 1e-3, 10)
        share = z.sf(np.log(relative * gamma) / s)
        quoted, percent = row.split()
        digits = len(quoted) - 2
        assert f"{gamma:.{digits}f} {100 * share:.0f}" == f"{quoted} {percent}", s


@pytest.mark.nightly
def test_adagc_settles_at_its_fixed_point():
    norms = np.exp(0.3 * np.random.default_rng(0).standard_normal(20_000))
    readings = run("clip_by_norm_ema", norms, warmup_steps=0, relative_threshold=1.5)[1]
    gamma = np.mean([x["threshold/w"] for x in readings[2000:]])
    assert gamma == pytest.approx(1.03, abs=0.02)  # 360 independent values of 0.02


def test_adagc_starts_low_with_the_minimum():
    """The typical minimum of 100 lognormal norms with median 1; the climb from it."""
    lowest = {
        s: np.exp(s * scipy.stats.norm.isf(0.5 ** (1 / 100)))
        for s in (0.1, 0.2, 0.3, 0.5)
    }
    assert [f"{x:.2f}" for x in lowest.values()] == ["0.78", "0.61", "0.48", "0.29"]
    for s, fixed_point, steps in ((0.1, 0.972, 170), (0.5, 0.636, 730)):
        climb = np.log(fixed_point / lowest[s] / 1.05) / np.log(1.001)
        assert climb == pytest.approx(steps, abs=5)


def test_why_other_thresholds_are_not_offered():
    # AGGC's authors' band: norms at most 0.6 of an average of decay 0.95 from 0.
    average = 0.0
    for step in range(1000):
        length = 1.0 if step == 0 else 0.6 * average
        average = 0.95 * average + 0.05 * length
        assert step != 1 or length == pytest.approx(0.03)
    assert float(f"{length:.0e}") == 5e-11
    # A floor of 1e-8 under a threshold that grows by a thousandth a step, to 1e-2.
    assert np.log(1e-2 / 1e-8) / np.log(1.001) == pytest.approx(13_800, rel=2e-3)


# clip_by_norm_quantile.


def test_quantile_worked():
    norms = [1, 2, 3, 100, 2]
    kwargs = {"quantile": 0.5, "window": 4}
    included = lengths("clip_by_norm_quantile", norms, **kwargs)
    assert included == [1, 1.5, 2, 2.5, 2]
    past = lengths("clip_by_norm_quantile", norms, include_current=False, **kwargs)
    assert past == [1, 1, 1.5, 2, 2]


@pytest.mark.parametrize("quantile", [0, 0.1, 0.37, 0.9, 1])
@pytest.mark.parametrize("include_current", [True, False])
def test_quantile_is_numpys(quantile, include_current):
    norms = np.random.default_rng(1).pareto(1.5, 50) + 1
    got = lengths(
        "clip_by_norm_quantile",
        norms,
        quantile=quantile,
        window=7,
        include_current=include_current,
        min_history=3,
    )
    for t, n in enumerate(norms):
        pool = (
            norms[max(0, t - 6) : t + 1]
            if include_current
            else norms[max(0, t - 7) : t]
        )
        limit = np.quantile(pool, quantile) if len(pool) >= 3 else np.inf
        assert got[t] == pytest.approx(min(n, limit), rel=1e-13)


# clip_by_zscore.


def test_zscore_worked():
    norms = [1, 2, 3, 2.5, 100, 2]
    kwargs = {"warmup_steps": 3, "min_deviation": 0.0}
    got = lengths("clip_by_zscore", norms, **kwargs)
    np.testing.assert_allclose(got, [1, 2, 3, 2.5, 2.056698, 2], atol=5e-7)
    last = run("clip_by_zscore", norms, **kwargs)[1][-1]
    assert last["mean"] == pytest.approx(2.015763, abs=5e-7)
    assert last["deviation"] ** 2 == pytest.approx(0.615143, abs=5e-7)


@pytest.mark.parametrize("log", [False, True])
def test_zscore_brings_an_ever_larger_norm_to_the_mean(log):
    norms = [1, 2, 3, 1e80]
    got = lengths("clip_by_zscore", norms, warmup_steps=3, log=log)
    mean = np.exp(np.mean(np.log(norms[:3]))) if log else 2.0
    assert got[-1] == pytest.approx(mean, rel=0.02 if log else 1e-12)


def test_zscore_without_a_limit_passes():
    norms = np.random.default_rng(2).pareto(1.5, 40)
    got = lengths("clip_by_zscore", norms, warmup_steps=3, max_zscore=np.inf)
    np.testing.assert_array_equal(got, norms)


# clip_by_norm_deviation.


def test_mean_deviation_is_levanters():
    norms = np.random.default_rng(3).pareto(1.5, 60) + 1
    got = lengths(
        "clip_by_norm_deviation", norms, max_deviations=2.0, window=10, rule="mean"
    )
    for t, n in enumerate(norms):
        past = norms[max(0, t - 10) : t]
        limit = np.mean(past) + 2 * np.std(past) if t >= 5 else np.inf
        assert got[t] == pytest.approx(min(n, limit), rel=1e-13)


@pytest.mark.parametrize("spread", [0.001, 0.4])
def test_robust_deviation_is_a_gaussians(spread):
    norms = np.exp(spread * np.random.default_rng(16).standard_normal(9))
    got = lengths("clip_by_norm_deviation", [*norms[:8], 1e9], window=8)[-1]
    logs = np.log(norms[:8])
    mad = scipy.stats.median_abs_deviation(logs, scale="normal")
    limit = np.median(logs) + 6 * max(mad, 0.05)
    assert np.log(got) == pytest.approx(limit, rel=1e-5)  # 1.4826 has five digits


@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_deviation_clips_where_skip_if_unsafe_skips(spread):
    """One statistic for both: the logarithms of a full window, their median and MAD."""
    noise = np.random.default_rng(4)
    norms = np.exp(spread * noise.standard_normal(80))
    norms[40::8] *= np.exp(noise.uniform(0, 3, 5))
    kwargs = {"max_deviations": 3.0, "window": 12}
    skips = ~np.array(taken(norms, remember="all", max_in_a_row=99, **kwargs)[0])
    clips = np.array(lengths("clip_by_norm_deviation", norms, **kwargs)) < norms
    assert np.any(clips)
    np.testing.assert_array_equal(clips, skips)


# The threshold of the past.


def test_guarded_acclip_recovers_from_a_spike():
    """One gradient times 1e4: the steps until updates are again as they were."""
    rng = np.random.default_rng(11)
    grads = 1 + 0.5 * rng.standard_normal(3000)
    grads[1000] *= 1e4

    def lost(**guards):
        got = np.ravel(
            run(
                "acclip",
                grads,
                learning_rate=-1.0,
                weight_decay=0.0,
                normalize=True,
                **guards,
            )[0]
        )
        moving = np.convolve(got, np.ones(10) / 10, "same")
        return np.sum(np.abs(moving[1000:] - np.mean(got[500:1000])) > 0.25)

    published = lost()
    guarded = lost(include_current=False, winsorise=8.0)
    assert published > 300
    assert guarded < 20


def test_the_first_step_is_the_published_one():
    got = run("clip_by_moment", [[4.0], [4.0]], b2=0.75, eps=0.0)[0]
    past = run(
        "clip_by_moment", [[4.0], [4.0]], b2=0.75, eps=0.0, include_current=False
    )[0]
    np.testing.assert_allclose(np.ravel(got), [1.0, 1.75])
    np.testing.assert_allclose(np.ravel(past), [1.0, 1.0])


def test_a_gradient_counts_as_a_multiple_of_the_past_at_most():
    grads = [[1.0], [1.0], [1e6]]
    readings = run("clip_by_moment", grads, b2=0.5, max_growth=3.0)[1]
    taus = [float(x["threshold/w"][0]) for x in readings]
    # Corrected, the past is 1: 3 enters.
    np.testing.assert_allclose(taus, [0.5, 0.75, 1.875])
