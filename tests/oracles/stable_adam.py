"""`scale_by_stable_adam` and `stable_adamw`: Adam, shorter where it was surprised."""

import numpy as np

from tests.oracles.cautious import add_decayed_weights
from tests.oracles.clip_by_history import LAYERS
from tests.oracles.parts import (
    chain,
    scale_by_learning_rate,
)
from tests.oracles.trajectories import cases
from tests.oracles.units import put, take, units

FORMULA = """
    m = v = 0; bhat_i = b_i (1 - b_i^(t-1)) / (1 - b_i^t); m = bhat_1 m + (1 -
    bhat_1) g; v = bhat_2 v + (1 - bhat_2) g^2; per leaf (slice along layer_axis)
    rms = sqrt(mean of g^2 / max(v, eps^2)); u = m / (sqrt(v) + eps) / max(1, rms /
    threshold).
"""
ADAMW = (
    FORMULA
    + " stable_adamw: the factor 1 / max(1, rms / threshold) is on m / (sqrt(v) + eps) "
    "+ weight_decay w, times -learning_rate."
)


def scale_by_stable_adam(
    b1=0.9, b2=0.99, eps=1e-6, *, threshold=1.0, layer_axis=None, after=None
):
    mean, square, t = {}, {}, 0

    def step(g, w):
        nonlocal t
        t += 1
        bhat1, bhat2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (b1, b2))
        u, ratio = {}, {}
        for leaf, x in g.items():
            zero = np.zeros_like(x)
            mean[leaf] = bhat1 * mean.get(leaf, zero) + (1 - bhat1) * x
            square[leaf] = bhat2 * square.get(leaf, zero) + (1 - bhat2) * x**2
            u[leaf] = mean[leaf] / (np.sqrt(square[leaf]) + eps)
            ratio[leaf] = x / np.maximum(np.sqrt(square[leaf]), eps)
        if after is not None:
            u = after(u, w)[0]
        for places in units(g, "leaf", layer_axis).values():
            rms = np.sqrt(np.mean(take(ratio, places) ** 2))
            h = max(1, rms / threshold)
            put(u, places, lambda x, h=h: x / h)
        return u, {}

    return step


def stable_adamw(
    learning_rate,
    b1=0.9,
    b2=0.99,
    eps=1e-6,
    weight_decay=0.0,
    *,
    threshold=1.0,
    layer_axis=None,
):
    return chain(
        scale_by_stable_adam(
            b1,
            b2,
            eps,
            threshold=threshold,
            layer_axis=layer_axis,
            after=add_decayed_weights(weight_decay),
        ),
        scale_by_learning_rate(learning_rate),
    )


ORACLES = {"scale_by_stable_adam": scale_by_stable_adam, "stable_adamw": stable_adamw}
CASES = [
    *cases(
        "scale_by_stable_adam",
        FORMULA,
        {
            "default": ({}, "normal heavy zeros sparse"),
            "d0p5_layers": (
                {
                    "b1": 0.75,
                    "b2": 0.5,
                    "eps": 2.0**-20,
                    "threshold": 0.5,
                    "layer_axis": LAYERS,
                },
                "normal spikes",
            ),
        },
    ),
    *cases(
        "stable_adamw",
        ADAMW,
        {
            "wd0p25": (
                {"learning_rate": 0.0625, "weight_decay": 0.25, "b2": 0.9},
                "heavy spikes zeros",
            )
        },
    ),
]
