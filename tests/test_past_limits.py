"""Limits from the past: worked values, and what others do.

Their laws are in test_clip_laws.py.

The code of others is written here in a few lines, as published.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_trees_equal
from tests.driving import jitted


def lengths(tx, norms):
    """Of what comes out for gradients of one entry, which is the norm."""
    tx, out = jitted(tx), []
    state = tx.init(jnp.zeros(1))
    for norm in norms:
        updates, state = tx.update(jnp.array([norm], jnp.float32), state)
        out.append(float(updates[0]))
    return out, state


@pytest.mark.parametrize(
    ("include", "want"),
    [(True, [1.0, 1.5, 2.0, 2.5, 2.0]), (False, [1.0, 1.0, 1.5, 2.0, 2.0])],
)
def test_quantile_by_hand(include, want):
    tx = oht.clip_by_norm_quantile(0.5, 4, include_current=include)
    assert lengths(tx, [1.0, 2.0, 3.0, 100.0, 2.0])[0] == want


def test_quantile_never_clips_equal_norms_or_a_window_of_one():
    for norms, window in (([0.25] * 5, 3), ([1.0, 7.0, 3.0], 1)):
        assert lengths(oht.clip_by_norm_quantile(0.1, window), norms)[0] == norms


def test_zscore_by_hand():
    tx = oht.clip_by_zscore(warmup_steps=3, min_deviation=0.0)
    out, state = lengths(tx, [1.0, 2.0, 3.0, 2.5, 100.0, 2.0])
    np.testing.assert_allclose(out, [1, 2, 3, 2.5, 2.056698, 2], rtol=1e-6)
    np.testing.assert_allclose(state.mean, 2.015763, rtol=1e-6)
    np.testing.assert_allclose(state.deviation**2, 0.615143, rtol=1e-5)


def adagc(steps, **kwargs):
    tx = jitted(oht.clip_by_norm_ema(warmup_steps=2, **kwargs))
    state, out = tx.init([jnp.zeros(1)] * 2), []
    for norms in steps:
        updates, state = tx.update([jnp.array([x]) for x in norms], state)
        out.append([float(u[0]) for u in updates])
    return out, state


def test_adagc_by_hand():
    steps = [(3.0, 0.0), (0.5, 0.5), (5.0, 0.6), (5.0, 0.6)]
    out, state = adagc(steps)
    np.testing.assert_allclose(out[2:], [[0.525] * 2, [0.525525] * 2], rtol=1e-6)
    np.testing.assert_allclose(jnp.stack(state.threshold), [0.501] * 2, rtol=2e-6)


def test_adagc_grows_as_the_docstring_says():
    out, _ = adagc([(1.0, 1.0)] * 3 + [(2.0, 1.0)] * 660, absolute_threshold=None)
    first = np.array(out)[:, 0]
    steps = int(np.argmax(first == 2.0)) - 3
    assert abs(steps - np.log(2 / 1.05) / np.log(1.001)) <= 2


def test_elsewhere_a_leaf_that_was_zero_in_the_warmup_is_frozen():
    gamma = np.inf
    for norm in (0.0, 0.5):  # the published rule, of one leaf
        gamma = min(gamma, norm)
    for norm in (0.6, 0.6):
        factor = min(1.05 * gamma / norm, 1.0)
        gamma = 0.98 * gamma + 0.02 * factor * norm
        assert factor == 0.0
    out, _ = adagc([(1.0, 0.0), (1.0, 0.0), (1.0, 0.6), (1.0, 0.6)])
    assert out[2][1] == pytest.approx(0.6)


def test_elsewhere_an_inverted_band_decays_to_nothing():
    average, out = 0.0, []
    for step in range(1000):  # of norms that are all 1
        low, high = 0.95 * average, 0.6 * average
        norm = min(max(1.0, low), high) if step else 1.0
        average = 0.95 * average + 0.05 * norm
        out.append(norm)
    assert out[1] == pytest.approx(0.03)
    assert out[-1] < 1e-10
    ours, _ = lengths(oht.clip_by_norm_ema(warmup_steps=1), [1.0] * 100)
    assert ours == [1.0] * 100


def test_elsewhere_the_deviation_of_one_norm_is_nan():
    norms = np.array([1.0])
    with np.errstate(invalid="ignore"):
        squares = np.sum(np.square(norms - norms.mean()))
        threshold = 2 * np.sqrt(squares / (norms.size - 1))  # and without the mean
    assert np.isnan(threshold)
    for rule in ("median", "mean"):
        tx = oht.clip_by_norm_deviation(window=2, rule=rule)
        assert lengths(tx, [1.0, 1.0])[0] == [1.0, 1.0]


def test_elsewhere_one_nan_ends_zclip_and_an_inf_makes_nan():
    def published(norm, mean, deviation):
        score = (norm - mean) / (deviation + 1e-6)
        length = mean + 2.5 * deviation * 2.5 / score if score > 2.5 else norm
        mean = 0.97 * mean + 0.03 * length
        return length / (norm + 1e-6), mean

    assert np.isnan(published(np.nan, 1.0, 0.1)[1])  # compares false from now on
    assert np.isnan(np.inf * published(np.inf, 1.0, 0.1)[0])
    assert published(1.01, 1.0, 0.0)[0] < 1  # a hair trigger
    calm = [1.0] * 5
    out, _ = lengths(oht.clip_by_zscore(warmup_steps=3), [*calm, np.nan, 1.01, 50.0])
    assert np.isnan(out[5])
    assert out[6] == float(np.float32(1.01))
    assert out[7] < 1.2


def test_elsewhere_a_skipped_nan_passes_or_stays_in_the_moments():
    updates = jnp.array([jnp.nan, 1.0])
    assert np.isnan((0.0 * updates)[0])  # skipping by a product with 0
    moments = jnp.zeros(2)
    assert np.isnan((moments + 0.0 * (updates - moments))[0])  # by a weight of 0
    tx = oht.skip_if_unsafe(optax.adam(0.1))
    fresh = tx.init(jnp.zeros(2))
    got, state = tx.update(updates, fresh)
    assert got.tolist() == [0.0, 0.0]
    assert_trees_equal(state.inner_state, fresh.inner_state)


def test_elsewhere_the_quantile_of_all_norms_limits_each_tensor():
    tx = oht.clip_by_norm_quantile(0.5, 4)
    state = tx.init([jnp.zeros(1), jnp.zeros(1)])
    for size in (1.0, 2.0):
        grads = [jnp.array([3.0 * size]), jnp.array([4.0 * size])]
        updates, state = tx.update(grads, state)
    quantile = 7.5  # of 5 and 10
    assert all(float(g[0]) <= 8.0 for g in grads)
    assert float(grads[1][0]) > quantile > float(grads[0][0])  # each alone: another way
    np.testing.assert_allclose([float(u[0]) for u in updates], [4.5, 6.0], rtol=1e-6)
