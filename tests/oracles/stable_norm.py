"""`scale_by_stable_norm`: lengths replaced by a ratio of averaged norms."""

import numpy as np

from tests.oracles.clip_by_history import LAYERS
from tests.oracles.trajectories import cases
from tests.oracles.units import copy, norm, put, take, units

FORMULA = """
    Per unit, of its norms n that are finite and not 0, s of them so far: x = n or,
    with max_ratio and s > 1, min(n, max_ratio sqrt(v / (1 - b2^(s-1)))); m = b1 m +
    (1 - b1) x, v = b2 v + (1 - b2) x^2, from 0; u = (g / n) (m / (1 - b1^s)) /
    (sqrt(v / (1 - b2^s)) + eps).
"""


def scale_by_stable_norm(
    b1=0.6,
    b2=0.999,
    eps=1e-12,
    *,
    max_ratio=None,
    scope="leaf",
    layer_axis=None,
    nonfinite="propagate",
):
    moments = {}

    def ratio(unit, n):
        m, r, s = moments.get(unit, (0, 0, 0))  # r is the root of v: no underflow
        x = n
        if max_ratio is not None and s > 0:
            x = min(n, max_ratio * r / (1 - b2**s) ** 0.5)
        m, s = b1 * m + (1 - b1) * x, s + 1
        r = np.hypot(b2**0.5 * r, (1 - b2) ** 0.5 * x)
        moments[unit] = m, r, s
        return m / (1 - b1**s) / (r / (1 - b2**s) ** 0.5 + eps)

    def step(g, w):
        del w
        u = copy(g)
        if nonfinite == "zero":
            for x in u.values():
                x[~np.isfinite(x)] = 0
        for unit, places in units(u, scope, layer_axis).items():
            n = norm(take(u, places))
            if not np.isfinite(n):
                put(u, places, lambda x: np.full_like(x, np.nan))
            elif n > 0:
                r = ratio(unit, n)
                put(u, places, lambda x, n=n, r=r: x / n * r)
        return u, {}

    return step


ORACLES = {"scale_by_stable_norm": scale_by_stable_norm}
CASES = cases(
    "scale_by_stable_norm",
    FORMULA,
    {
        "default": ({}, "normal spikes nonfinite zeros"),
        "cap3_layers_zero": (
            {"max_ratio": 3.0, "layer_axis": LAYERS, "nonfinite": "zero"},
            "heavy nonfinite sparse",
        ),
        "0p7_0p9_cap2_global": (
            {"b1": 0.7, "b2": 0.9, "eps": 0.0, "max_ratio": 2.0, "scope": "global"},
            "spikes tiny",
        ),
    },
)
