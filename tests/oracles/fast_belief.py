"""`scale_by_fast_belief` and `fast_adabelief`: for strongly convex problems."""

import numpy as np

from tests.oracles.cautious import add_decayed_weights
from tests.oracles.parts import chain, scale_by_learning_rate
from tests.oracles.trajectories import cases

FORMULA = """
    m = s = shat = 0; b2_t = 1 - gamma / t; m = b1 m + (1 - b1) g; s = b2_t s + (1 -
    b2_t) (g - m)^2; shat = max(shat, s), or s without amsgrad; u = m / (shat +
    delta / t), times 1 / t with step_decay; 0 where that is 0 / 0.
"""
ALIAS = FORMULA + " fast_adabelief: plus weight_decay w, times -learning_rate."


def scale_by_fast_belief(
    b1=0.9, gamma=0.9, delta=0.01, *, amsgrad=True, step_decay=True
):
    mean, square, largest, t = {}, {}, {}, 0

    def step(g, w):
        nonlocal t
        del w
        t += 1
        b2 = 1 - gamma / t
        u = {}
        for leaf, x in g.items():
            zero = np.zeros_like(x)
            mean[leaf] = b1 * mean.get(leaf, zero) + (1 - b1) * x
            belief = (x - mean[leaf]) ** 2
            square[leaf] = b2 * square.get(leaf, zero) + (1 - b2) * belief
            largest[leaf] = np.maximum(largest.get(leaf, zero), square[leaf])
            bottom = (largest if amsgrad else square)[leaf] + delta / t
            is_zero = bottom == 0
            u[leaf] = np.where(is_zero, 0, mean[leaf] / np.where(is_zero, 1, bottom))
            u[leaf] = u[leaf] / t if step_decay else u[leaf]
        return u, {}

    return step


def fast_adabelief(learning_rate, b1=0.9, gamma=0.9, delta=0.01, weight_decay=0.0):
    return chain(
        scale_by_fast_belief(b1, gamma, delta),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


ORACLES = {
    "scale_by_fast_belief": scale_by_fast_belief,
    "fast_adabelief": fast_adabelief,
}
CASES = [
    *cases(
        "scale_by_fast_belief",
        FORMULA,
        {
            "default": ({}, "normal heavy sparse"),
            "plain": (
                {
                    "b1": 0.75,
                    "gamma": 0.5,
                    "delta": 0.0,
                    "amsgrad": False,
                    "step_decay": False,
                },
                "normal zeros",
            ),
        },
    ),
    *cases(
        "fast_adabelief",
        ALIAS,
        {
            "wd0p25": (
                {"learning_rate": 0.0625, "delta": 0.125, "weight_decay": 0.25},
                "normal spikes",
            )
        },
    ),
]
