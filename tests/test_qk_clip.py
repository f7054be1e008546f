"""qk_clip: logits of attention after the step, and heads left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from tests.compare import assert_leaf_close, assert_trees_equal


def _attention(heads=3, width=4, size=2, seed=0):
    rng = np.random.default_rng(seed)
    query, key = rng.normal(size=(2, width, heads * size))
    return {"query": jnp.asarray(query), "key": jnp.asarray(key)}


def _logits(params, heads=3):
    x = np.random.default_rng(1).normal(size=(5, 4))
    query, key = (
        np.reshape(x @ np.asarray(params[name]), (5, heads, -1))
        for name in ("query", "key")
    )
    return np.einsum("shd,thd->hst", query, key)


def _step(tx, updates, params, logits):
    update = jax.jit(tx.update)
    updates, state = update(updates, tx.init(params), params, max_logits=logits)
    return jax.tree.map(jnp.add, params, updates), updates, state


@pytest.mark.parametrize(
    "exponents",
    [{"query": 1.0, "key": None}, pytest.param(0.5, marks=pytest.mark.nightly)],
)
def test_the_next_logits_are_scaled_exactly(exponents):
    """Of the head above the threshold; the others keep every bit of the updates."""
    with jax.enable_x64(True):
        params, updates = _attention(), _attention(seed=2)
        logits = jnp.array([50.0, 400.0, 99.0])
        tx = oht.qk_clip(exponents, head_axes=1)
        new, got, state = _step(tx, updates, params, logits)
        plain = jax.tree.map(jnp.add, params, updates)
        want = _logits(plain) * np.array([1.0, 0.25, 1.0])[:, None, None]
        assert_leaf_close(_logits(new), want, 1e-13)
        assert_trees_equal(got["key"][:, [0, 1, 4, 5]], updates["key"][:, [0, 1, 4, 5]])
        assert (int(state.num_clipped), int(state.num_nonfinite)) == (1, 0)


@pytest.mark.parametrize(
    "logits",
    [None, jnp.array([100.0, -500.0, 0.0]), jnp.array([jnp.nan, jnp.inf, -jnp.inf])],
    ids=["none", "calm", "nonfinite"],
)
def test_no_head_to_clip(logits):
    """A negative largest logit is a small one: its root would be no number."""
    params, updates = _attention(), _attention(seed=2)
    _, got, state = _step(oht.qk_clip(0.5, head_axes=-1), updates, params, logits)
    assert_trees_equal(got, updates)
    assert int(state.num_clipped) == 0
    bad = 0 if logits is None else np.sum(~np.isfinite(logits))
    assert int(state.num_nonfinite) == bad
    missing, _ = oht.qk_clip(0.5, head_axes=1).update(updates, state, params)
    assert_trees_equal(missing, updates)


def test_elsewhere_a_negative_largest_logit_makes_nan_weights():
    largest = np.float32(-5.0)
    published = np.minimum(1.0, 100.0 / (largest + 1e-6))
    with np.errstate(invalid="ignore"):
        assert np.isnan(np.sqrt(published))
    assert oht.qk_clip_factors(jnp.array([largest])).tolist() == [1.0]


def test_factors():
    logits = jnp.array([[50.0, 400.0], [-3.0, jnp.inf]])
    np.testing.assert_array_equal(
        oht.qk_clip_factors(logits), [[1.0, 0.25], [1.0, 1.0]]
    )
    np.testing.assert_array_equal(oht.qk_clip_factors(jnp.array([4.0]), 1.0), [0.25])


def test_narrow_weights_are_scaled_in_float32():
    """In bfloat16 alone gamma^(1/2) and the sum would be rounded before the end."""
    params = {"query": jnp.full((1, 2), 1.0, jnp.bfloat16)}
    updates = {"query": jnp.full((1, 2), 2**-8, jnp.bfloat16)}
    tx = oht.qk_clip(0.5, head_axes=1)
    _, got, _ = _step(tx, updates, params, jnp.array([400.0, 1.0]))
    want = [jnp.bfloat16(0.5 * (1 + 2**-8) - 1), jnp.bfloat16(2**-8)]
    np.testing.assert_array_equal(got["query"][0].astype(float), np.float64(want))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (jnp.ones(4), r"divisible by heads, got shapes \(4,\) and \(4, 6\)"),
        (jnp.ones((3, 1)), r"shape \(heads,\) .* got shapes \(3, 1\)"),
    ],
)
def test_heads_that_do_not_fit(logits, message):
    params = _attention()
    with pytest.raises(ValueError, match=message) as error:
        _step(oht.qk_clip(0.5, head_axes=1), params, params, logits)
    assert "\n" not in str(error.value)


def test_exponents_out_of_range():
    with pytest.raises(ValueError, match=r"exponents must be in .* got 2"):
        oht.qk_clip({"query": 2, "key": None}, head_axes=1)
