"""Momentum SGD with a decay that the learning rate does not multiply."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests import reference
from tests.compare import assert_leaf_close, assert_same_bits, assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted, one_step, starting_point
from tests.registry import make_grads, make_params


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


def _decay(count):
    return 0.01 + 0.001 * count


def _multiplier(count):
    return 0.98**count


def test_100_steps_follow_the_reference():
    grads = heavy_gradients()
    scaled = [
        {name: 0.1 * _multiplier(k) * g for name, g in step.items()}
        for k, step in enumerate(grads)
    ]
    moments = reference.trace(scaled, 0.9)
    w = starting_point()
    want = []
    for k, m in enumerate(moments):
        decay = {"w": _multiplier(k) * _decay(k), "b": 0.0, "s": 0.0}
        update = {name: -(m[name] + decay[name] * w[name]) for name in w}
        w = {name: w[name] + update[name] for name in w}
        want.append((update, w))
    with jax.enable_x64(True):
        tx = oht.sgdw(0.1, 0.9, _decay, multiplier=_multiplier, mask=_matrices)
        updates, iterates, _ = follow(tx, grads)
    for step in range(100):
        for name in w:
            where = f"{name}, step {step}"
            # 100 steps of a few operations, each within 1e-16.
            assert_leaf_close(updates[step][name], want[step][0][name], 1e-10, where)
            assert_leaf_close(iterates[step][name], want[step][1][name], 1e-10, where)


def test_the_multiplier_scales_gradient_and_decay_and_the_rate_only_the_gradient():
    params, grads = jnp.array([8.0]), jnp.array([1.0])

    def first(rate, multiplier):
        tx = oht.sgdw(rate, weight_decay=0.25, multiplier=multiplier)
        return float(one_step(tx, grads, params)[0])

    assert first(0.5, 1.0) == -0.5 - 2.0
    assert first(0.25, 1.0) == -0.25 - 2.0
    assert first(0.5, 0.5) == (-0.5 - 2.0) / 2
    coupled = optax.chain(optax.add_decayed_weights(0.25), optax.sgd(0.5, momentum=0.9))
    assert float(one_step(coupled, grads, params)[0]) == -0.5 * (1.0 + 2.0)


def test_past_gradients_keep_the_multiplier_of_their_step():
    """What is in the momentum is not scaled again when the multiplier falls."""
    tx = jitted(oht.sgdw(1.0, momentum=0.5, multiplier=lambda count: 0.25**count))
    state = tx.init(jnp.zeros(1))
    for g, want in ((1.0, 1.0), (1.0, 0.75), (0.0, 0.375)):
        updates, state = tx.update(jnp.array([g]), state)
        assert float(updates[0]) == -want


def test_the_decay_stays_out_of_the_momentum():
    tx = jitted(oht.sgdw(0.1, momentum=0.9, weight_decay=0.125))
    params = jnp.array([8.0])
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jnp.zeros(1), state, params)
        assert float(updates[0]) == -1.0


@pytest.mark.parametrize("where", ["learning_rate", "weight_decay", "multiplier"])
def test_schedules_start_at_count_zero(where):
    values = {"learning_rate": 0.5, "weight_decay": 0.25, "multiplier": 1.0}
    start = values[where]
    kwargs = values | {where: lambda count: start * 0.5**count}
    tx = jitted(oht.sgdw(momentum=0.0, **kwargs))
    params, grads = jnp.array([8.0]), jnp.array([1.0])
    state = tx.init(params)
    for count in range(3):
        updates, state = tx.update(grads, state, params)
        now = values | {where: start * 0.5**count}
        want = now["learning_rate"] + 8 * now["weight_decay"]
        assert float(updates[0]) == -now["multiplier"] * want


def test_the_alias_is_the_composition_bit_for_bit():
    parts = optax.chain(
        oht.scale_by_learning_rate(0.5 * 0.1, flip_sign=False),
        oht.trace(0.8),
        oht.add_decayed_weights(0.5 * 0.01, _matrices),
        optax.scale(-1.0),
    )
    alias = oht.sgdw(0.1, 0.8, 0.01, multiplier=0.5, mask=_matrices)
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_positions_and_defaults():
    grads, params = make_grads()[0], make_params()
    spelled = oht.sgdw(
        learning_rate=0.2, momentum=0.5, weight_decay=0.1, multiplier=0.5
    )
    assert_trees_equal(
        one_step(oht.sgdw(0.2, 0.5, 0.1, multiplier=0.5), grads, params),
        one_step(spelled, grads, params),
    )
    assert_trees_equal(
        one_step(oht.sgdw(0.2), grads),
        one_step(oht.sgdw(0.2, 0.9, 0.0, multiplier=1.0), grads),
    )


def test_a_bad_gradient_stays_in_its_coordinate():
    tx = jitted(oht.sgdw(0.1))
    _, state = tx.update(jnp.array([jnp.nan, jnp.inf, 2.0]), tx.init(jnp.zeros(3)))
    updates, _ = tx.update(jnp.ones(3), state)
    assert np.all(~np.isfinite(updates[:2]))
    np.testing.assert_allclose(updates[2], -0.28, rtol=1e-6)
