"""Parts that are no method of their own: averages, Adam, rates, chains."""

import numpy as np


def ema(decay, debias=False):
    """``m = decay m + (1 - decay) g``, divided by ``1 - decay^t`` if ``debias``."""
    mean, t = {}, 0

    def step(g, w):
        nonlocal t
        del w
        t += 1
        for leaf, x in g.items():
            mean[leaf] = decay * mean.get(leaf, np.zeros_like(x)) + (1 - decay) * x
        weight = 1 - decay**t if debias else 1
        return {leaf: m / weight for leaf, m in mean.items()}, {}

    return step


def scale_by_adam(b1=0.9, b2=0.999, eps=1e-8):
    """Adam's direction ``m_hat / (sqrt(v_hat) + eps)``."""
    mean, square, t = {}, {}, 0

    def step(g, w):
        nonlocal t
        del w
        t += 1
        u = {}
        for leaf, x in g.items():
            zero = np.zeros_like(x)
            mean[leaf] = b1 * mean.get(leaf, zero) + (1 - b1) * x
            square[leaf] = b2 * square.get(leaf, zero) + (1 - b2) * x**2
            root = np.sqrt(square[leaf] / (1 - b2**t))
            u[leaf] = mean[leaf] / (1 - b1**t) / (root + eps)
        return u, {}

    return step


def scale_by_learning_rate(learning_rate):
    """``-learning_rate g``."""

    def step(g, w):
        del w
        return {leaf: -learning_rate * x for leaf, x in g.items()}, {}

    return step


def chain(*steps):
    """One after the other; what can be read of any."""

    def step(g, w, **extra):
        aux = {}
        for each in steps:
            g, more = each(g, w, **extra) if each is steps[0] else each(g, w)
            aux |= more
        return g, aux

    return step


ORACLES = {
    "ema": ema,
    "scale_by_adam": scale_by_adam,
    "scale_by_learning_rate": scale_by_learning_rate,
    "optax.chain": chain,
}
CASES = []
