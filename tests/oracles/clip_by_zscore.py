"""`clip_by_zscore`: ZClip, a limit by the mean and deviation of past norms."""

import numpy as np

from tests.oracles.trajectories import cases
from tests.oracles.units import clip_by_rule, norm

FORMULA = """
    Per unit, of its norms n that are finite and not 0, x = n, or log n with log:
    the first warmup_steps are collected, then mu = their mean, sigma = their biased
    deviation. Later s = max(sigma, min_deviation * mu), with log max(sigma,
    min_deviation); where x - mu > max_zscore * s: c = mu + max_zscore^2 s^2 / (x -
    mu) ('adaptive'), mu ('mean') or mu + max_zscore * s ('percentile'), elsewhere
    and in the warm-up c = x. Output of length min(c, max_norm), exp(c) for c with
    log. Then mu = decay mu + (1 - decay) c and with this mu sigma^2 = decay sigma^2
    + (1 - decay) (c - mu)^2.
"""


def clip_by_zscore(
    max_zscore=2.5,
    decay=0.97,
    *,
    warmup_steps=25,
    max_norm=None,
    action="adaptive",
    min_deviation=0.05,
    log=False,
    scope="global",
    layer_axis=None,
    nonfinite="propagate",
):
    to_x, to_n = (np.log, np.exp) if log else (lambda n: n, lambda x: x)
    cap = np.inf if max_norm is None else max_norm

    def new_unit():
        collected, mean, deviation = [], None, None

        def see(n):
            nonlocal mean, deviation
            x = to_x(n)
            if len(collected) < warmup_steps:
                collected.append(x)
                mean = sum(collected) / len(collected)
                off = norm(np.array(collected) - mean)
                deviation = off / np.sqrt(n.dtype.type(len(collected)))
                return min(n, cap), _readings(cap, mean, deviation)
            s = max(deviation, min_deviation * (1 if log else mean))
            limit, c, length = mean + max_zscore * s, x, n
            if x > limit:
                c = {
                    "adaptive": mean + max_zscore**2 * s * (s / (x - mean)),
                    "mean": mean,
                    "percentile": limit,
                }[action]
                length = to_n(c)
            mean = decay * mean + (1 - decay) * c
            # The formula's root, without squares that underflow.
            deviation = np.hypot(
                decay**0.5 * deviation, (1 - decay) ** 0.5 * (c - mean)
            )
            return min(length, cap), _readings(min(to_n(limit), cap), mean, deviation)

        return see

    return clip_by_rule(
        new_unit, _readings(cap, 0.0, 0.0), scope, layer_axis, nonfinite
    )


def _readings(threshold, mean, deviation):
    return {"threshold": threshold, "mean": mean, "deviation": deviation}


ORACLES = {"clip_by_zscore": clip_by_zscore}
CASES = cases(
    "clip_by_zscore",
    FORMULA,
    {
        "w8": ({"warmup_steps": 8}, "spikes heavy nonfinite tiny zeros"),
        "w4_percentile_max_norm": (
            {"warmup_steps": 4, "action": "percentile", "max_norm": 3.0, "decay": 0.9},
            "normal heavy",
        ),
        "w3_log_leaf": (
            {"max_zscore": 1.5, "warmup_steps": 3, "log": True, "scope": "leaf"},
            "spikes sparse nonfinite",
        ),
        "w5_mean_no_floor_zero": (
            {
                "max_zscore": 1.0,
                "warmup_steps": 5,
                "action": "mean",
                "min_deviation": 0.0,
                "nonfinite": "zero",
            },
            "normal nonfinite",
        ),
    },
    {
        "aux/threshold": "mu + max_zscore s (exp of it with log) or max_norm, at the "
        "unit's last good norm; inf without either",
        "aux/mean": "mu after the step",
        "aux/deviation": "sigma after the step, without the floor",
    },
    ("threshold", "mean", "deviation"),
)
