"""`qk_clip`: query and key weights shortened where their logits are too large."""

import numpy as np

from tests.oracles.trajectories import STEPS, cases

FORMULA = """
    Per head with the largest logit S: gamma = threshold / S if threshold < S < inf,
    else 1 (NaN too). f = gamma^exponent, for each of the head's entries along the
    leaf's axis (contiguous blocks of size / heads). u' = f (w + u) - w where f is
    not 1, else u; a leaf of exponent None passes.
"""


def qk_clip_factors(max_logits, threshold):
    is_over = (max_logits > threshold) & np.isfinite(max_logits)
    return np.where(is_over, threshold / np.where(is_over, max_logits, 1), 1)


def qk_clip(exponents, *, head_axes, threshold=100.0):
    def step(g, w, max_logits):
        u = {}
        for leaf, x in g.items():
            if exponents[leaf] is None:
                u[leaf] = x
                continue
            gamma = qk_clip_factors(max_logits[leaf], threshold).astype(x.dtype)
            axis = head_axes[leaf]
            f = np.repeat(gamma ** exponents[leaf], x.shape[axis] // gamma.size)
            f = np.expand_dims(f, [i for i in range(x.ndim) if i != axis])
            u[leaf] = np.where(f == 1, x, f * (w[leaf] + x) - w[leaf])
        return u, {}

    return step


def logits():
    """Largest logits per head: calm, above the threshold, negative, not finite."""
    t = np.arange(STEPS)[:, None]
    kernel = 60 + 8.0 * ((t * 7 + np.array([0, 5, 11])) % 16)
    bias = 20.0 * ((t * 3 + np.array([1, 6])) % 11) - 90
    kernel[[4, 9, 15], [0, 1, 2]] = np.nan, np.inf, 4000.0
    zero, scalar = np.full((STEPS, 3), 500.0), np.full((STEPS, 1), 150.0)
    arrays = {"kernel": kernel, "bias": bias, "zero": zero, "scalar": scalar}
    return {f"extra/max_logits/{leaf}": x for leaf, x in arrays.items()}


ORACLES = {"qk_clip": qk_clip}
CASES = cases(
    "qk_clip",
    FORMULA,
    {
        "heads": (
            {
                "exponents": {"bias": 1.0, "kernel": 0.5, "scalar": 0.0, "zero": None},
                "head_axes": {"bias": 0, "kernel": 1, "scalar": 0, "zero": 0},
            },
            "normal zeros",
        ),
    },
    {"extra/max_logits/kernel": "largest logit per head, the argument `max_logits`"},
    extra=logits,
)
