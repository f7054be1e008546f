"""SPAM and Stable-SPAM from parts: resets, limits on spikes and on peaks."""

import numpy as np

from tests.oracles.cautious import add_decayed_weights
from tests.oracles.parts import chain, scale_by_adam, scale_by_learning_rate
from tests.oracles.stable_norm import scale_by_stable_norm
from tests.oracles.trajectories import cases

RESETS = """
    Updates t = 1, 2, ..., j = t mod period. At t = period, 2 period, ... inner
    starts afresh before the gradient enters. Its output is times 1 - (1 -
    warmup_start) (1 + cos(pi j / (warmup_steps + 1))) / 2 if t >= period and j <
    warmup_steps, else 1.
"""
SPIKES = """
    v_0 = 0. From update grace on, where v > 0 and |g| > sqrt(threshold v): g =
    sign(g) sqrt(threshold v). Output that g; then v = b2 v + (1 - b2) g^2 with it,
    where it is finite.
"""
PEAKS = """
    Per leaf with a = max|g| finite and not 0, s of them so far, from T = 0: T =
    decay T + (1 - decay) a, That = T / (1 - decay^s), g clamped to [-That, That],
    or (rescale) entries beyond That times That / a.
"""
ADAM = (
    SPIKES.replace("Output that g; then", "Then")
    + " m = b1 m + (1 - b1) g with it; u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + "
    "eps)."
)
SPAM = (
    ADAM
    + " spam: resets around this ("
    + RESETS
    + "), then plus weight_decay w, times -learning_rate."
)
STABLE_SPAM = (
    "clip_by_peak(0.999, rescale): "
    + PEAKS
    + " Then scale_by_stable_norm(0.7, 0.9, 1e-8) per leaf, then Adam(b1, b2, eps) "
    "that starts afresh at t = period, 2 period, ..., before the gradient enters; plus "
    "weight_decay w, times -learning_rate."
)


def reset_moments(inner, period=500, *, warmup_steps=150, warmup_start=0.01):
    """``inner()`` makes the inner program, each time anew."""
    now, t = inner(), 0

    def step(g, w):
        nonlocal now, t
        t += 1
        j = t % period
        if j == 0:
            now = inner()
        u, aux = now(g, w)
        if t >= period and j < warmup_steps:
            cosine = np.cos(np.pi * j / (warmup_steps + 1))
            factor = float(1 - (1 - warmup_start) * (1 + cosine) / 2)
            u = {leaf: factor * x for leaf, x in u.items()}
        return u, aux

    return step


def clip_spikes(threshold=5000.0, b2=0.999, *, grace=20):
    v, t = {}, 0

    def step(g, w):
        nonlocal t
        del w
        t += 1
        u = {}
        for leaf, x in g.items():
            limit = np.sqrt(threshold * v.get(leaf, np.zeros_like(x)))
            is_spike = (limit > 0) & (np.abs(x) > limit) & (t >= grace)
            u[leaf] = np.where(is_spike, np.sign(x) * limit, x)
            old = v.get(leaf, np.zeros_like(x))
            new = b2 * old + (1 - b2) * u[leaf] ** 2
            v[leaf] = np.where(np.isfinite(u[leaf]), new, old)
        return u, {}

    return step


def scale_by_spam(b1=0.9, b2=0.999, eps=1e-6, *, threshold=5000.0, grace=20):
    return chain(clip_spikes(threshold, b2, grace=grace), scale_by_adam(b1, b2, eps))


def clip_by_peak(decay=0.999, *, rescale=False):
    peak, seen = {}, {}

    def step(g, w):
        del w
        u = {}
        for leaf, x in g.items():
            a = np.max(np.abs(x))
            if not np.isfinite(a):
                u[leaf] = np.full_like(x, np.nan)
                continue
            if a == 0:
                u[leaf] = x
                continue
            seen[leaf] = seen.get(leaf, 0) + 1
            peak[leaf] = decay * peak.get(leaf, 0) + (1 - decay) * a
            limit = peak[leaf] / (1 - decay ** seen[leaf])
            shortened = x * (limit / a) if rescale else np.sign(x) * limit
            u[leaf] = np.where(np.abs(x) > limit, shortened, x)
        return u, {}

    return step


def spam(
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    weight_decay=0.0,
    *,
    threshold=5000.0,
    grace=20,
    period=500,
    warmup_steps=150,
    warmup_start=0.01,
):
    def inner():
        return scale_by_spam(b1, b2, eps, threshold=threshold, grace=grace)

    return chain(
        reset_moments(
            inner, period, warmup_steps=warmup_steps, warmup_start=warmup_start
        ),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


def stable_spam(
    learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, *, period=1000
):
    return chain(
        clip_by_peak(rescale=True),
        scale_by_stable_norm(0.7, 0.9, 1e-8),
        reset_moments(lambda: scale_by_adam(b1, b2, eps), period, warmup_steps=0),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


ORACLES = {
    "reset_moments": reset_moments,
    "clip_spikes": clip_spikes,
    "scale_by_spam": scale_by_spam,
    "clip_by_peak": clip_by_peak,
    "spam": spam,
    "stable_spam": stable_spam,
}
_SPIKES = {"threshold": 9.0, "b2": 0.9, "grace": 4}
_SPAM = {
    "learning_rate": 0.0625,
    "b2": 0.9,
    "weight_decay": 0.25,
    "threshold": 16.0,
    "grace": 2,
    "period": 7,
    "warmup_steps": 3,
    "warmup_start": 0.125,
}
_ADAM = {"factory": "scale_by_adam", "kwargs": {"b1": 0.75, "b2": 0.9, "eps": 1e-8}}
CASES = [
    *cases(
        "reset_moments",
        RESETS,
        {
            "adam_6": (
                {
                    "inner": _ADAM,
                    "period": 6,
                    "warmup_steps": 3,
                    "warmup_start": 0.125,
                },
                "normal spikes",
            ),
            "adam_8_no_warmup": (
                {"inner": _ADAM, "period": 8, "warmup_steps": 0},
                "sparse",
            ),
        },
    ),
    *cases(
        "clip_spikes", SPIKES, {"theta9": (_SPIKES, "heavy spikes sparse nonfinite")}
    ),
    *cases("scale_by_spam", ADAM, {"theta9": (_SPIKES, "normal spikes sparse")}),
    *cases(
        "clip_by_peak",
        PEAKS,
        {
            "clamp": ({"decay": 0.875}, "heavy nonfinite sparse tiny"),
            "rescale": ({"decay": 0.875, "rescale": True}, "normal spikes"),
        },
    ),
    *cases("spam", SPAM, {"period7": (_SPAM, "normal heavy zeros")}),
    *cases(
        "stable_spam",
        STABLE_SPAM,
        {
            "period8": (
                {"learning_rate": 0.0625, "weight_decay": 0.25, "period": 8},
                "normal heavy",
            )
        },
    ),
]
