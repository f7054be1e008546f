"""`scale_by_adam_atan2` and `adam_atan2`: Adam without an epsilon."""

import numpy as np

from tests.oracles.cautious import add_decayed_weights
from tests.oracles.parts import chain, scale_by_learning_rate
from tests.oracles.trajectories import cases

FORMULA = """
    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, from 0; u = scale atan2(m / (1 -
    b1^t), ratio sqrt(v / (1 - b2^t))), 0 where both are 0.
"""
ALIAS = FORMULA + " adam_atan2: plus weight_decay w, times -learning_rate."


def scale_by_adam_atan2(b1=0.9, b2=0.999, *, scale=4 / np.pi, ratio=1.0):
    mean, root, t = {}, {}, 0

    def step(g, w):
        nonlocal t
        del w
        t += 1
        u = {}
        for leaf, x in g.items():
            old = mean.get(leaf, np.zeros_like(x)), root.get(leaf, np.zeros_like(x))
            mean[leaf] = b1 * old[0] + (1 - b1) * x
            # The root of v: squares of 1e-30 are nothing in float32.
            root[leaf] = np.hypot(b2**0.5 * old[1], (1 - b2) ** 0.5 * x)
            m, r = mean[leaf] / (1 - b1**t), root[leaf] / (1 - b2**t) ** 0.5
            u[leaf] = scale * np.arctan2(m, ratio * r)
        return u, {}

    return step


def adam_atan2(learning_rate, b1=0.9, b2=0.999, weight_decay=0.0):
    return chain(
        scale_by_adam_atan2(b1, b2),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


ORACLES = {"scale_by_adam_atan2": scale_by_adam_atan2, "adam_atan2": adam_atan2}
CASES = [
    *cases(
        "scale_by_adam_atan2",
        FORMULA,
        {
            "default": ({}, "normal heavy zeros tiny sparse"),
            "ratio2": (
                {"b1": 0.75, "b2": 0.75, "scale": 0.5, "ratio": 2.0},
                "normal spikes",
            ),
        },
    ),
    *cases(
        "adam_atan2",
        ALIAS,
        {"wd0p25": ({"learning_rate": 0.0625, "weight_decay": 0.25}, "normal zeros")},
        # In the leaf of one entry direction and decay cancel to a twentieth.
        loose=(1e-10, 1e-5),
    ),
]
