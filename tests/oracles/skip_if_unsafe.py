"""`skip_if_unsafe`: no step on a spike of the gradient's norm or of the loss."""

import numpy as np

from tests.oracles.trajectories import STEPS, cases
from tests.oracles.units import norm, take, units
from tests.oracles.windows import acts, mean_limit, robust_limit

FORMULA = """
    n: global norm; L: the loss 'value', which may be absent. Windows of the last
    numbers that entered. rule 'median': n is a spike if log n > median(l) +
    max_deviations max(1.4826 MAD(l), 0.05), l the logarithms of the window's norms;
    L if L > median + max_value_deviations max(1.4826 MAD, 0.01 max(|median|,
    tiny)); each once its own window is full. rule 'mean': n, L > mean + deviations
    s of the numbers themselves, s with divisor size - 1, from max(2, window // 2)
    numbers on. None: no such rule. A spike, a gradient or a loss that is not
    finite: updates 0, inner untouched. But if max_in_a_row steps in a row were
    skipped, one with finite gradient and loss is taken whatever the rules say, and
    both windows begin anew with it. remember 'safe': n (if not 0) and L of the
    steps that were taken enter; 'all': of all steps, each number that is finite
    (and n not 0).
"""


def skip_if_unsafe(
    inner,
    *,
    max_deviations=10.0,
    max_value_deviations=None,
    window=128,
    rule="median",
    remember="safe",
    max_in_a_row=10,
):
    norms, values = [], []
    counts = dict.fromkeys(
        ("num_nonfinite", "num_spikes", "num_value_spikes", "num_in_a_row"), 0
    )
    counts["limit_reached"] = False

    def is_norm_spike(n):
        if max_deviations is None or not acts(rule, len(norms), window):
            return False
        past = np.array(norms)
        if rule == "mean":
            return n > mean_limit(past, max_deviations, ddof=1, floor=0)
        return n > 0 and np.log(n) > robust_limit(np.log(past), max_deviations, 0.05)

    def is_value_spike(value):
        if max_value_deviations is None or not acts(rule, len(values), window):
            return False
        past = np.array(values)
        if rule == "mean":
            return value > mean_limit(past, max_value_deviations, ddof=1, floor=0)
        tiny = np.finfo(past.dtype).tiny
        floor = 0.01 * max(abs(np.median(past)), tiny)
        return value > robust_limit(past, max_value_deviations, floor)

    def step(g, w, value=None):
        n = norm(take(g, units(g)[""]))
        is_finite = np.isfinite(n) and (value is None or np.isfinite(value))
        has_spike = {
            "num_spikes": is_finite and is_norm_spike(n),
            "num_value_spikes": is_finite
            and value is not None
            and is_value_spike(value),
        }
        starts_anew = is_finite and counts["num_in_a_row"] >= max_in_a_row
        if starts_anew:
            norms.clear()
            values.clear()
            has_spike = {}
        is_taken = is_finite and not any(has_spike.values())
        counts["num_nonfinite"] += not is_finite
        for name, yes in has_spike.items():
            counts[name] += bool(yes)
        counts["num_in_a_row"] = 0 if is_taken else counts["num_in_a_row"] + 1
        counts["limit_reached"] |= counts["num_in_a_row"] >= max_in_a_row
        if is_taken or remember == "all":
            for past, number in ((norms, n or None), (values, value)):
                if number is not None and np.isfinite(number):
                    past.append(number)
                    del past[:-window]
        aux = {name: float(count) for name, count in counts.items()}
        if not is_taken:
            return {leaf: np.zeros_like(x) for leaf, x in g.items()}, aux
        return inner(g, w)[0], aux

    return step


def losses():
    """A loss that falls through 0, with spikes and steps that are not finite."""
    value = np.linspace(2, -1, STEPS) + np.tile([0.25, -0.25, 0.125, 0, -0.125], 5) / 8
    value = np.round(value * 1024) / 1024
    value[[9, 17, 18]] = 64.0, 8.0, 1e6
    value[[3, 11, 21]] = np.inf, np.nan, -np.inf
    return {"extra/value": value}


def _steps_of_a_new_level():
    return {"extra/value": np.where(np.arange(STEPS) < 10, 1.0, 20.0)}


ORACLES = {"skip_if_unsafe": skip_if_unsafe}
_MEMORY = {"factory": "ema", "kwargs": {"decay": 0.75, "debias": False}}
_KEYS = {
    "aux/num_nonfinite": "steps so far with a gradient or loss that is not finite",
    "aux/num_spikes": "steps so far skipped for their norm",
    "aux/num_value_spikes": "steps so far skipped for their loss",
    "aux/num_in_a_row": "steps skipped since the last that was taken",
    "aux/limit_reached": "1 if ever max_in_a_row were skipped in a row",
}
_FIELDS = tuple(key.removeprefix("aux/") for key in _KEYS)
_LOSS = {**_KEYS, "extra/value": "loss, the argument `value` of update"}
CASES = [
    *cases(
        "skip_if_unsafe",
        FORMULA,
        {
            "no_value_w6": (
                {"inner": _MEMORY, "window": 6, "max_value_deviations": None},
                "spikes nonfinite zeros",
            ),
            "no_value_all_w5": (
                {
                    "inner": _MEMORY,
                    "window": 5,
                    "remember": "all",
                    "max_deviations": 3.0,
                    "max_value_deviations": None,
                },
                "heavy sparse",
            ),
        },
        _KEYS,
        _FIELDS,
    ),
    *cases(
        "skip_if_unsafe",
        FORMULA,
        {
            "value_w6": (
                {"inner": _MEMORY, "window": 6, "max_value_deviations": 6.0},
                "calm spikes nonfinite",
            ),
            "value_mean_all_w8": (
                {
                    "inner": _MEMORY,
                    "window": 8,
                    "rule": "mean",
                    "remember": "all",
                    "max_deviations": 6.0,
                    "max_value_deviations": 6.0,
                },
                "normal spikes",
            ),
        },
        _LOSS,
        _FIELDS,
        losses,
    ),
    *cases(
        "skip_if_unsafe",
        FORMULA,
        {
            "new_level_w4": (
                {
                    "inner": _MEMORY,
                    "window": 4,
                    "max_deviations": None,
                    "max_value_deviations": 10.0,
                    "max_in_a_row": 3,
                },
                "calm nonfinite",
            ),
        },
        _LOSS,
        _FIELDS,
        _steps_of_a_new_level,
    ),
]
