"""clip_by_rms: the root mean square of each leaf or slice is bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from tests.compare import assert_leaf_close, assert_trees_equal
from tests.driving import heavy_gradients, jitted, one_step
from tests.in_time import only

CLIP = oht.clip_by_rms(1.0)


def _clipped(x, threshold):
    rms = np.sqrt(np.mean(np.square(x))) if x.size else 0.0
    return x if rms <= threshold else x * (threshold / rms)


@pytest.mark.parametrize("scope", only({"leaf"}, ["leaf", "global"]))
def test_heavy_gradients_as_in_numpy(scope):
    with jax.enable_x64(True):
        update = jax.jit(lambda g: one_step(oht.clip_by_rms(1.5, scope=scope), g))
        for grads in heavy_gradients(20):
            flat = np.concatenate([g.ravel() for g in grads.values()])
            for name, got in update(grads).items():
                want = _clipped(grads[name], 1.5)
                if scope == "global":
                    whole = np.linalg.norm(flat) / np.sqrt(flat.size)
                    want = grads[name] * min(1.0, 1.5 / max(whole, 1e-300))
                assert_leaf_close(got, want, 1e-14, name)


def test_a_leaf_repeated_is_clipped_as_the_leaf():
    """The bound on each entry does not depend on how many there are."""
    short = np.float32([3.0, -4.0, 0.5])
    tx = oht.clip_by_rms(0.5)
    got = one_step(tx, {"short": short, "long": np.tile(short, 50)})
    assert_leaf_close(got["long"], np.tile(got["short"], 50), 1e-6)


def test_slices_are_leaves():
    stacked = {
        "w": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.float32([5.0]),
    }
    tx, plain = oht.clip_by_rms(1.0, layer_axis={"w": -2, "b": None}), CLIP
    for bad in (1.0, np.nan):
        grads = stacked | {"w": stacked["w"].copy()}
        grads["w"][1, 2] *= bad
        got = one_step(tx, grads)
        rows = one_step(plain, [*grads["w"], grads["b"]])
        assert_trees_equal([*got["w"], got["b"]], rows)


def test_within_the_threshold_bit_for_bit_and_zero_stays_zero():
    grads = {"w": jnp.array([1.0, -1.0, 1.0, -1.0]), "zero": jnp.zeros(3)}
    assert_trees_equal(one_step(oht.clip_by_rms(1.0), grads), grads)
    assert_trees_equal(one_step(oht.clip_by_rms(1.0), {}), {})
    assert one_step(oht.clip_by_rms(1.0), jnp.zeros((0, 3))).shape == (0, 3)


def test_a_bad_entry_is_loud_or_counts_as_a_zero():
    grads = {"w": jnp.array([4.0, jnp.inf, 0.0, 0.0]), "b": jnp.array([0.5])}
    loud = one_step(oht.clip_by_rms(1.0), grads)
    assert np.all(np.isnan(loud["w"]))
    np.testing.assert_array_equal(loud["b"], 0.5)
    mended = one_step(oht.clip_by_rms(1.0, nonfinite="zero"), grads)
    np.testing.assert_allclose(mended["w"], [2.0, 0.0, 0.0, 0.0])  # of four entries


def test_a_schedule_is_of_the_count():
    tx = jitted(oht.clip_by_rms(lambda count: 1.0 / (count + 1)))
    grads, state = jnp.full(4, 3.0), tx.init(jnp.zeros(4))
    for want in (1.0, 0.5):
        updates, state = tx.update(grads, state)
        np.testing.assert_allclose(updates, want, rtol=1e-6)


def test_one_mean_for_all_has_no_layers():
    with pytest.raises(ValueError, match='layer_axis needs scope "leaf"'):
        oht.clip_by_rms(scope="global", layer_axis=0)
