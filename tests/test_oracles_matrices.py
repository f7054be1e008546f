"""Oracles of matrices, workers and the rest against worked values and laws.

NumPy only. A value quoted with k digits is compared with k digits.
"""

import numpy as np
import pytest
import scipy.linalg

from tests.oracles import closed_forms, langevin, methods, qk_clip
from tests.oracles.trying import run

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
