"""The smoothness along steps of known functions, and the line through many."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_heavytail import diagnostics


def test_of_a_quadratic_it_is_the_curvature_along_the_step():
    hessian = jnp.array([[2.0, 1.0], [1.0, 4.0]])
    x, d = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.4])
    found = jax.jit(diagnostics.local_smoothness, static_argnums=0)(
        lambda x: hessian @ x, x, d
    )
    assert found.smoothness == pytest.approx(np.hypot(1.0, 1.9) / 0.5, rel=1e-5)
    assert found.gradient_norm == pytest.approx(np.hypot(0, 7), rel=1e-6)


@pytest.mark.parametrize("num_points", [1, 2, 3, 10])
def test_the_largest_ratio_may_be_inside_the_step(num_points):
    """Along a whole period of a sine the ends have the same gradient."""
    d = 2 * np.pi
    found = diagnostics.local_smoothness(
        jnp.sin, jnp.zeros(()), jnp.array(d), num_points
    )
    steps = d * np.arange(1, num_points + 1) / num_points
    wanted = np.max(np.abs(np.sin(steps)) / steps)
    assert found.smoothness == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_distance_is_the_one_that_was_stored(dtype):
    """A step is rounded: to 0 or one unit of the last place of 1, or to two."""
    ulp = float(jnp.finfo(dtype).eps)
    x, d = jnp.ones((), dtype), jnp.asarray(1.4 * ulp, jnp.float32)
    found = diagnostics.local_smoothness(lambda x: 8 * x, x, d, num_points=1)
    assert found.smoothness == 8
    assert found.smoothness.dtype == jnp.float32
    # Of three points the first does not move. A float32 gradient is no finer than x.
    found = diagnostics.local_smoothness(lambda x: 8 * x.astype(jnp.float32), x, d, 3)
    assert found.smoothness == 8
    assert found.rounding == 16 * 8


def test_a_step_too_short_for_its_gradients_is_seen():
    """The gradient has no more digits than 1, and the steps change the tenth."""
    weights = jax.random.normal(jax.random.key(0), (64, 64))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.tanh(weights @ x) ** 2)))
    x = jax.random.normal(jax.random.key(1), (64,))
    long, short = (
        diagnostics.local_smoothness(gradient, x, scale * jnp.ones(64))
        for scale in (1e-2, 1e-7)
    )
    assert long.rounding < 0.01 * long.smoothness
    assert short.rounding > 0.1 * short.smoothness
    half = diagnostics.local_smoothness(
        gradient, x.astype(jnp.bfloat16), 1e-2 * jnp.ones(64)
    )
    assert half.rounding > 1000 * long.rounding


def test_what_cannot_be_told_is_not_a_number():
    x = jnp.ones(2)
    still = diagnostics.local_smoothness(jnp.sin, x, jnp.zeros(2))
    assert np.isnan(still.smoothness)
    assert np.isfinite(still.gradient_norm)
    nothing = diagnostics.local_smoothness(lambda x: x, {}, {})
    assert np.isnan(nothing.smoothness)
    assert nothing.gradient_norm == 0
    for bad in (jnp.inf, jnp.nan):
        found = diagnostics.local_smoothness(
            lambda x, bad=bad: jnp.where(x > 1.5, bad, x), x, x
        )
        assert not np.isfinite(found.smoothness)


def test_bad_arguments_of_a_step():
    with pytest.raises(ValueError, match="num_points must be an integer of at least 1"):
        diagnostics.local_smoothness(jnp.sin, jnp.ones(2), jnp.ones(2), 0)
    with pytest.raises(TypeError, match="int32"):
        diagnostics.local_smoothness(jnp.sin, jnp.arange(2), jnp.arange(2))


def test_the_constants_of_cosh():
    """Its derivatives have f'' = sqrt(1 + f'^2): L0 = L1 = 1 is the tightest bound."""

    def step(x, _):
        d = -0.03 * x
        return x + d, diagnostics.local_smoothness(jnp.sinh, x, d)

    _, points = jax.jit(lambda x: jax.lax.scan(step, x, None, length=150))(
        jnp.asarray(4.0)
    )
    fit = diagnostics.fit_smoothness(points.gradient_norm, points.smoothness)
    assert 0.75 < fit.l0 <= 1
    assert 0.75 < fit.l1 <= 1
    assert fit.correlation > 0.99


NORMS = np.geomspace(0.01, 10, 80)


@pytest.mark.parametrize(
    ("l0", "l1"), [(2.0, 3.0), (0.0, 3.0), (2.0, 0.0), (1e9, 1e-9)]
)
def test_a_line_is_found(l0, l1):
    fit = diagnostics.fit_smoothness(NORMS, l0 + l1 * NORMS)
    # The ratios are 1% apart.
    assert fit.l0 == pytest.approx(l0, rel=0.01)
    assert fit.l1 == pytest.approx(l1, rel=0.01, abs=1e-5 * l0)
    assert fit.l0_low <= fit.l0 * (1 + 1e-9)
    assert fit.l0_high >= fit.l0 * (1 - 1e-9)
    assert fit.reason is None


def noisy(seed, n, memory=0.0):
    """A line of constants 1 and 2 with log-normal factors, perhaps alike in time."""
    rng = np.random.default_rng(seed)
    norms = np.exp(rng.normal(size=n))
    noise = rng.normal(size=n)
    for i in range(1, n):
        noise[i] = memory * noise[i - 1] + (1 - memory**2) ** 0.5 * noise[i]
    return norms, (1 + 2 * norms) * np.exp(0.5 * noise)


@pytest.mark.nightly
def test_intervals_cover_the_constants():
    fits = [
        diagnostics.fit_smoothness(*noisy(seed, 150), num_bootstrap=200)
        for seed in range(80)
    ]
    for name, truth in (("l0", 1.0), ("l1", 2.0)):
        low, high = (
            np.array([getattr(fit, f"{name}_{end}") for fit in fits])
            for end in ("low", "high")
        )
        # 90% wanted; of 80 fits it varies by 3%. A thousand have 89%.
        assert 0.80 <= np.mean((low <= truth) & (truth <= high)) <= 0.98


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("n", "memory", "wanted"),
    [(60, 0.0, 0.84), (150, 0.0, 0.88), (60, 0.6, 0.78), (150, 0.6, 0.88)],
)
def test_intervals_cover_as_often_as_the_docstring_says(n, memory, wanted):
    fits = [
        diagnostics.fit_smoothness(*noisy(seed, n, memory), num_bootstrap=200)
        for seed in range(300)
    ]
    held = [(f.l0_low <= 1 <= f.l0_high) + (f.l1_low <= 2 <= f.l1_high) for f in fits]
    # The samples are the same, and the wanted share is rounded.
    assert np.mean(held) / 2 == pytest.approx(wanted, abs=0.01)


def test_points_that_are_alike_count_less():
    def width(order):
        norms, smooth = (values[order] for values in noisy(0, 400, memory=0.9))
        fit = diagnostics.fit_smoothness(norms, smooth)
        return fit.l1_high - fit.l1_low

    in_time = np.arange(400)
    assert width(in_time) > 1.3 * width(np.random.default_rng(1).permutation(in_time))


def test_a_smoothness_that_falls_is_no_slope_but_a_correlation():
    fit = diagnostics.fit_smoothness(NORMS, 1 / (1 + NORMS))
    assert fit.l1 == 0
    assert fit.correlation == pytest.approx(-1)
    assert fit.correlation_high < 0
    constant = diagnostics.fit_smoothness(NORMS, np.ones(80))
    assert constant.l0 == pytest.approx(1)
    assert (constant.l1, constant.correlation) == (0, 0)


def test_ranks_of_equal_values_are_their_mean():
    norms = np.repeat([1.0, 2.0, 3.0, 4.0], 3)
    smooth = np.tile([1.0, 2.0, 3.0], 4)
    fit = diagnostics.fit_smoothness(norms, smooth)
    assert fit.correlation == pytest.approx(0, abs=1e-12)


def test_a_gradient_norm_of_zero_counts():
    norms = np.concatenate([[0.0], NORMS])
    fit = diagnostics.fit_smoothness(norms, 2 + 3 * norms)
    assert fit.l0 == pytest.approx(2, rel=0.01)
    assert diagnostics.fit_smoothness(norms, 1e-3 + norms).l0 > 0


@pytest.mark.parametrize(
    ("norms", "smooth", "reason"),
    [
        (np.ones(9), np.ones(9), "9 points, and a fit needs 10"),
        (np.ones(12), np.ones(12), "all gradient norms are equal"),
        (np.arange(12), np.arange(12), "the smoothness is 0 at 1 of the points"),
        (np.arange(12), np.full(12, np.nan), "12 of 12 points are not finite"),
        ([*range(11), np.inf], np.ones(12), "1 of 12 points are not finite"),
    ],
)
def test_without_a_fit_there_is_a_reason(norms, smooth, reason):
    fit = dataclasses.asdict(diagnostics.fit_smoothness(norms, smooth))
    assert fit.pop("reason") == reason
    assert fit.pop("num_points") == len(norms)
    assert fit.pop("confidence") == 0.9
    assert set(fit.values()) == {None}


def test_bad_arguments_of_a_fit():
    with pytest.raises(ValueError, match=r"the same shape \(n,\), got \(3,\) and \(4,"):
        diagnostics.fit_smoothness(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="smoothnesses must be 0 or more, got -1"):
        diagnostics.fit_smoothness(NORMS, -np.ones(80))
    with pytest.raises(ValueError, match="confidence must be in"):
        diagnostics.fit_smoothness(NORMS, NORMS, confidence=1.0)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
        diagnostics.fit_smoothness(NORMS, NORMS, seed=-1)
    with pytest.raises(ValueError, match="num_bootstrap"):
        diagnostics.fit_smoothness(NORMS, NORMS, num_bootstrap=10)
