"""The oracles against the worked values and laws of the methods' derivations.

NumPy only. A value quoted with k digits is compared with k digits.
"""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats

from tests.oracles import (
    closed_forms,
    langevin,
    methods,
    normalized,
    qk_clip,
    trajectories,
)
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


# clip_by_rms and stable Adam.


def test_stable_adam_worked():
    grads = [[1.0, 1.0], [1.0, -1.0], [10.0, 1.0]]
    got = run("scale_by_stable_adam", grads, threshold=np.inf, eps=1e-12)[0]
    want = [[1, 1], [1, -0.052632], [0.527245, 0.240076]]
    clipped = run("scale_by_stable_adam", grads, eps=1e-12)[0]
    rms = [norm(a) / norm(b) for a, b in zip(got, clipped, strict=True)]
    # The document's third direction is the shortened one.
    np.testing.assert_allclose(clipped, want, atol=5e-7)
    np.testing.assert_allclose(rms, [1, 1, 1.398699], atol=5e-7)


def test_stable_adam_with_an_infinite_threshold_is_adam():
    grads = np.random.default_rng(5).standard_t(1.5, (40, 3))
    kwargs = {"b1": 0.8, "b2": 0.95, "eps": 1e-6}
    got = run("scale_by_stable_adam", grads, threshold=np.inf, **kwargs)[0]
    want = run("scale_by_adam", grads, **kwargs)[0]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_stable_adam_shortens_a_spike_by_its_closed_form():
    t = 30
    grads = [[1.0]] * (t - 1) + [[1e9]]
    free = run("scale_by_stable_adam", grads, threshold=np.inf)[0][-1]
    clipped = run("scale_by_stable_adam", grads)[0]
    bhat2 = 0.99 * (1 - 0.99 ** (t - 1)) / (1 - 0.99**t)
    assert free / clipped[-1] == pytest.approx(1 / np.sqrt(1 - bhat2))
    np.testing.assert_allclose(clipped[:-1], np.ones((t - 1, 1)), atol=2e-6)  # eps


def test_rms_of_a_leaf():
    got = run("clip_by_rms", [[3.0, -4.0, 0.0, 0.0]])[0][0]  # RMS 2.5
    np.testing.assert_allclose(got, [1.2, -1.6, 0, 0], rtol=1e-15)


# cautious, grams, cautious decay.


def constant(u):
    return lambda g, w: ({"w": np.array(u)}, {})


def test_cautious_worked():
    u, g = [1.0, -2.0, 3.0, 0.0], [[1.0, 1.0, 0.5, 1.0]]
    got = run("cautious", g, constant(u))[0][0]
    np.testing.assert_array_equal(got, [2, 0, 6, 0])
    got = run("cautious", g, constant(u), normalization="paper")[0][0]
    np.testing.assert_allclose(got, [4 / 3, 0, 4, 0], rtol=1e-15)
    assert np.round(got[0], 4) == 1.3333
    np.testing.assert_array_equal(run("grams", g, constant(u))[0][0], [1, 2, 3, 0])
    downhill = run("cautious", g, constant(-np.array(u)), descent=True)[0][0]
    np.testing.assert_array_equal(downhill, [-2, 0, -6, 0])


def test_cautious_decay_worked():
    step = methods.ORACLES["add_decayed_weights"](1.0, cautious=True)
    u, w = np.array([1.0, -2.0, 3.0, 0.0]), np.array([1.0, 1.0, -1.0, 2.0])
    got = step({"w": u}, {"w": w})[0]["w"]
    np.testing.assert_array_equal((got - u) / w, [1, 0, 0, 1])


def test_cautious_of_the_gradient_itself_is_nothing():
    u = [2.0, -3.0]
    np.testing.assert_array_equal(run("cautious", [u], constant(u))[0][0], u)


# clipped_ema.


def test_clipped_ema_worked():
    got = run("clipped_ema", [[3.0, 4.0]] * 3, decay=0.0, threshold=2.0, scope="leaf")[
        0
    ]
    np.testing.assert_allclose(got, [[1.2, 1.6], [2.4, 3.2], [3, 4]], rtol=1e-15)


def test_what_is_read_of_clipped_ema_is_of_that_step():
    got, readings = run("clipped_ema", [[3.0], [-9.0], [5.0]], threshold=1.0)
    np.testing.assert_array_equal([x["ema/w"] for x in readings], got)


def test_clipped_ema_without_a_limit_is_an_ema():
    grads = np.random.default_rng(6).standard_normal((30, 4))
    got = run("clipped_ema", grads, decay=0.8, threshold=np.inf)[0]
    np.testing.assert_allclose(got, run("ema", grads, 0.8)[0], rtol=1e-12, atol=1e-15)


def pareto_mean(function):
    """Over quantiles of a Pareto variable of index 1.5, from 1 on, minus 1."""
    share = (np.arange(2_000_000) + 0.5) / 2_000_000
    return np.mean(function(share ** (-1 / 1.5) - 1))


@pytest.mark.parametrize(
    ("tau", "huber", "clipped"),
    [(0.5, 0.652, 0.367), (2.0, 1.0, 0.845), (20.0, 1.579, 1.564)],
)
def test_clipped_innovations_settle_at_hubers_location(tau, huber, clipped):
    root = scipy.optimize.brentq(
        lambda v: pareto_mean(lambda x: np.clip(x - v, -tau, tau)), 0, 2, xtol=1e-9
    )
    # v = E min(x, v + tau) = 2 - 2 (1 + v + tau)^-1/2: exactly 1 at tau = 2.
    assert round(root, 3) == huber
    assert round(pareto_mean(lambda x: np.clip(x, -tau, tau)), 3) == clipped


def test_clipped_ema_tracks_hubers_location():
    noise = np.random.default_rng(7).pareto(1.5, 20_000)
    got = run("clipped_ema", noise, decay=0.995, threshold=2.0)[0]
    # 50 independent averages of 400 innovations of deviation 1.2.
    assert np.mean(got[2000:]) == pytest.approx(1, abs=0.05)


def test_pareto_median_and_mean():
    assert round(0.5 ** (-1 / 1.5) - 1, 3) == 0.587
    assert 1.5 / 0.5 - 1 == 2


def test_error_feedback_repairs_clipping_of_two_workers():
    """Gradients 3 (x - 1) and x + 2, threshold 1, rate 0.1, from 5: optimum 0.25.

    Clip21 moves by v before v moves: its 60 steps are 59 of these.
    """
    workers = [methods.ORACLES["clipped_ema"](0.0, 1.0, scope="leaf") for _ in range(2)]
    fed, clipped = 5.0, 5.0
    for _ in range(59):
        gradients = [3 * (fed - 1), fed + 2]
        kept = [
            step({"w": np.array([g])}, None)[0]["w"][0]
            for step, g in zip(workers, gradients, strict=True)
        ]
        fed -= 0.1 * np.mean(kept)
    for _ in range(60):
        raw = np.array([3 * (clipped - 1), clipped + 2])
        clipped -= 0.1 * np.mean(np.clip(raw, -1, 1))
    assert fed == pytest.approx(0.250014, abs=5e-7)
    assert clipped == pytest.approx(0.682, abs=5e-4)


# scale_by_stable_norm.


@pytest.mark.parametrize(
    ("b1", "b2", "cap", "want"),
    [
        (0.7, 0.9, None, [1, 1, 0.834044, 0.672244, 0.570957]),
        (0.6, 0.999, None, [1, 1, 0.958527, 0.685943, 0.527391]),
        (0.6, 0.999, 3.0, [1, 1, 1.05474, 0.895593, 0.813844]),
    ],
)
def test_stable_norm_worked(b1, b2, cap, want):
    got = lengths(
        "scale_by_stable_norm", [1, 1, 10, 1, 1], b1=b1, b2=b2, eps=0.0, max_ratio=cap
    )
    np.testing.assert_allclose(got, want, atol=5e-7)


@pytest.mark.parametrize(
    ("b1", "b2", "limit"), [(0.6, 0.999, 15.8), (0.7, 0.9, 1.41), (0.9, 0.9, 1.0)]
)
def test_stable_norm_has_a_largest_ratio(b1, b2, limit):
    """Norms proportional to the quotients of the two averages' weights attain it."""
    closed = (1 - b1) / np.sqrt((1 - b2) * (1 - b1**2 / b2))
    assert float(f"{closed:.3g}") == limit
    ages = np.arange(150 if b1 != b2 else 400)[::-1]
    history = (b1 / b2) ** ages + (0 if b1 != b2 else 1e-300)
    got = lengths("scale_by_stable_norm", history, b1=b1, b2=b2, eps=0.0)[-1]
    corrections = (1 - b1 ** len(ages)) / np.sqrt(1 - b2 ** len(ages))
    assert got * corrections == pytest.approx(closed, rel=1e-6)


def test_stable_norm_after_a_spike():
    for b1, b2, quoted in ((0.6, 0.999, 12.6), (0.7, 0.9, 0.95)):
        assert float(f"{(1 - b1) / np.sqrt(1 - b2):.2g}") == float(f"{quoted:.2g}")
        got = lengths("scale_by_stable_norm", [1.0] * 9000 + [1e9], b1=b1, b2=b2)[-1]
        assert got == pytest.approx((1 - b1) / np.sqrt(1 - b2), rel=1e-3)
    for spike, quoted in ((100, 0.30), (1000, 0.03)):
        assert round(1 / np.sqrt(1 + 1e-3 * spike**2), 2) == quoted


@pytest.mark.parametrize(
    ("spike", "adam", "stabilised", "capped"),
    [
        (100, [3.08, 0.30, 0.36], [2.45, 0.28, 0.42], [1.14, 0.99, 1.00]),
        (1000, [2.97, 0.04, 0.04], [2.47, 0.05, 0.05], [1.14, 0.99, 1.00]),
    ],
)
def test_a_spike_in_front_of_adam(spike, adam, stabilised, capped):
    """A constant direction with a spike in step 2000: the largest update near it, and
    those of steps 2051 and 2501.
    """
    norms = np.ones(2501)
    norms[1999] = spike

    def effect(lengths_in):
        got = np.ravel(run("scale_by_adam", lengths_in)[0])
        return [max(got[1999:2049]), got[2050], got[2500]]

    np.testing.assert_allclose(effect(norms), adam, atol=0.006)
    for cap, want in ((None, stabilised), (3.0, capped)):
        shortened = run("scale_by_stable_norm", norms, max_ratio=cap)[0]
        np.testing.assert_allclose(effect(shortened), want, atol=0.006)


# SPAM.


def test_spam_worked():
    got = run(
        "reset_moments",
        [1.0, 1.0, 50.0, 1.0, 1.0],
        lambda: methods.ORACLES["scale_by_spam"](0.9, 0.99, threshold=9.0, grace=1),
        4,
        warmup_steps=2,
    )[0]
    want = [0.999999, 0.857318, 0.819519, 0.01, 0.220759]
    np.testing.assert_allclose(np.ravel(got), want, atol=5e-7)


def test_spam_without_limit_or_reset_is_adam():
    grads = np.random.default_rng(8).standard_t(1.5, (40, 3))
    got = run("scale_by_spam", grads, threshold=np.inf)[0]
    np.testing.assert_array_equal(got, run("scale_by_adam", grads, eps=1e-6)[0])


def test_what_published_resets_do():
    assert round(0.1 / np.sqrt(0.001), 2) == 3.16  # moments without their counters
    assert round(1 / (1 - 0.999**2)) == 500
    excess = [1 / (1 - 0.999 ** (n + 2)) for n in (100, 500)]
    assert round(excess[0]) == 10
    assert round(excess[1], 1) == 2.5


def test_a_peak_that_is_rescaled_reverses_the_order():
    step = methods.ORACLES["clip_by_peak"](0.999, rescale=True)
    step({"w": np.array([1.0])}, None)
    for _ in range(3):  # at the second step That is 1 + 0.5003 (a - 1), and so on
        step({"w": np.array([1.0])}, None)
    got = step({"w": np.array([400.0, 90.0, 70.0])}, None)[0]["w"]
    assert got[1] < got[2] == 70
    limit = 0.0101 / 1.01
    assert 1.01 * limit == pytest.approx(0.0101)


# Normalised momentum.


def test_schedules_of_normalised_momentum():
    for p, decay, rate in ((2.0, 1 / 2, 3 / 4), (1.5, 0.6, 0.8)):
        learning_rate, b1 = normalized.normalized_momentum(10_000, p)
        assert learning_rate(0) == pytest.approx(10_000**-rate)
        assert 1 - b1(7) == pytest.approx(10_000**-decay)
        assert (p - 1) / (3 * p - 2) == pytest.approx({2.0: 1 / 4, 1.5: 0.2}[p])
    learning_rate, b1 = normalized.normalized_momentum()
    assert b1(0) == 0
    assert (learning_rate(15), b1(15)) == (1 / 8, 3 / 4)
    assert normalized.batch_for_normalized(1000, 2.0) == 1000
    assert normalized.batch_for_normalized(100, 1.5) == 1000


def test_a_normalised_update_is_as_long_as_the_rate():
    grads = np.random.default_rng(9).standard_t(1.5, (20, 3))
    for kwargs in ({"b1": 0.9}, {"b1": 0.9, "init": "first", "max_norm": 0.5}):
        got = lengths("normalized_gd", grads, learning_rate=0.25, offset=0.0, **kwargs)
        np.testing.assert_allclose(got, 0.25, rtol=1e-12)


def test_the_start_matters_from_the_second_step_on():
    grads = np.random.default_rng(10).standard_normal((3, 2))
    zero, first = (
        run("normalized_gd", grads, learning_rate=1.0, offset=0.0, b1=0.9, init=init)[0]
        for init in ("zero", "first")
    )
    np.testing.assert_allclose(zero[0], first[0], rtol=1e-14)
    assert norm(zero[1] - first[1]) > 0.1


# Smooth clips, atan2, intervals.


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ("tanh", [0.099917, 1.523188, 2.0]),
        ("arctan", [0.099795, 1.278186, 1.919052]),
        ("algebraic", [0.099875, 1.414214, 1.990074]),
        ("softsign", [0.095238, 1.0, 1.818182]),
    ],
)
def test_smooth_clips_worked(shape, want):
    got = lengths("clip_smoothly", [0.1, 2.0, 20.0], threshold=2.0, shape=shape)
    np.testing.assert_allclose(got, want, atol=5e-7)
    slope = lengths("clip_smoothly", [1e-9], threshold=2.0, shape=shape)[0] / 1e-9
    assert slope == pytest.approx(1, abs=1e-8)


def test_atan2_worked():
    from_moments = 4 / np.pi * np.arctan2([0.1, 1.0, 1.0], np.sqrt([0.01, 1.0, 0.0]))
    np.testing.assert_allclose(from_moments, [1, 1, 2], rtol=1e-15)
    got = run("scale_by_adam_atan2", [[3.0, 0.0]] * 9, b1=0.9, b2=0.9)[0]
    np.testing.assert_allclose(got, [[1.0, 0.0]] * 9, rtol=1e-14)


def test_intervals():
    grads = [[0.1, -0.5, 7.0, 0.0]]
    kwargs = {"lower": 0.25, "upper": 2.0}
    once = run("clip_by_interval", grads, **kwargs)[0]
    np.testing.assert_allclose(once[0], [0.25, -0.5, 2.0, 0.0], rtol=1e-15)
    np.testing.assert_array_equal(run("clip_by_interval", once, **kwargs)[0], once)
    for n, want in ((0.0, 0.0), (0.1, 0.25), (1.0, 1.0), (9.0, 2.0)):
        got = run("clip_by_interval", [[0.6 * n, 0.8 * n]], scope="leaf", **kwargs)[0]
        assert norm(got[0]) == pytest.approx(want)


# FastAdaBelief.


def test_fast_belief_worked():
    x, iterates = 1.0, []
    step = methods.ORACLES["scale_by_fast_belief"]()
    for _ in range(3):
        iterates.append(x)
        x -= 0.1 * step({"w": np.array([x])}, None)[0]["w"][0]
    np.testing.assert_allclose(
        [*iterates[1:], x], [0.986468, 0.973618, 0.961458], atol=5e-7
    )
    got = run("scale_by_fast_belief", iterates, amsgrad=False, step_decay=False)[0]
    means = np.ravel(run("ema", iterates, 0.9)[0])
    squares = means / np.ravel(got) - 0.01 / np.arange(1, 4)
    np.testing.assert_allclose(squares, [0.729, 0.687384, 0.6309], atol=5e-7)


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


# Matrices.


def random_matrix(rows, columns, seed=12):
    return np.random.default_rng(seed).standard_normal((rows, columns))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_orthogonalize_tends_to_the_polar_factor(shape):
    x = random_matrix(*shape)
    left, _, right = np.linalg.svd(x, full_matrices=False)
    kwargs = {"shape_scale": None, "eps": 0.0}
    converged = run("orthogonalize", [{"w": x}], steps=14, **kwargs)[0][0]["w"]
    np.testing.assert_allclose(converged, left @ right, atol=1e-13)
    for coefficients, spread in (("polar_express", 0.15), ("quintic", 0.35)):
        kwargs["coefficients"] = coefficients
        got = run("orthogonalize", [{"w": x}], **kwargs)[0][0]["w"]
        values = np.linalg.svd(got, compute_uv=False)
        np.testing.assert_allclose(values, 1, atol=spread)


def test_spectral_clips_worked():
    x = {"w": np.diag([3.0, 0.5])}
    soft = run("clip_by_spectral_norm", [x], 1.0)[0][0]["w"]
    np.testing.assert_allclose(soft, np.diag([0.948683, 0.447214]), atol=5e-7)
    hard = run("clip_by_spectral_norm", [x], 1.0, soft=False)[0][0]["w"]
    np.testing.assert_allclose(hard, np.diag([1.0, 0.5]), atol=1e-15)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4)])
def test_spectral_clips_as_polar_factors(shape):
    """The identities that an iteration can use, for rows <= columns."""
    x, c = random_matrix(*shape), 1.5
    soft, hard = (
        run("clip_by_spectral_norm", [{"w": x}], c, soft=soft)[0][0]["w"]
        for soft in (True, False)
    )

    def polar(matrix):
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        return left @ right

    wide = np.hstack([x, c * np.eye(len(x))])
    np.testing.assert_allclose(soft, c * polar(wide)[:, : shape[1]], atol=1e-14)
    y = x / c
    values, vectors = np.linalg.eigh(y.T @ y - np.eye(shape[1]))
    sign = (vectors * np.sign(values)) @ vectors.T
    folded = c / 2 * (polar(y) + y + (polar(y) - y) @ sign)
    np.testing.assert_allclose(hard, folded, atol=1e-13)


def test_newton_schulz_is_slow_on_a_spike():
    """The coupled iteration for (1 + s^2)^(-1/2), s in (0, 100], c = 1: its error in c.

    Small singular values start at 1 / 10,001 and grow by 1.5 a step.
    """
    s, errors = np.geomspace(1e-3, 100, 20_001), {}
    share = (1 + s**2) / (1 + 100**2)
    for step in range(1, 17):
        share *= ((3 - share) / 2) ** 2
        errors[step] = np.max(s / np.sqrt(1 + s**2) * np.abs(np.sqrt(share) - 1))
    assert [f"{errors[k]:.2g}" for k in (10, 12, 15)] == ["0.22", "0.032", "2.9e-08"]
    assert errors[int(np.log(1e4) / (2 * np.log(1.5)) + 4)] < 1e-7


def test_qk_clip_worked():
    factors = qk_clip.qk_clip_factors(np.array([50.0, 400.0, -3.0, np.nan]), 100.0)
    np.testing.assert_array_equal(factors, [1, 0.25, 1, 1])


def test_qk_clip_scales_the_logits():
    rng = np.random.default_rng(13)
    w = {"q": rng.standard_normal((6, 8)), "k": rng.standard_normal((6, 8))}
    u = {leaf: 0.1 * rng.standard_normal(x.shape) for leaf, x in w.items()}
    x, y = rng.standard_normal((2, 6))
    step = methods.ORACLES["qk_clip"](
        {"q": 0.25, "k": 0.75}, head_axes={"q": 1, "k": 1}, threshold=2.0
    )
    limits = np.array([1.0, 8.0])
    got = step(u, w, {"q": limits, "k": limits})[0]

    def logits(updates):
        q, k = (x @ (w["q"] + updates["q"]), y @ (w["k"] + updates["k"]))
        return np.sum((q * k).reshape(2, 4), axis=1)

    np.testing.assert_allclose(logits(got), logits(u) * [1, 0.25], rtol=1e-12)
    for leaf, values in u.items():
        np.testing.assert_array_equal(got[leaf][:, :4], values[:, :4])


# Workers.


def test_votes():
    grads = {"w": np.array([[1.0, -2, np.nan, 0], [3, -1, -5, 0], [-9, 4, 5, 0]])}
    got = methods.ORACLES["aggregation.majority_vote"]()(grads, None)[0]["w"]
    np.testing.assert_array_equal(got, [1, -1, 0, 0])
    heavy = methods.ORACLES["aggregation.majority_vote"](weights=[1, 1, 3])
    np.testing.assert_array_equal(heavy(grads, None)[0]["w"], [-1, 1, 1, 0])


def test_centered_clip_bounds_a_liar():
    step = methods.ORACLES["aggregation.centered_clip"](threshold=1.0)
    grads = {"kernel": np.array([[1.0], [1.0], [-1e9], [np.nan]])}
    got = step(grads, None, {"kernel": np.array([1.0])})[0]["kernel"]
    np.testing.assert_allclose(got, [0.75])


def test_error_feedback_of_one_worker_is_clipped_innovations():
    grads = np.random.default_rng(14).standard_t(1.5, (30, 3))
    step = methods.ORACLES["aggregation.aggregate_with_error_feedback"](1, 0.5)
    got = [step({"w": g[None]}, None)[0]["w"] for g in grads]
    want = run("clipped_ema", grads, decay=0.0, threshold=0.5, scope="leaf")[0]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_error_feedback_of_an_average_is_clipped_innovations_of_it():
    grads = np.random.default_rng(17).standard_t(1.5, (30, 3))
    step = methods.ORACLES["aggregation.aggregate_with_error_feedback"](
        1, 0.5, momentum=0.25, feedback=0.5
    )
    got = [step({"w": g[None]}, None)[0]["w"] for g in grads]
    kwargs = {"decay": 0.5, "threshold": 0.5, "scope": "leaf"}
    want = run("clipped_ema", grads, inner=methods.ORACLES["ema"](0.75), **kwargs)[0]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


# SAGA, conditional gradients, Langevin steps, closed forms.


def test_saga_worked():
    a, b, x, updates, iterates = (1.0, 3.0), (0.0, 4.0), 0.0, [], []
    step = methods.ORACLES["saga"](2)
    for group in (0, 1, 0, 1, 1):
        g = {"w": np.array([a[group] * (x - b[group])])}
        u = step(g, None, group)[0]["w"][0]
        x -= 0.1 * u
        updates.append(u)
        iterates.append(x)
    np.testing.assert_allclose(updates, [0, -12, -4.8, -0.36, -2.772], atol=1e-12)
    np.testing.assert_allclose(iterates, [0, 1.2, 1.68, 1.716, 1.9932], atol=1e-12)


def test_sag_is_the_mean_over_the_groups_seen():
    step = methods.ORACLES["saga"](9, variant="sag")
    grads = [(3, 6.0), (3, 2.0), (0, 4.0), (3, np.nan), (8, 0.0)]
    got = [step({"w": np.array([g])}, None, j)[0]["w"][0] for j, g in grads]
    np.testing.assert_array_equal(got, [6, 2, 3, np.nan, 2])


@pytest.mark.parametrize("variant", ["saga", "sag"])
def test_saga_converges_where_its_groups_disagree(variant):
    rng = np.random.default_rng(15)
    a, b = rng.uniform(0.5, 2, 6), rng.standard_normal(6)
    x, step = 0.0, methods.ORACLES["saga"](6, variant=variant)
    for group in rng.integers(0, 6, 3000):
        g = {"w": np.array([a[group] * (x - b[group])])}
        x -= 0.05 * step(g, None, group)[0]["w"][0]
    assert x == pytest.approx(np.sum(a * b) / np.sum(a), abs=1e-9)


def descend_conditionally(gauge, steps):
    b, w = np.array([3.0, 1.0, -0.5]), np.zeros(3)
    step = methods.ORACLES["conditional_gradient"](1.0, gauge)
    for _ in range(steps):
        w = w + step({"w": w - b}, {"w": w})[0]["w"]
    return w


def test_conditional_gradients_limits():
    np.testing.assert_allclose(descend_conditionally("l2", 1), [3, 1, -0.5])
    # Errors fall like 1 / t, of a difference of size 3.
    np.testing.assert_allclose(
        descend_conditionally("l2", 20_000), [1.5, 0.5, -0.25], atol=3e-4
    )
    np.testing.assert_allclose(
        descend_conditionally("l1", 20_000), [1.5, 0, 0], atol=3e-4
    )


def test_a_spectral_step_is_as_long_as_the_nuclear_norm():
    g = random_matrix(4, 3)
    step = methods.ORACLES["conditional_gradient"](2.0, "spectral", step=1.0)
    s = step({"w": g}, {"w": np.zeros_like(g)})[0]["w"]
    nuclear = np.sum(np.linalg.svd(g, compute_uv=False))
    np.testing.assert_allclose(np.linalg.svd(s, compute_uv=False), nuclear / 2)
    assert np.sum(g * s) == pytest.approx(-(nuclear**2) / 2)


def test_underdamped_variance_worked():
    """At rate 0.01, curvature 2, friction 1 and temperature 1/4 the truth is 0.125."""
    h, rate = np.array([[2.0]]), 0.01
    got = langevin.underdamped_covariance(h, rate, 1.0, 4.0)[1, 1]
    assert round(got, 5) == 0.12501
    explicit = np.array([[1 - rate, -2 * rate], [rate, 1]])
    noise = np.diag([2 * rate / 4, 0])
    wrong = scipy.linalg.solve_discrete_lyapunov(explicit, noise)[1, 1]
    assert round(wrong, 4) == 0.1276


@pytest.mark.parametrize("skew", [0.0, 0.5, 3.0])
def test_overdamped_covariance_tends_to_the_same_whatever_the_skew(skew):
    hessian = np.array([[2.0, 0.5], [0.5, 1.0]])
    got = langevin.overdamped_covariance(hessian, 1e-5, 8.0, skew)
    # The rest is of the order of the rate.
    np.testing.assert_allclose(got, np.linalg.inv(hessian) / 8, rtol=2e-4)


def test_a_skew_speeds_the_slowest_direction():
    for skew, slowest in ((0.0, 1), (1.0, 3), (5.0, 3)):
        drift = (np.eye(2) + langevin.skew_matrix(2, skew)) @ np.diag([1.0, 5.0])
        assert min(np.linalg.eigvals(drift).real) == pytest.approx(slowest)


def test_unrolled_worked():
    w, slope = closed_forms.unrolled(0.3, 4, 0.7)
    assert round(w, 6) == 0.554325
    assert round((w - 0.5) * slope, 6) == -0.013202
    above, below = (closed_forms.unrolled(0.3, 4, 0.7 + d)[0] for d in (1e-6, -1e-6))
    assert slope == pytest.approx((above - below) / 2e-6, rel=1e-8)


def test_l0l1_worked():
    for rule, want in (
        ("exact", [1, 0.255413, 0.003453]),
        ("simple", [1, 0.25, 0.003322]),
        ("clipped", [0.5, 0.166667, 0.001667]),
    ):
        got = [closed_forms.l0l1_step(1, 2, n, rule) for n in (0, 1, 100)]
        np.testing.assert_allclose(got, want, atol=5e-7)
    assert 2 * closed_forms.ETA * np.exp(2 * closed_forms.ETA) == pytest.approx(1)


@pytest.mark.parametrize("rule", ["simple", "gorbunov", "clipped"])
def test_l0l1_rules_are_two_aliases(rule):
    constants = closed_forms.l0l1_constants(4, 3, rule)
    for n in (1e-3, 0.3, 40.0):
        if rule == "clipped":
            h = min(constants["learning_rate"], constants["max_update_norm"] / n)
        else:
            h = constants["learning_rate"] / (n + constants["offset"])
        assert h == pytest.approx(closed_forms.l0l1_step(4, 3, n, rule))


@pytest.mark.parametrize(
    ("rule", "steps"),
    [("exact", 539), ("simple", 541), ("clipped", 1078), ("gorbunov", 1865)],
)
def test_l0l1_steps_on_a_quartic(rule, steps):
    x, count = 10.0, 0
    while x**4 >= 1e-6:
        g = 4 * x**3
        x -= closed_forms.l0l1_step(4, 3, abs(g), rule) * g
        count += 1
    assert count == steps
