"""`clipped_ema`: an average that moves by clipped innovations."""

import numpy as np

from tests.oracles.clip_by_history import LAYERS
from tests.oracles.trajectories import cases
from tests.oracles.units import norm, put, take, units

FORMULA = """
    a = inner(g) or g; v_0 = 0; per unit d = a - v, v = v + (1 - decay) min(1, tau /
    ||d||) d, output v. tau = threshold, or relative * s with s of before the step,
    no clip while s = 0; then s = ||d|| if s = 0, else b2 s + (1 - b2) ||d||; a
    ||d|| of 0 or not finite leaves s. d not finite: output NaN and v as it was;
    nonfinite 'zero': the bad entries of d count as 0. init 'first': v_1 = a_1, 0
    where that is not finite, and s sees nothing then.
"""


def clipped_ema(
    decay=0.9,
    threshold=None,
    *,
    relative=None,
    b2=0.99,
    init="zero",
    inner=None,
    scope="coordinate",
    layer_axis=None,
    nonfinite="propagate",
):
    v, s, t = {}, {}, 0

    def step(g, w):
        nonlocal t
        t += 1
        a = g if inner is None else inner(g, w)[0]
        d = {leaf: x - v.get(leaf, 0) for leaf, x in a.items()}
        if t == 1:
            v.update({leaf: np.zeros_like(x) for leaf, x in a.items()})
        if nonfinite == "zero":
            d = {leaf: np.where(np.isfinite(x), x, 0) for leaf, x in d.items()}
        lost = {leaf: np.zeros(x.shape, bool) for leaf, x in a.items()}
        if t == 1 and init == "first":
            for leaf, x in d.items():
                v[leaf], lost[leaf] = np.where(np.isfinite(x), x, 0), ~np.isfinite(x)
        else:
            for unit, places in units(a, scope, layer_axis).items():
                move(unit, places, d, lost)
        u = {leaf: np.where(lost[leaf], np.nan, x) for leaf, x in v.items()}
        return u, {f"ema/{leaf}": x.copy() for leaf, x in v.items()}

    def move(unit, places, d, lost):
        n, seen = norm(take(d, places)), s.get(unit, 0)
        if not np.isfinite(n):
            put(lost, places, np.ones_like)
        if not np.isfinite(n) or n == 0:
            return
        tau = threshold if relative is None else relative * seen if seen > 0 else np.inf
        s[unit] = b2 * seen + (1 - b2) * n if seen > 0 else n
        for leaf, i in places:
            v[leaf][i] = v[leaf][i] + (1 - decay) * min(1, tau / n) * d[leaf][i]

    return step


ORACLES = {"clipped_ema": clipped_ema}
_MOMENTUM = {"factory": "ema", "kwargs": {"decay": 0.5, "debias": False}}
_KEYS = {"aux/ema/kernel": "v after the step, and so for the other leaves"}
CASES = [
    *cases(
        "clipped_ema",
        FORMULA,
        {
            "clip21_global": (
                {"decay": 0.0, "threshold": 0.5, "scope": "global"},
                "normal spikes",
            ),
            "tau0p25": ({"threshold": 0.25}, "heavy nonfinite zeros sparse"),
            "first_layers": (
                {
                    "decay": 0.75,
                    "threshold": 1.0,
                    "init": "first",
                    "scope": "leaf",
                    "layer_axis": LAYERS,
                },
                "normal nonfinite",
            ),
            "relative3": (
                {"decay": 0.75, "relative": 3.0, "b2": 0.75},
                "heavy spikes nonfinite tiny",
            ),
            "relative1p5_global_zero": (
                {
                    "decay": 0.5,
                    "relative": 1.5,
                    "scope": "global",
                    "nonfinite": "zero",
                },
                "nonfinite",
            ),
        },
        _KEYS,
        ("ema",),
    ),
    *cases(  # the inner average is a field `ema` too
        "clipped_ema",
        FORMULA,
        {
            "relative2_leaf_inner": (
                {"relative": 2.0, "scope": "leaf", "inner": _MOMENTUM},
                "normal spikes",
            ),
        },
        _KEYS,
    ),
]
