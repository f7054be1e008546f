"""The oracles against the worked values and laws of the methods' derivations.

NumPy only. A value quoted with k digits is compared with k digits.
"""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from tests.oracles import methods, trajectories
from tests.oracles.units import norm


def run(factory, grads, *args, **kwargs):
    """Outputs and readings for a list of gradients, arrays or dicts."""
    step = methods.ORACLES[factory](*args, **kwargs)
    outputs, readings = [], []
    for g in grads:
        tree = g if isinstance(g, dict) else {"w": np.atleast_1d(np.float64(g))}
        with np.errstate(all="ignore"):
            u, aux = step(tree, {leaf: np.zeros_like(x) for leaf, x in tree.items()})
        outputs.append(u if isinstance(g, dict) else u["w"])
        readings.append(aux)
    return outputs, readings


def lengths(factory, norms, **kwargs):
    return [norm(u) for u in run(factory, norms, **kwargs)[0]]


@pytest.mark.parametrize("n", [0.0, 3.0, 1e-200, 1e200])
def test_a_norm_neither_overflows_nor_underflows(n):
    assert norm(np.array([0.6, -0.8]) * n) == pytest.approx(n, rel=1e-15)


# Files.


@pytest.mark.parametrize(
    "case", methods.CASES[::7], ids=lambda case: "__".join(case[:2])
)
def test_stored_trajectories_are_what_the_program_makes(case):
    """Bits on the machine that made them; elsewhere exp and log may differ by one."""
    family = case.families.split()[0]
    arrays, meta = trajectories.trajectory(case, family, methods.build)
    with np.load(trajectories.FOLDER / f"{meta['name']}.npz") as stored:
        assert set(stored.files) == set(arrays)
        for key, want in arrays.items():
            if key.startswith(("grads/", "params0/", "extra/")):
                np.testing.assert_array_equal(stored[key], want, err_msg=key)
            for got, now in zip(stored[key], want, strict=True):
                assert trajectories.error(got, now) <= meta["rtol_float64"] / 10, key


def test_every_case_has_its_files_and_no_other():
    names = sorted(
        f"{case.algorithm}__{case.configuration}__{family}"
        for case in methods.CASES
        for family in case.families.split()
    )
    assert len(set(names)) == len(names)
    for suffix in (".npz", ".json"):
        assert names == sorted(p.stem for p in trajectories.FOLDER.glob(f"*{suffix}"))


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
        got = lengths("clip_by_norm_ema", [1.0, *[ratio] * 7000], warmup_steps=0)
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
