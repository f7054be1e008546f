"""`clip_by_history`: a multiple of the median of past norms."""

import numpy as np

from tests.oracles.trajectories import cases
from tests.oracles.units import clip_by_rule

FORMULA = """
    Per unit, of its norms n that are finite and not 0, before the clip: limit_t =
    factor * median(last min(seen, window) norms before t), no limit while seen <
    max(warmup_steps, 1); u = min(1, limit_t / n) g; then n enters. A unit that is 0
    gives 0, one that is not finite 0 (nonfinite 'zero') or NaN ('propagate'), and
    nothing of them enters. Median of an even number: mean of the two middle ones.
    mask false: the leaf passes and is in no norm.
"""


def clip_by_history(
    factor=2.0,
    window=100,
    *,
    scope="global",
    layer_axis=None,
    warmup_steps=10,
    nonfinite="zero",
    mask=None,
):
    def new_unit():
        past = []

        def see(n):
            limit = np.inf
            if len(past) >= max(warmup_steps, 1):
                limit = factor * np.median(past[-window:])
            past.append(n)
            return min(n, limit), {"threshold": limit}

        return see

    nonfinite = "zero unit" if nonfinite == "zero" else nonfinite
    return clip_by_rule(
        new_unit, {"threshold": np.inf}, scope, layer_axis, nonfinite, mask
    )


ORACLES = {"clip_by_history": clip_by_history}
LAYERS = {"kernel": 0, "bias": None, "zero": None, "scalar": None}
MASK = {"kernel": True, "bias": False, "zero": True, "scalar": True}
_SETTINGS = {
    "default": ({}, "normal spikes nonfinite"),
    "w5": ({"factor": 1.2, "window": 5, "warmup_steps": 3}, "heavy tiny sparse zeros"),
    "w4_leaf": (
        {"factor": 1.1, "window": 4, "warmup_steps": 0, "scope": "leaf"},
        "normal heavy sparse nonfinite",
    ),
    "w6_layers": (
        {"window": 6, "warmup_steps": 2, "scope": "leaf", "layer_axis": LAYERS},
        "heavy spikes",
    ),
    "propagate_mask": (
        {"window": 8, "warmup_steps": 4, "nonfinite": "propagate", "mask": MASK},
        "nonfinite spikes",
    ),
}
CASES = cases(
    "clip_by_history",
    FORMULA,
    _SETTINGS,
    {"aux/threshold": "limit at the unit's last good norm, or inf"},
    ("threshold",),
)
