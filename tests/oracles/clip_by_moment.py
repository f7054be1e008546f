"""`clip_by_moment` and `acclip` with a threshold of the past and winsorising."""

import numpy as np

from tests.oracles.cautious import add_decayed_weights
from tests.oracles.parts import chain, ema, scale_by_learning_rate
from tests.oracles.trajectories import cases
from tests.oracles.units import copy, norm, put, take, units

FORMULA = """
    Per unit, tau_0 = 0. r = tau_{k-1} / (1 - b2^(k-1))^(1/alpha), 0 at k = 1. Where
    r > 0: winsorise = c shortens g to size c r before anything else; max_growth = c
    lets min(|g|, c r) enter tau for |g|. m = inner(g); tau_k^alpha = b2
    tau_{k-1}^alpha + (1 - b2) |g|^alpha; limit = tau_k / (1 - b2^k)^(1/alpha)
    (bias_correction; else tau_k), or, without include_current, of k - 1 in the same
    way where tau_{k-1} > 0. u = min(limit / (|m| + eps), 1) m; normalize: u /
    (limit + eps).
"""
ALIAS = (
    FORMULA
    + " acclip: scope coordinate, m the average of decay b1, divided by 1 - b1^k with "
    "bias_correction; plus weight_decay w, times -learning_rate."
)


def clip_by_moment(
    inner=None,
    *,
    b2=0.99,
    alpha=1.0,
    eps=1e-5,
    scope="coordinate",
    bias_correction=None,
    normalize=False,
    include_current=True,
    max_growth=None,
    winsorise=None,
):
    correct = normalize if bias_correction is None else bias_correction
    taus, k = {}, 0

    def debiased(tau, count):
        return tau / (1 - b2**count) ** (1 / alpha) if count else tau

    def step(g, w):
        nonlocal k
        k += 1
        g, limits = copy(g), {}
        for unit, places in units(g, scope).items():
            past, n = taus.get(unit, 0.0), norm(take(g, places))
            r = debiased(past, k - 1)
            if winsorise is not None and 0 < winsorise * r < n:
                put(g, places, lambda x, h=winsorise * r / n: h * x)
                n = winsorise * r
            if max_growth is not None and r > 0:
                n = min(n, max_growth * r)
            taus[unit] = (b2 * past**alpha + (1 - b2) * n**alpha) ** (1 / alpha)
            tau, count = taus[unit], k
            if not include_current and past > 0:
                tau, count = past, k - 1
            limits[unit] = debiased(tau, count) if correct else tau
        m = copy(g if inner is None else inner(g, w)[0])
        for unit, places in units(m, scope).items():
            limit, size = limits[unit], norm(take(m, places)) + eps
            factor = 1 if size <= limit else limit / size if size else 0
            if normalize:
                factor = factor / (limit + eps) if limit + eps else 0
            put(m, places, lambda x, h=factor: h * x)
        return m, _thresholds(taus, g)

    return step


def _thresholds(taus, g):
    aux = {}
    for unit, tau in taus.items():
        if unit == "":
            return {"threshold": tau}
        if isinstance(unit, str):
            aux[f"threshold/{unit}"] = tau
        else:
            leaf, i = unit
            aux.setdefault(f"threshold/{leaf}", np.zeros_like(g[leaf]))[i] = tau
    return aux


def acclip(
    learning_rate,
    b1=0.9,
    b2=0.99,
    alpha=1.0,
    eps=1e-5,
    weight_decay=1e-5,
    *,
    bias_correction=None,
    normalize=False,
    **guards,
):
    correct = normalize if bias_correction is None else bias_correction
    return chain(
        clip_by_moment(
            ema(b1, correct),
            b2=b2,
            alpha=alpha,
            eps=eps,
            bias_correction=correct,
            normalize=normalize,
            **guards,
        ),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


ORACLES = {"clip_by_moment": clip_by_moment, "acclip": acclip}
_KEYS = {"aux/threshold": "tau_k, not corrected; aux/threshold/<leaf> by leaf"}
_GUARDED = {"include_current": False, "max_growth": 4.0}
CASES = [
    *cases(
        "clip_by_moment",
        FORMULA,
        {
            "past": (
                {"b2": 0.75, "include_current": False},
                "normal heavy sparse zeros",
            ),
            "past_growth_leaf": (
                {"b2": 0.75, "alpha": 2.0, "scope": "leaf", **_GUARDED},
                "heavy spikes",
            ),
            "winsorised_global": (
                {
                    "b2": 0.875,
                    "scope": "global",
                    "bias_correction": True,
                    "winsorise": 2.0,
                },
                "normal spikes",
            ),
        },
        _KEYS,
        ("threshold",),
    ),
    *cases(
        "acclip",
        ALIAS,
        {
            "guarded": (
                {"learning_rate": 0.125, "b2": 0.9, "alpha": 1.5, **_GUARDED},
                "normal heavy",
            ),
            "guarded_normalised": (
                {
                    "learning_rate": 0.0625,
                    "b2": 0.9,
                    "eps": 0.0,
                    "weight_decay": 0.25,
                    "normalize": True,
                    "include_current": False,
                    "winsorise": 8.0,
                },
                "normal spikes sparse zeros tiny",
            ),
        },
        _KEYS,
        ("threshold",),
    ),
]
