"""scale_by_adam_atan2 and adam_atan2."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_same_bits
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.registry import make_grads, make_params


def test_30_steps_are_angles_of_adams_averages():
    grads = heavy_gradients(30)
    with jax.enable_x64(True):
        got, _, _ = follow(oht.scale_by_adam_atan2(0.8, 0.95), grads)
    m, v = ({k: np.zeros_like(g) for k, g in grads[0].items()} for _ in range(2))
    for t, (u, g) in enumerate(zip(got, grads, strict=True), 1):
        for k, x in g.items():
            m[k] = 0.8 * m[k] + 0.2 * x
            v[k] = 0.95 * v[k] + 0.05 * x**2
            root = np.sqrt(v[k] / (1 - 0.95**t))
            want = 4 / np.pi * np.arctan2(m[k] / (1 - 0.8**t), root)
            np.testing.assert_allclose(u[k], want, rtol=1e-9, atol=1e-12)
            assert np.all(np.abs(u[k]) <= 2 + 1e-12)


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1.0, 1e25, 1e37])
def test_constant_gradients_give_1_at_every_size(size):
    """Where Adam divides by its epsilon, or by a square that is no number."""
    tx = jitted(oht.scale_by_adam_atan2(0.9, 0.9))
    state = tx.init(jnp.zeros(3))
    for _ in range(3):
        updates, state = tx.update(jnp.array([size, -size, 0.0]), state)
        np.testing.assert_allclose(updates, [1.0, -1.0, 0.0], rtol=1e-6)
    adam = one_step(oht.scale_by_adam(), jnp.array([size]))
    assert (abs(float(adam[0]) - 1) < 1e-3) == (size == 1.0)


def test_a_gradient_after_zeros_is_bounded_by_the_angle():
    tx = oht.scale_by_adam_atan2(0.0, 0.0)
    np.testing.assert_allclose(one_step(tx, jnp.array([5.0])), 1.0, rtol=1e-6)
    tx = oht.scale_by_adam_atan2(0.0, 0.999, ratio=1e-20)
    np.testing.assert_allclose(one_step(tx, jnp.array([-5.0])), -2.0, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_bad_gradient_is_loud(bad):
    """The root of the average is then NaN; the angle of two infinities is not."""
    assert np.isfinite(np.arctan2(np.inf, np.inf))
    tx = oht.scale_by_adam_atan2()
    grads, state = jnp.array([1.0, bad]), tx.init(jnp.zeros(2))
    for _ in range(2):
        updates, state = tx.update(grads, state)
        assert np.isnan(updates[1])
        assert np.isfinite(updates[0])
        grads = jnp.ones(2)


def test_the_alias_is_the_composition_bit_for_bit():
    parts = optax.chain(
        oht.scale_by_adam_atan2(0.8, 0.9, scale=0.5, ratio=2.0),
        oht.add_decayed_weights(0.1),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.adam_atan2(0.1, 0.8, 0.9, 0.1, scale=0.5, ratio=2.0)
    assert_same_bits(alias, parts, make_grads(), make_params())
