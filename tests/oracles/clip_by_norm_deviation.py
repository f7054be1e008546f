"""`clip_by_norm_deviation`: a limit by the deviation within a window of norms."""

import numpy as np

from tests.oracles.trajectories import cases
from tests.oracles.units import clip_by_rule
from tests.oracles.windows import acts, mean_limit, robust_limit

FORMULA = """
    Per unit, of its last window norms n before this one that are finite and not 0
    (remember 'clipped': as they left): rule 'median': c = exp(median(l) +
    max_deviations max(1.4826 MAD(l), 0.05)), l their logarithms, once the window is
    full; rule 'mean': c = mean + max_deviations max(s, 1e-6), s the biased
    deviation of the norms, from max(2, window // 2) norms on. u = min(1, c / n) g.
"""


def clip_by_norm_deviation(
    max_deviations=6.0,
    window=128,
    *,
    rule="median",
    remember="raw",
    scope="global",
    layer_axis=None,
    nonfinite="propagate",
):
    def new_unit():
        past = []

        def see(n):
            last, limit = np.array(past[-window:]), np.inf
            if acts(rule, len(last), window):
                if rule == "median":
                    limit = np.exp(robust_limit(np.log(last), max_deviations, 0.05))
                else:
                    limit = mean_limit(last, max_deviations, ddof=0, floor=1e-6)
            length = min(n, limit)
            past.append(n if remember == "raw" else length)
            return length, {"threshold": limit}

        return see

    return clip_by_rule(new_unit, {"threshold": np.inf}, scope, layer_axis, nonfinite)


ORACLES = {"clip_by_norm_deviation": clip_by_norm_deviation}
CASES = cases(
    "clip_by_norm_deviation",
    FORMULA,
    {
        "w8": ({"window": 8}, "spikes nonfinite tiny zeros"),
        "c1_w5_clipped": (
            {"max_deviations": 1.0, "window": 5, "remember": "clipped"},
            "normal heavy",
        ),
        "mean_c2_w10": (
            {"max_deviations": 2.0, "window": 10, "rule": "mean"},
            "normal heavy nonfinite",
        ),
        "c2_w4_leaf_zero": (
            {
                "max_deviations": 2.0,
                "window": 4,
                "scope": "leaf",
                "nonfinite": "zero",
            },
            "sparse spikes nonfinite",
        ),
    },
    {"aux/threshold": "c at the unit's last good norm, or inf"},
    ("threshold",),
)
