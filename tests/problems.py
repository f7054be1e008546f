"""Small objectives with known minima, and noise with heavy tails."""

import jax
import jax.numpy as jnp
import numpy as np


def quadratic(dimension, condition):
    """A strongly convex quadratic of modulus 1 in no special basis, and its minimum."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    hessian = basis @ np.diag(np.geomspace(1.0, condition, dimension)) @ basis.T
    hessian = jnp.asarray(hessian, jnp.float32)
    optimum = jnp.asarray(rng.normal(size=dimension), jnp.float32)

    def loss(x):
        return 0.5 * (x - optimum) @ hessian @ (x - optimum)

    return loss, optimum


def rosenbrock(x):
    """The valley 100 (y - x^2)^2 + (1 - x)^2, whose minimum is 0 at (1, 1)."""
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def pareto(key, tail, shape):
    """One-sided noise of mean 0 with infinite moments of all orders above ``tail``.

    It is the hard kind: clipping it has a bias, which only a growing threshold undoes.
    """
    return jax.random.pareto(key, tail, shape) - tail / (tail - 1)
