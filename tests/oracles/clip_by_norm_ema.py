"""`clip_by_norm_ema` and `adagc`: a limit by an average of clipped norms."""

import numpy as np

from tests.oracles.cautious import add_decayed_weights
from tests.oracles.clip_by_history import LAYERS, MASK
from tests.oracles.parts import (
    chain,
    scale_by_adam,
    scale_by_learning_rate,
)
from tests.oracles.trajectories import cases
from tests.oracles.units import copy, norm, put, readings, take, units

FORMULA = """
    Per unit with norm n, N the norm of all leaves, gamma = 0 (unseen) at first. In
    the first warmup_steps calls h = min(1, absolute_threshold / N) (1 if that is
    null), then gamma = h n if unseen, else min(gamma, h n). Later, unseen: h = 1,
    gamma = n; else h = min(1, relative_threshold gamma / n), then gamma = decay
    gamma + (1 - decay) h n. Output h g. init 'mean': gamma moves by (1 - decay) /
    (1 - decay^s) (h n - gamma) in the warm-up and after it, s the norms of the unit
    so far. A norm of 0 changes nothing; one that is not finite makes the unit NaN
    and changes nothing; an N that is not finite does so to all units in the
    warm-up.
"""
ADAGC = (
    FORMULA
    + " adagc: then Adam's m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) of the "
    "clipped gradient, plus weight_decay w, times -learning_rate."
)


def clip_by_norm_ema(
    decay=0.98,
    relative_threshold=1.05,
    *,
    absolute_threshold=1.0,
    warmup_steps=100,
    init="min",
    scope="leaf",
    layer_axis=None,
    mask=None,
    nonfinite="propagate",
):
    gammas, seen, t = {}, {}, 0

    def factor(unit, n, total):
        """Of a good norm n; gamma follows."""
        gamma = gammas[unit]
        if t <= warmup_steps:
            h = (
                1.0
                if absolute_threshold is None
                else min(1.0, absolute_threshold / total)
            )
        else:
            h = 1.0 if gamma == 0 else min(1.0, relative_threshold * gamma / n)
        seen[unit] += 1
        if init == "mean":
            weight = (1 - decay) / (1 - decay ** seen[unit])
            gammas[unit] = gamma + weight * (h * n - gamma)
        elif gamma == 0:
            gammas[unit] = h * n
        elif t <= warmup_steps:
            gammas[unit] = min(gamma, h * n)
        else:
            gammas[unit] = decay * gamma + (1 - decay) * h * n
        return h

    def step(g, w):
        nonlocal t
        del w
        t += 1
        u = copy(g)
        inside = {leaf: x for leaf, x in u.items() if mask is None or mask[leaf]}
        if nonfinite == "zero":
            for x in inside.values():
                x[~np.isfinite(x)] = 0
        total = norm(take(u, units(u)[""]))
        needs_total = t <= warmup_steps and absolute_threshold is not None
        for unit, places in units(inside, scope, layer_axis).items():
            gammas.setdefault(unit, 0.0)
            seen.setdefault(unit, 0)
            n = norm(take(inside, places))
            if not np.isfinite(total if needs_total else n):
                put(inside, places, lambda x: np.full_like(x, np.nan))
            elif n > 0:
                h = factor(unit, n, total)
                put(inside, places, lambda x, h=h: h * x)
        return u, readings({unit: {"threshold": x} for unit, x in gammas.items()})

    return step


def adagc(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, **clipping):
    return chain(
        clip_by_norm_ema(**clipping),
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


ORACLES = {"clip_by_norm_ema": clip_by_norm_ema, "adagc": adagc}
_KEYS = {"aux/threshold": "gamma after the step; the limit is a multiple of it"}
CASES = [
    *cases(
        "clip_by_norm_ema",
        FORMULA,
        {
            "w5": ({"warmup_steps": 5}, "normal heavy sparse nonfinite zeros"),
            "w0_l1p5": ({"relative_threshold": 1.5, "warmup_steps": 0}, "spikes tiny"),
            "w4_mean_layers": (
                {
                    "decay": 0.9,
                    "relative_threshold": 1.25,
                    "absolute_threshold": None,
                    "warmup_steps": 4,
                    "init": "mean",
                    "layer_axis": LAYERS,
                },
                "heavy nonfinite",
            ),
            "w3_global_zero": (
                {"warmup_steps": 3, "scope": "global", "nonfinite": "zero"},
                "spikes nonfinite",
            ),
            "w6_mask": ({"warmup_steps": 6, "mask": MASK}, "normal spikes"),
        },
        _KEYS,
        ("threshold",),
    ),
    *cases(
        "adagc",
        ADAGC,
        {
            "w5": (
                {"learning_rate": 0.0625, "warmup_steps": 5, "weight_decay": 0.25},
                "normal heavy spikes",
            )
        },
        _KEYS,
        ("threshold",),
    ),
]
