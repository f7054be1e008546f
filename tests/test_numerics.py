"""Traps met in widely used optimizer libraries: each is shown, then shown avoided.

Those of norms in ``shard_map`` are in test_sharding, those of masks in test_interop.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_trees_close, types
from tests.driving import jitted, one_step


def _norm(tree):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


def test_float16_gradients_of_300_do_not_vanish():
    grads = jnp.full(8, 300.0, jnp.float16)
    assert np.isinf(optax.tree.norm(grads))
    np.testing.assert_array_equal(one_step(optax.clip_by_global_norm(1.0), grads), 0)
    for tx in (
        oht.clip_by_norm(1.0),
        oht.clip_by_norm(1.0, scope="leaf"),
        oht.clip_by_moment(scope="global", normalize=True),
        oht.gclip(1.0, 1.0, b1=0.0),
    ):
        # Eight float16 entries, each rounded to 2^-11.
        np.testing.assert_allclose(_norm(one_step(tx, grads)), 1.0, rtol=2**-11)


def test_tiny_norms_do_not_vanish():
    """The square of 1e-25 is 0 in float32, and a naive norm divides by it."""
    grads = jnp.array([3e-25, 4e-25])
    assert float(optax.tree.norm(grads)) == 0.0
    got = one_step(oht.clip_by_norm(1e-25), grads)
    np.testing.assert_allclose(got, [6e-26, 8e-26], rtol=1e-6)


def test_one_infinite_entry_does_not_silently_zero_the_others():
    grads = jnp.array([1.0, jnp.inf, 2.0])
    theirs = one_step(optax.clip_by_global_norm(1.0), grads)
    np.testing.assert_array_equal(theirs, [0.0, np.nan, 0.0])
    for scope in ("global", "leaf"):
        loud = one_step(oht.clip_by_norm(1.0, scope=scope), grads)
        assert np.all(np.isnan(loud))
        mended = oht.clip_by_norm(1.0, scope=scope, nonfinite="zero")
        want = np.array([1.0, 0.0, 2.0]) / 5**0.5
        np.testing.assert_allclose(one_step(mended, grads), want, rtol=1e-6)


def test_finite_entries_whose_norm_overflows_are_not_taken_for_infinite():
    grads = jnp.full(16, 3e38)
    assert np.isinf(_float32_norm(grads))
    for scope in ("global", "leaf"):
        got = one_step(oht.clip_by_norm(8.0, scope=scope), grads)
        np.testing.assert_allclose(got, 2.0, rtol=1e-6)


def _float32_norm(x):
    with np.errstate(over="ignore"):
        return np.sqrt(np.sum(np.square(np.asarray(x))))


def test_hyperparameters_stay_float32_beside_bfloat16_parameters():
    params, grads = jnp.ones(2, jnp.bfloat16), jnp.full(2, 0.5, jnp.bfloat16)
    careless = optax.inject_hyperparams(optax.adam)(0.1, b2=0.999)
    assert float(careless.init(params).hyperparams["b2"]) == 1.0
    assert np.all(np.isnan(one_step(careless, grads, params)))

    kwargs = {"b2": 0.999, "normalize": True, "weight_decay": 0.0}
    inject = optax.inject_hyperparams(oht.acclip, hyperparam_dtype=jnp.float32)
    tx = inject(learning_rate=0.1, **kwargs)
    assert float(tx.init(params).hyperparams["b2"]) == np.float32(0.999)
    got = one_step(tx, grads, params)
    want = one_step(oht.acclip(0.1, **kwargs), grads, params)
    assert got.dtype == jnp.bfloat16
    assert_trees_close(got, want, 2**-8)  # one rounding to bfloat16


def test_states_keep_their_types_beside_bfloat16_parameters():
    params, grads = jnp.ones(2, jnp.bfloat16), jnp.ones(2)
    adam = optax.adam(0.1)
    _, changed = adam.update(grads, adam.init(params), params)
    assert types(changed) != types(adam.init(params))
    for tx in (
        oht.acclip(0.1),
        oht.gclip(0.1, 1.0),
        oht.cclip(0.1, 1.0),
        oht.clip_by_moment(optax.trace(0.9)),
    ):
        _, state = tx.update(grads, tx.init(params), params)
        assert types(state) == types(tx.init(params))


def test_a_global_clip_in_each_group_is_not_a_global_clip():
    grads = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    labels = {"a": "a", "b": "b"}
    for clip in (optax.clip_by_global_norm(1.0), oht.clip_by_norm(1.0)):
        each = optax.partition({"a": clip, "b": clip}, labels)
        np.testing.assert_allclose(_norm(one_step(each, grads)), 2**0.5, rtol=1e-6)
    groups = {"a": oht.scale_by_learning_rate(1.0), "b": optax.identity()}
    around = optax.chain(oht.clip_by_norm(1.0), optax.partition(groups, labels))
    got = one_step(around, grads)
    np.testing.assert_allclose(got["a"], -0.6, rtol=1e-6)
    np.testing.assert_allclose(got["b"], 0.8, rtol=1e-6)


def test_zero_gradients_stay_zero():
    zeros = jnp.zeros(3)
    assert np.all(np.isnan(one_step(optax.contrib.normalize(), zeros)))
    scopes = itertools.product(("coordinate", "leaf", "global"), (0.0, 1e-5))
    for scope, eps in scopes:
        tx = jitted(oht.clip_by_moment(scope=scope, eps=eps, normalize=True))
        updates, state = tx.update(zeros, tx.init(zeros))
        np.testing.assert_array_equal(updates, 0)
        _, state = tx.update(zeros + 1, state)
        np.testing.assert_array_equal(tx.update(zeros, state)[0], 0)
    np.testing.assert_array_equal(one_step(oht.clip_by_norm(1.0), zeros), 0)


def test_negative_gradients_have_fractional_moments():
    grads = jnp.array([-4.0])
    theirs = optax.tree.update_moment(grads, jnp.zeros(1), 0.5, 1.5)
    assert np.all(np.isnan(theirs))
    tx = oht.adaptive_coordinate_threshold(b2=0.5, alpha=1.5)
    _, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(state.threshold, 0.5 ** (1 / 1.5) * 4, rtol=1e-6)


def test_a_bad_step_does_not_poison_the_statistics():
    """An average of the losses or norms that takes in one NaN stays NaN."""
    good, bad = jnp.array([1.0, 2.0]), jnp.array([1.0, jnp.nan])
    theirs = optax.ema(0.9)
    _, poisoned = theirs.update(bad, theirs.init(good))
    assert np.isnan(theirs.update(good, poisoned)[0][1])
    for scope in ("coordinate", "leaf", "global"):
        tx = jitted(oht.clip_by_moment(scope=scope, b2=0.5))
        _, state = tx.update(good, tx.init(good))
        _, state = tx.update(bad, state)
        updates, state = tx.update(good, state)
        assert np.all(np.isfinite(updates))
        assert np.all(np.isfinite(jax.tree.leaves(state.threshold)[0]))


def test_spikes_are_measured_before_they_are_clipped():
    """A norm measured after the clip could never exceed the threshold."""
    tx = jitted(oht.clip_by_moment(scope="global", b2=0.9, eps=0.0))
    state = tx.init(jnp.zeros(1))
    for _ in range(50):
        _, state = tx.update(jnp.ones(1), state)
    _, spiked = tx.update(jnp.full(1, 1000.0), state)
    np.testing.assert_allclose(spiked.threshold, 0.9 * state.threshold + 100, rtol=1e-6)


def test_small_updates_are_not_scaled_up():
    grads = jnp.array([3e-4, 4e-4])
    np.testing.assert_allclose(_norm(grads / jnp.linalg.norm(grads)), 1.0, rtol=1e-6)
    for tx in (
        oht.clip_by_norm(1.0),
        oht.clip_by_norm(1.0, scope="leaf"),
        oht.clip_by_value(1.0),
    ):
        np.testing.assert_array_equal(one_step(tx, grads), grads)
    tx = oht.clip_by_moment(b2=0.0, eps=0.0)
    np.testing.assert_array_equal(one_step(tx, grads), grads)


def test_thresholds_do_not_stall_beside_bfloat16_parameters():
    """In bfloat16 an average stops where its increments fall below 2^-9."""
    params = jnp.zeros(2, jnp.bfloat16)
    grads = jnp.ones_like(params)

    def after_10_000_steps(tx):
        def step(state, _):
            return tx.update(grads, state, params)[1], None

        run = jax.jit(lambda s: jax.lax.scan(step, s, length=10_000)[0])
        return run(tx.init(params))

    stalled = after_10_000_steps(optax.scale_by_adam(b2=0.999)).nu
    assert np.all(stalled == 0.5)
    for alpha in (1.0, 1.5, 2.0):
        state = after_10_000_steps(oht.scale_by_acclip(b2=0.999, alpha=alpha))
        # 10,000 roundings of which each forgets all but the last 1,000: 1e-4.
        want = (1 - 0.999**10_000) ** (1 / alpha)
        np.testing.assert_allclose(oht.get_threshold(state), want, rtol=1e-4)
        np.testing.assert_allclose(oht.get_momentum(state), 1.0, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-39, 1e-42, 1e-45])
def test_denormal_gradients_are_harmless(size):
    """Processors may take them for zeros; nothing may divide by what is left."""
    grads = jnp.array([size, -size, 1.0])
    for scope in ("coordinate", "leaf", "global"):
        for normalize in (False, True):
            tx = oht.clip_by_moment(scope=scope, eps=0.0, normalize=normalize)
            for g in (grads, grads[:2]):
                updates = one_step(tx, g)
                assert np.all(np.isfinite(updates))
                assert np.all(np.abs(updates) <= 1 + 1e-6)
    for threshold in (1e-30, 1.0, 1e30):
        clipped = one_step(oht.clip_by_norm(threshold), grads[:2])
        assert np.all(np.abs(clipped) <= 1.1 * size)


def _lines(tx, leaves):
    """The length of the compiled program."""
    tree = {str(k): jnp.ones((4, 4)) for k in range(leaves)}
    lowered = jax.jit(tx.update).lower(tree, tx.init(tree), tree)
    return lowered.compile().as_text().count("\n")


def _scaled_norm_clip():
    """Divides by the largest entry, as textbooks have it."""

    def update(updates, state, params=None):
        del params
        leaves = jax.tree.leaves(updates)
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in leaves]))
        squares = sum(jnp.sum(jnp.square(x / largest)) for x in leaves)
        factor = jnp.minimum(1.0, 1.0 / (largest * jnp.sqrt(squares)))
        return jax.tree.map(lambda x: factor * x, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def test_programs_grow_no_faster_than_the_number_of_leaves():
    """A number made of n leaves and fused into n others costs n^2 to compile."""
    naive = _scaled_norm_clip()
    assert _lines(naive, 64) > 8 * _lines(naive, 16)
    for tx in (
        oht.clip_by_norm(1.0),
        oht.clip_by_moment(scope="global"),
        oht.clip_by_moment(scope="leaf"),
        oht.gclip(0.1, 1.0),
    ):
        assert _lines(tx, 64) < 4.5 * _lines(tx, 16)
