"""Langevin steps: their limit without noise, and the covariance they settle at."""

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from tests.oracles.trajectories import cases

OVER = """
    u = -learning_rate (g + J g) + sqrt(2 learning_rate / inverse_temperature) xi; J
    pairs neighbours of each leaf, flattened: (x, y) to skew (y, -x), an odd last
    entry to 0. Here the temperature is so low that xi is nothing.
"""
UNDER = """
    v_0 = 0; v = v - learning_rate (friction v + g) + sqrt(2 friction learning_rate
    / inverse_temperature) xi; u = learning_rate v with the new v. Here xi is
    nothing.
"""


def turned(x, skew):
    flat = x.ravel()
    y, even = np.zeros_like(flat), flat.size // 2 * 2
    y[0:even:2], y[1:even:2] = skew * flat[1:even:2], -skew * flat[0:even:2]
    return y.reshape(x.shape)


def overdamped_langevin(learning_rate, inverse_temperature, *, skew=0.0, key=None):
    del inverse_temperature, key

    def step(g, w):
        del w
        return {
            leaf: -learning_rate * (x + turned(x, skew)) for leaf, x in g.items()
        }, {}

    return step


def underdamped_langevin(learning_rate, friction, inverse_temperature, *, key=None):
    del inverse_temperature, key
    v = {}

    def step(g, w):
        del w
        for leaf, x in g.items():
            old = v.get(leaf, np.zeros_like(x))
            v[leaf] = old - learning_rate * (friction * old + x)
        return {leaf: learning_rate * x for leaf, x in v.items()}, {}

    return step


def skew_matrix(size, skew):
    return np.stack([turned(row, skew) for row in np.eye(size)], axis=1)


def overdamped_covariance(hessian, rate, inverse_temperature, skew=0.0):
    """Of ``w`` in the long run, for the potential ``w^T hessian w / 2``."""
    size = len(hessian)
    drift = np.eye(size) + skew_matrix(size, skew)
    transition = np.eye(size) - rate * drift @ hessian
    noise = 2 * rate / inverse_temperature * np.eye(size)
    return solve_discrete_lyapunov(transition, noise)


def underdamped_covariance(hessian, rate, friction, inverse_temperature):
    """Of ``(v, w)`` in the long run."""
    one = np.eye(len(hessian))
    new_v = np.hstack([(1 - rate * friction) * one, -rate * hessian])
    new_w = np.hstack([0 * one, one]) + rate * new_v
    noise = np.sqrt(2 * friction * rate / inverse_temperature) * np.vstack(
        [one, rate * one]
    )
    return solve_discrete_lyapunov(np.vstack([new_v, new_w]), noise @ noise.T)


ORACLES = {
    "overdamped_langevin": overdamped_langevin,
    "underdamped_langevin": underdamped_langevin,
}
_COLD = {"learning_rate": 0.0625, "inverse_temperature": 1e30, "key": 0}
CASES = [
    *cases(
        "overdamped_langevin", OVER, {"skew0p5": ({**_COLD, "skew": 0.5}, "normal")}
    ),
    *cases(
        "underdamped_langevin",
        UNDER,
        {"friction2": ({**_COLD, "friction": 2.0}, "normal")},
    ),
]
