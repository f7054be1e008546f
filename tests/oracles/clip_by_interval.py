"""`clip_by_interval` and `biclip`: sizes between two bounds."""

import numpy as np

from tests.oracles.cautious import add_decayed_weights
from tests.oracles.clip_by_history import LAYERS
from tests.oracles.parts import chain, scale_by_learning_rate
from tests.oracles.trajectories import cases
from tests.oracles.units import copy, norm, put, take, units

FORMULA = """
    Per unit (coordinate: each entry) with norm n: u = g min(max(n, lower), upper) /
    n, 0 where n is 0. A unit that is not finite is NaN; nonfinite 'zero': its bad
    entries count as 0.
"""
ALIAS = FORMULA + " biclip: plus weight_decay w, times -learning_rate."


def clip_by_interval(
    lower, upper, *, scope="coordinate", layer_axis=None, nonfinite="propagate"
):
    def step(g, w):
        del w
        u = copy(g)
        if nonfinite == "zero":
            for x in u.values():
                x[~np.isfinite(x)] = 0
        for places in units(u, scope, layer_axis).values():
            n = norm(take(u, places))
            if not np.isfinite(n):
                put(u, places, lambda x: np.full_like(x, np.nan))
            elif n > 0:
                length = min(max(n, lower), upper)
                put(u, places, lambda x, n=n, y=length: x / n * y if n != y else x)
        return u, {}

    return step


def biclip(learning_rate, lower, upper, weight_decay=0.0):
    return chain(
        clip_by_interval(lower, upper),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


ORACLES = {"clip_by_interval": clip_by_interval, "biclip": biclip}
CASES = [
    *cases(
        "clip_by_interval",
        FORMULA,
        {
            "coordinate": (
                {"lower": 0.25, "upper": 0.75},
                "normal sparse nonfinite tiny",
            ),
            "global_zero": (
                {"lower": 3.0, "upper": 4.0, "scope": "global", "nonfinite": "zero"},
                "normal nonfinite zeros",
            ),
            "layers": (
                {
                    "lower": 0.5,
                    "upper": 0.75,
                    "scope": "leaf",
                    "layer_axis": LAYERS,
                },
                "heavy",
            ),
        },
    ),
    *cases(
        "biclip",
        ALIAS,
        {
            "wd0p25": (
                {
                    "learning_rate": 0.0625,
                    "lower": 0.125,
                    "upper": 0.5,
                    "weight_decay": 0.25,
                },
                "normal heavy",
            )
        },
    ),
]
