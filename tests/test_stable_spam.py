"""clip_by_peak and stable_spam."""

import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from tests.compare import assert_same_bits
from tests.registry import make_grads, make_params


def _warm(tx, steps=2000):
    """After a long time at a peak of 1."""
    state = tx.init(jnp.zeros(3))
    state, ones = tx.update(jnp.ones(3), state)[1], jnp.ones([], jnp.int32)
    return state._replace(seen=steps * ones, peak=1.0 - 0.999**steps * jnp.ones([]))


def test_rescaling_reverses_the_order_of_entries_and_a_limit_does_not():
    grads = jnp.array([0.99, 1.2, 100.0])
    state = _warm(oht.clip_by_peak())
    published, _ = oht.clip_by_peak(rescale=True).update(grads, state)
    ours, _ = oht.clip_by_peak().update(grads, state)
    limit = 0.999 + 0.1 / (1 - 0.999**2001)
    # The second was larger than the first.
    np.testing.assert_allclose(
        published, grads * jnp.array([1, limit / 100, limit / 100]), rtol=2e-2
    )
    assert published[1] < 0.02 < published[0]
    assert np.all(np.diff(np.asarray(ours)) >= 0)
    np.testing.assert_allclose(ours[2], ours.max())


def test_the_average_is_that_of_the_peaks_seen():
    tx = oht.clip_by_peak(decay=0.5)
    state = tx.init({"a": jnp.zeros(2), "b": jnp.zeros(())})
    for a, b in ((1.0, 0.0), (jnp.nan, 3.0), (3.0, 0.0)):
        _, state = tx.update({"a": jnp.array([-a, 0.5]), "b": jnp.array(b)}, state)
    assert {k: int(x) for k, x in state.seen.items()} == {"a": 2, "b": 1}
    assert {k: float(x) for k, x in state.peak.items()} == {"a": 1.75, "b": 1.5}


def test_counts_go_on_where_the_averages_do():
    """Published code starts the counts anew with the moments and keeps the averages."""
    tx = oht.stable_spam(0.1, period=1000)
    state = tx.init(jnp.zeros(2))
    state = (state[0]._replace(seen=jnp.array(999), peak=jnp.array(1.0)), *state[1:])
    tx_update = tx.update(jnp.array([1.0, 100.0]), state)[1]
    assert int(tx_update[0].seen) == 1000
    theirs = 1.0 / (1 - 0.999**2)  # the average over its weight after two updates
    ours = float(tx_update[0].peak) / (1 - 0.999**1000)
    assert theirs > 499
    assert ours < 2


def test_a_reset_leaves_the_norms_record():
    tx = oht.stable_spam(0.1, period=3)
    state = tx.init(jnp.zeros(2))
    for k in range(1, 5):
        _, state = tx.update(jnp.array([3.0, 4.0]), state)
        assert int(state[0].seen) == int(state[1].seen[0]) == k
        assert int(state[2].inner_state.count) == (k if k < 3 else k - 2)


def test_the_alias_is_the_composition_bit_for_bit():
    parts = optax.chain(
        oht.clip_by_peak(rescale=True),
        oht.scale_by_stable_norm(0.7, 0.9, 1e-8),
        oht.reset_moments(oht.scale_by_adam(0.8, 0.9, 1e-3), 3, warmup_steps=0),
        oht.add_decayed_weights(0.1),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.stable_spam(0.1, 0.8, 0.9, 1e-3, 0.1, period=3)
    assert_same_bits(alias, parts, make_grads(), make_params())
