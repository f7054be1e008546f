"""Aggregation of workers: `majority_vote`, `centered_clip`, error feedback."""

import numpy as np

from tests.oracles.trajectories import SHAPES, STEPS, Noise, cases
from tests.oracles.units import norm

VOTE = """
    sign(sum over workers i of weights_i sign(g_i)), weights 1 by default; an entry
    that is NaN votes 0.
"""
CENTER = """
    v = center; num_iterations times v = v + mean over the workers of min(1,
    threshold / ||d_i||) d_i with d_i = g_i - v and the norm over all leaves; a
    worker whose d_i is not finite counts as d_i = 0.
"""
FEEDBACK = """
    Per worker i, from v_i = e_i = 0: v_i = (1 - momentum) v_i + momentum g_i; d =
    v_i - e_i, e_i = e_i + feedback min(1, threshold / ||d||) d, the norm over all
    leaves; output the mean of the e_i.
"""


def majority_vote(*, weights=None):
    def step(g, w):
        del w
        u = {}
        for leaf, x in g.items():
            votes = np.where(np.isnan(x), 0, np.sign(x))
            shares = np.ones(len(x)) if weights is None else np.asarray(weights)
            shares = shares.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            u[leaf] = np.sign(np.sum(shares * votes, axis=0))
        return u, {}

    return step


def clipped(tree, threshold):
    """The tree shortened to the threshold, 0 if it is not finite."""
    n = norm(np.concatenate([x.ravel() for x in tree.values()]))
    if not np.isfinite(n):
        return {leaf: np.zeros_like(x) for leaf, x in tree.items()}
    factor = min(1, threshold / n) if n > 0 else 1
    return {leaf: factor * x for leaf, x in tree.items()}


def centered_clip(*, threshold, num_iterations=1):
    def step(g, w, center):
        del w
        v, workers = center, len(g["kernel"])
        for _ in range(num_iterations):
            moves = [
                clipped({leaf: x[i] - v[leaf] for leaf, x in g.items()}, threshold)
                for i in range(workers)
            ]
            v = {
                leaf: x + sum(m[leaf] for m in moves) / workers for leaf, x in v.items()
            }
        return v, {}

    return step


def aggregate_with_error_feedback(
    num_workers, threshold, *, momentum=1.0, feedback=1.0
):
    averages, sent = [{} for _ in range(num_workers)], [{} for _ in range(num_workers)]

    def step(g, w):
        del w
        for i in range(num_workers):
            v, e = averages[i], sent[i]
            for leaf, x in g.items():
                old = v.get(leaf, np.zeros_like(x[i]))
                v[leaf] = (1 - momentum) * old + momentum * x[i]
                e.setdefault(leaf, np.zeros_like(x[i]))
            d = clipped({leaf: v[leaf] - e[leaf] for leaf in g}, threshold)
            e.update({leaf: x + feedback * d[leaf] for leaf, x in e.items()})
        return {leaf: sum(e[leaf] for e in sent) / num_workers for leaf in g}, {}

    return step


def centers():
    noise = Noise("centers")
    return {f"extra/center/{leaf}": noise((STEPS, *s)) for leaf, s in SHAPES.items()}


ORACLES = {
    "aggregation.majority_vote": majority_vote,
    "aggregation.centered_clip": centered_clip,
    "aggregation.aggregate_with_error_feedback": aggregate_with_error_feedback,
}
CASES = [
    *cases(
        "aggregation.majority_vote",
        VOTE,
        {
            "plain": ({}, "sparse nonfinite"),
            "weighted": ({"weights": [3.0, 1.0, 1.5, 0.25]}, "heavy"),
        },
        workers=4,
        kind="function",
    ),
    *cases(
        "aggregation.centered_clip",
        CENTER,
        {
            "tau2": ({"threshold": 2.0}, "heavy nonfinite"),
            "tau1_3": ({"threshold": 1.0, "num_iterations": 3}, "normal"),
        },
        {"extra/center/kernel": "the argument `center`"},
        extra=centers,
        workers=4,
        kind="function",
    ),
    *cases(
        "aggregation.aggregate_with_error_feedback",
        FEEDBACK,
        {
            "clip21": ({"num_workers": 4, "threshold": 1.0}, "heavy normal"),
            "sgd2m": (
                {
                    "num_workers": 4,
                    "threshold": 0.5,
                    "momentum": 0.25,
                    "feedback": 0.75,
                },
                "spikes",
            ),
        },
        workers=4,
    ),
]
