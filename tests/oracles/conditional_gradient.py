"""`conditional_gradient`: penalised conditional gradient of a squared gauge."""

import numpy as np

from tests.oracles.spectral import decompose
from tests.oracles.trajectories import cases

FORMULA = """
    u = theta (s - w), theta = 2 / (t + 1), t = 1, 2, ..., or step. s minimises <g,
    s> + strength / 2 gauge(s)^2: 'l1' -(max|g| / strength) sign(g_i) e_i, i the
    first largest over all leaves; 'l2' -g / strength; 'linf' -(sum|g| / strength)
    sign(g), over all leaves; 'spectral' per matrix of the last two axes -(sum of
    singular values / strength) U V^T over its positive singular values, other
    leaves as 'l2'. 0 for g = 0.
"""


def spectral(x, strength):
    if x.ndim < 2:
        return -x / strength
    left, values, right = decompose(x)
    rank = np.sum(values > 1e-12 * values[0])
    return -np.sum(values) / strength * left[:, :rank] @ right[:rank]


def conditional_gradient(strength, gauge="l1", *, step=None):
    t = 0

    def minimiser(g):
        if gauge == "l2":
            return {leaf: -x / strength for leaf, x in g.items()}
        if gauge == "spectral":
            return {leaf: spectral(x, strength) for leaf, x in g.items()}
        sizes = {leaf: np.abs(x) for leaf, x in g.items()}
        if gauge == "linf":
            total = sum(np.sum(x) for x in sizes.values())
            return {leaf: -total / strength * np.sign(x) for leaf, x in g.items()}
        s = {leaf: np.zeros_like(x) for leaf, x in g.items()}
        leaf = max(sorted(g), key=lambda leaf: np.max(sizes[leaf]))
        i = np.unravel_index(np.argmax(sizes[leaf]), sizes[leaf].shape)
        s[leaf][i] = -g[leaf][i] / strength
        return s

    def update(g, w):
        nonlocal t
        t += 1
        theta = 2 / (t + 1) if step is None else step
        s = minimiser(g)
        return {leaf: theta * (s[leaf] - w[leaf]) for leaf in g}, {}

    return update


ORACLES = {"conditional_gradient": conditional_gradient}
CASES = [
    *cases(
        "conditional_gradient",
        FORMULA,
        {
            "l1": ({"strength": 2.0, "gauge": "l1"}, "normal zeros"),
            "l2": ({"strength": 2.0, "gauge": "l2", "step": 0.25}, "heavy"),
            "linf": ({"strength": 4.0, "gauge": "linf"}, "normal sparse"),
        },
    ),
    *cases(
        "conditional_gradient",
        FORMULA,
        {"spectral": ({"strength": 4.0, "gauge": "spectral"}, "normal zeros")},
        loose=(1e-8, 1e-4),
    ),
]
