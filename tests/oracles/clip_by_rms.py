"""`clip_by_rms`: the root mean square of each leaf's update, limited."""

import numpy as np

from tests.oracles.clip_by_history import LAYERS
from tests.oracles.trajectories import cases
from tests.oracles.units import copy, norm, put, take, units

FORMULA = """
    Per unit: rms = norm / sqrt(number of entries), u = min(1, threshold / rms) g. A
    unit that is not finite is NaN; nonfinite 'zero': its bad entries count as 0.
"""


def clip_by_rms(threshold=1.0, *, scope="leaf", layer_axis=None, nonfinite="propagate"):
    def step(g, w):
        del w
        u = copy(g)
        if nonfinite == "zero":
            for x in u.values():
                x[~np.isfinite(x)] = 0
        for places in units(u, scope, layer_axis).values():
            entries = take(u, places)
            rms = norm(entries) / np.sqrt(entries.dtype.type(entries.size))
            if not np.isfinite(rms):
                put(u, places, lambda x: np.full_like(x, np.nan))
            elif rms > threshold:
                put(u, places, lambda x, h=threshold / rms: h * x)
        return u, {}

    return step


ORACLES = {"clip_by_rms": clip_by_rms}
CASES = cases(
    "clip_by_rms",
    FORMULA,
    {
        "default": ({}, "normal spikes nonfinite zeros"),
        "t0p25_layers_zero": (
            {"threshold": 0.25, "layer_axis": LAYERS, "nonfinite": "zero"},
            "heavy nonfinite",
        ),
        "t1em30_global": ({"threshold": 2.0**-101, "scope": "global"}, "tiny"),
    },
)
