"""Oracles of Adam's kin against worked values and laws.

NumPy only. A value quoted with k digits is compared with k digits.
"""

import numpy as np
import pytest
import scipy.optimize

from tests.in_time import only
from tests.oracles import methods, normalized
from tests.oracles.trying import lengths, run
from tests.oracles.units import norm

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
    only(
        {(2.0, 1.0, 0.845)},
        [(0.5, 0.652, 0.367), (2.0, 1.0, 0.845), (20.0, 1.579, 1.564)],
    ),
)
def test_clipped_innovations_settle_at_hubers_location(tau, huber, clipped):
    root = scipy.optimize.brentq(
        lambda v: pareto_mean(lambda x: np.clip(x - v, -tau, tau)), 0, 2, xtol=1e-9
    )
    # v = E min(x, v + tau) = 2 - 2 (1 + v + tau)^-1/2: exactly 1 at tau = 2.
    assert round(root, 3) == huber
    assert round(pareto_mean(lambda x: np.clip(x, -tau, tau)), 3) == clipped


@pytest.mark.nightly
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
