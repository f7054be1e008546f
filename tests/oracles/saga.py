"""`saga`: SAGA and SAG, the last gradient of each group of the data remembered."""

import numpy as np

from tests.oracles.trajectories import STEPS, cases

FORMULA = """
    y_1 ... y_n = 0; step with group j: u = g - y_j + mean of the y ('saga'), or (g
    - y_j + sum of the y) / (number of groups seen so far, j included) ('sag'); then
    y_j = g. A g that is not finite anywhere: u is NaN everywhere, y stays, j is not
    seen by it.
"""


def saga(num_groups, *, variant="saga"):
    table, seen = {}, set()

    def step(g, w, group):
        del w
        if not all(np.all(np.isfinite(x)) for x in g.values()):
            return {leaf: np.full_like(x, np.nan) for leaf, x in g.items()}, {}
        seen.add(int(group))
        u = {}
        for leaf, x in g.items():
            y = table.setdefault(leaf, np.zeros((num_groups, *x.shape), x.dtype))
            if variant == "saga":
                u[leaf] = x - y[group] + np.sum(y, axis=0) / num_groups
            else:
                u[leaf] = (x - y[group] + np.sum(y, axis=0)) / len(seen)
            y[group] = x
        return u, {}

    return step


def groups():
    return {"extra/group": (np.arange(STEPS) * 7 + np.arange(STEPS) // 6) % 5}


ORACLES = {"saga": saga}
CASES = cases(
    "saga",
    FORMULA,
    {
        "saga5": ({"num_groups": 5}, "normal nonfinite zeros"),
        "sag5": ({"num_groups": 5, "variant": "sag"}, "normal heavy nonfinite"),
    },
    {"extra/group": "the argument `group`, from 0"},
    extra=groups,
)
