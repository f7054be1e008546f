"""`cautious`, `grams` and cautious weight decay: signs of gradient and step agree."""

import numpy as np

from tests.oracles.clip_by_history import LAYERS
from tests.oracles.trajectories import cases
from tests.oracles.units import copy, put, take, units

CAUTIOUS = """
    u = inner(g), phi = 1 where sign(u) sign(g) > 0 (descent: < 0), else 0. Per unit
    of d entries: output u phi / max(mean phi, floor) ('mean') or u phi d / (sum phi
    + 1) ('paper').
"""
GRAMS = "u = inner(g); output sign(g) |u|."
DECAY = "g + weight_decay w where sign(g) sign(w) >= 0, else g."


def cautious(
    inner,
    *,
    normalization="mean",
    floor=1e-3,
    descent=False,
    scope="leaf",
    layer_axis=None,
):
    def step(g, w):
        u, aux = inner(g, w)
        u, phi = copy(u), {}
        for leaf, x in u.items():
            agreement = np.sign(x) * np.sign(g[leaf]) * (-1 if descent else 1)
            phi[leaf] = (agreement > 0).astype(x.dtype)
            u[leaf] = np.where(np.isnan(agreement), np.nan, x * phi[leaf])
        for places in units(u, scope, layer_axis).values():
            agreeing = take(phi, places)
            if normalization == "mean":
                factor = 1 / max(np.mean(agreeing), floor)
            else:
                factor = agreeing.size / (np.sum(agreeing) + 1)
            put(u, places, lambda x, h=factor: h * x)
        return u, aux

    return step


def grams(inner):
    def step(g, w):
        u, aux = inner(g, w)
        return {leaf: np.sign(g[leaf]) * np.abs(x) for leaf, x in u.items()}, aux

    return step


def add_decayed_weights(weight_decay=0.0, *, cautious=False):
    def step(g, w):
        u = {}
        for leaf, x in g.items():
            decays = np.sign(x) * np.sign(w[leaf]) >= 0 if cautious else True
            u[leaf] = np.where(decays, x + weight_decay * w[leaf], x)
        return u, {}

    return step


ORACLES = {
    "cautious": cautious,
    "grams": grams,
    "add_decayed_weights": add_decayed_weights,
}
_ADAM = {"factory": "scale_by_adam", "kwargs": {"b1": 0.75, "b2": 0.9, "eps": 1e-8}}
_STEP = {"factory": "scale_by_learning_rate", "kwargs": {"learning_rate": 0.125}}
_DESCENT = {"factory": "optax.chain", "args": [_ADAM, _STEP]}
_MOMENTUM = {"factory": "ema", "kwargs": {"decay": 0.875, "debias": False}}
CASES = [
    *cases(
        "cautious",
        CAUTIOUS,
        {
            "adam": ({"inner": _ADAM}, "normal heavy sparse zeros"),
            "momentum_paper_global": (
                {"inner": _MOMENTUM, "normalization": "paper", "scope": "global"},
                "normal tiny",
            ),
            "descent_layers_floor": (
                {
                    "inner": _DESCENT,
                    "descent": True,
                    "floor": 0.5,
                    "layer_axis": LAYERS,
                },
                "normal spikes",
            ),
        },
    ),
    *cases("grams", GRAMS, {"adam": ({"inner": _ADAM}, "normal heavy sparse tiny")}),
    *cases(
        "add_decayed_weights",
        DECAY,
        {"cautious": ({"weight_decay": 0.25, "cautious": True}, "normal sparse zeros")},
    ),
]
