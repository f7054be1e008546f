"""`clip_by_norm_quantile`: a quantile of a window of norms."""

import numpy as np

from tests.oracles.clip_by_history import LAYERS
from tests.oracles.trajectories import cases
from tests.oracles.units import clip_by_rule

FORMULA = """
    Per unit, of its norms n that are finite and not 0, before the clip: pool_t =
    last min(t, window) norms, the present one included (include_current) or the
    last window before it; c = quantile of the pool, linear between its sorted norms
    at position quantile * (size - 1), no limit while the pool has fewer than
    max(min_history, 1); u = min(1, c / n) g.
"""


def clip_by_norm_quantile(
    quantile=0.9,
    window=1000,
    *,
    include_current=True,
    min_history=1,
    scope="global",
    layer_axis=None,
    nonfinite="propagate",
):
    def new_unit():
        norms = []

        def see(n):
            pool = norms[-window:]
            norms.append(n)
            if include_current:
                pool = norms[-window:]
            limit = np.inf
            if len(pool) >= max(min_history, 1):
                limit = linear_quantile(pool, quantile)
            return min(n, limit), {"threshold": limit}

        return see

    return clip_by_rule(new_unit, {"threshold": np.inf}, scope, layer_axis, nonfinite)


def linear_quantile(pool, quantile):
    ordered = sorted(pool)
    position = quantile * (len(ordered) - 1)
    below = int(position)
    if below == position:
        return ordered[below]
    low, high = ordered[below : below + 2]
    return low + (position - below) * (high - low)


ORACLES = {"clip_by_norm_quantile": clip_by_norm_quantile}
CASES = cases(
    "clip_by_norm_quantile",
    FORMULA,
    {
        "default": ({}, "normal spikes"),
        "q0p5_w4": ({"quantile": 0.5, "window": 4}, "heavy nonfinite tiny zeros"),
        "q0p1_w8_past_leaf": (
            {
                "quantile": 0.1,
                "window": 8,
                "include_current": False,
                "min_history": 3,
                "scope": "leaf",
            },
            "normal sparse nonfinite",
        ),
        "q0p75_w5_layers_zero": (
            {
                "quantile": 0.75,
                "window": 5,
                "scope": "leaf",
                "layer_axis": LAYERS,
                "nonfinite": "zero",
            },
            "heavy nonfinite",
        ),
    },
    {"aux/threshold": "c at the unit's last good norm, or inf"},
    ("threshold",),
)
