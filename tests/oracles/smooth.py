"""`clip_smoothly`: clips without a kink."""

import numpy as np

from tests.oracles.clip_by_history import LAYERS
from tests.oracles.trajectories import cases
from tests.oracles.units import copy, norm, put, take, units

FORMULA = """
    Per unit (coordinate: each entry) with norm r: u = g length / r, length = tau
    tanh(r / tau) ('tanh'), (2 tau / pi) arctan(pi r / (2 tau)) ('arctan'), r /
    sqrt(1 + (r / tau)^2) ('algebraic') or r / (1 + r / tau) ('softsign'). A unit
    that is not finite is NaN; nonfinite 'zero': its bad entries count as 0.
"""
LENGTHS = {
    "tanh": lambda r, tau: tau * np.tanh(r / tau),
    "arctan": lambda r, tau: 2 * tau / np.pi * np.arctan(np.pi * r / (2 * tau)),
    "algebraic": lambda r, tau: r / np.hypot(1, r / tau),
    "softsign": lambda r, tau: r / (1 + r / tau),
}


def clip_smoothly(
    threshold,
    *,
    shape="algebraic",
    scope="coordinate",
    layer_axis=None,
    nonfinite="propagate",
):
    def step(g, w):
        del w
        u = copy(g)
        if nonfinite == "zero":
            for x in u.values():
                x[~np.isfinite(x)] = 0
        for places in units(u, scope, layer_axis).values():
            r = norm(take(u, places))
            if not np.isfinite(r):
                put(u, places, lambda x: np.full_like(x, np.nan))
            elif r > 0:
                length = LENGTHS[shape](r, threshold)
                put(u, places, lambda x, n=r, y=length: x / n * y)
        return u, {}

    return step


ORACLES = {"clip_smoothly": clip_smoothly}
CASES = cases(
    "clip_smoothly",
    FORMULA,
    {
        "algebraic": ({"threshold": 0.5}, "normal heavy nonfinite zeros"),
        "tanh_leaf": (
            {"threshold": 2.0, "shape": "tanh", "scope": "leaf"},
            "normal spikes nonfinite",
        ),
        "arctan": ({"threshold": 0.5, "shape": "arctan"}, "heavy tiny"),
        "softsign_layers_zero": (
            {
                "threshold": 1.0,
                "shape": "softsign",
                "scope": "leaf",
                "layer_axis": LAYERS,
                "nonfinite": "zero",
            },
            "heavy nonfinite",
        ),
        "algebraic_global": ({"threshold": 2.0, "scope": "global"}, "spikes"),
    },
)
