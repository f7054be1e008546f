"""The aliases minimise what they should, where plain descent fails."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.problems import pareto, quadratic, rosenbrock

STEPS = 3000
RATE = optax.cosine_decay_schedule(0.03, STEPS)

OPTIMIZERS = {
    "acclip": oht.acclip(RATE, weight_decay=0.0),
    "acclip-normalize": oht.acclip(RATE, weight_decay=0.0, normalize=True),
    "gclip": oht.gclip(RATE, threshold=1.0),
    "cclip": oht.cclip(RATE, threshold=1.0),
}
each_optimizer = pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)


def _minimize(tx, gradient, start):
    def step(carry, key):
        params, state = carry
        updates, state = tx.update(gradient(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), STEPS)
    carry = (start, tx.init(start))
    return jax.jit(lambda c: jax.lax.scan(step, c, keys)[0][0])(carry)


def _rosenbrock(tx):
    start = jnp.array([-1.2, 1.0])
    return rosenbrock(_minimize(tx, lambda x, key: jax.grad(rosenbrock)(x), start))


@each_optimizer
def test_rosenbrock(tx):
    assert _rosenbrock(tx) < 1e-9


def test_descent_diverges_there_at_the_same_rate():
    assert np.isnan(_rosenbrock(optax.sgd(RATE)))


@each_optimizer
def test_quadratic_with_noise_of_infinite_variance(tx):
    loss, optimum = quadratic(dimension=10, condition=10.0)

    def gradient(x, key):
        return jax.grad(loss)(x) + pareto(key, 1.3, x.shape)

    start = optimum + 1.0
    # One-sided noise leaves a bias behind every clip that does not grow.
    assert loss(_minimize(tx, gradient, start)) < 0.2 * loss(start)
