"""Normalised momentum: `normalize_by_norm`, `normalized_gd`, a start, schedules."""

import math

import numpy as np

from tests.oracles.clip_by_history import LAYERS
from tests.oracles.trajectories import cases
from tests.oracles.units import copy, norm, put, take, units

FORMULA = """
    With max_norm: g = g min(1, max_norm / ||g||) per unit. m_0 = 0, or m_1 = g_1
    with init 'first'; m = b1 m + (1 - b1) g; d = m, or b1 m + (1 - b1) g with
    nesterov; u = -learning_rate d / (||d|| + offset) per unit, 0 where that is 0 /
    0.
"""
UNITS = "Per unit u = g / (||g|| + offset), 0 where that is 0 / 0."
FIRST = "m_1 = g_1, then m = decay m + (1 - decay) g; output m."


def ema_from_first(decay):
    mean = {}

    def step(g, w):
        del w
        for leaf, x in g.items():
            mean[leaf] = decay * mean[leaf] + (1 - decay) * x if leaf in mean else x
        return dict(mean), {}

    return step


def normalize_by_norm(offset=1e-8, *, scope="global", layer_axis=None):
    def step(g, w):
        del w
        u = copy(g)
        for places in units(u, scope, layer_axis).values():
            n = norm(take(u, places))
            put(u, places, lambda x, n=n: x / (n + offset) if n + offset else x)
        return u, {}

    return step


def normalized_gd(
    learning_rate,
    offset=1e-8,
    b1=0.0,
    *,
    init="zero",
    scope="global",
    max_norm=None,
    nesterov=False,
):
    mean = {}
    normalize = normalize_by_norm(offset, scope=scope)

    def step(g, w):
        g = copy(g)
        for places in units(g, scope).values():
            n = norm(take(g, places))
            if max_norm is not None and n > max_norm:
                put(g, places, lambda x, h=max_norm / n: h * x)
        d = {}
        for leaf, x in g.items():
            old = mean.get(leaf, x if init == "first" else np.zeros_like(x))
            mean[leaf] = b1 * old + (1 - b1) * x
            d[leaf] = b1 * mean[leaf] + (1 - b1) * x if nesterov else mean[leaf]
        u = normalize(d, w)[0]
        return {leaf: -learning_rate * x for leaf, x in u.items()}, {}

    return step


def normalized_momentum(num_steps=None, tail_order=None, scale=1.0):
    """``(learning_rate, b1)`` as functions of the count from 0."""
    if num_steps is None:
        return lambda k: scale * (k + 1) ** -0.75, lambda k: 1 - (k + 1) ** -0.5
    decay, rate = 1 / 2, 3 / 4
    if tail_order is not None:
        p = tail_order
        decay, rate = p / (3 * p - 2), (2 * p - 1) / (3 * p - 2)
    return lambda k: scale * num_steps**-rate, lambda k: 1 - num_steps**-decay


def batch_for_normalized(num_steps, tail_order):
    batch = num_steps ** (tail_order / (2 * (tail_order - 1)))
    return math.ceil(batch * (1 - 1e-9))


ORACLES = {
    "normalize_by_norm": normalize_by_norm,
    "normalized_gd": normalized_gd,
}
CASES = [
    *cases(
        "normalize_by_norm",
        UNITS,
        {
            "leaf": ({"offset": 0.0, "scope": "leaf"}, "sparse tiny"),
            "layers": (
                {"offset": 0.25, "scope": "leaf", "layer_axis": LAYERS},
                "heavy zeros",
            ),
        },
    ),
    *cases(
        "normalized_gd",
        FORMULA,
        {
            "first_nesterov": (
                {
                    "learning_rate": 0.0625,
                    "b1": 0.875,
                    "init": "first",
                    "nesterov": True,
                    "scope": "leaf",
                },
                "normal heavy sparse",
            ),
            "max_norm3": (
                {
                    "learning_rate": 0.0625,
                    "offset": 0.0,
                    "b1": 0.75,
                    "init": "zero",
                    "scope": "global",
                    "max_norm": 3.0,
                },
                "heavy zeros",
            ),
        },
    ),
]
