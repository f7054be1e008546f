"""The optimizers of the suite, each with the middle of its grid.

Arguments that are not tuned are the defaults, but that weight decay is AdamW's 1e-4 in
all that decay: the suite is about gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optax

import optax_heavytail as oht
from experiments.studies.training import Contestant, Problem

DECAY = 1e-4
BASELINE = "clip_by_global_norm(1), adamw"
SKIPPING = "skip_if_unsafe(adamw)"
FINITE = "apply_if_finite(clip_by_global_norm(1), adamw)"


def with_huber(limits: Mapping[str, float], name: str, made: Problem) -> Problem:
    """The problem with the limit of Huber's loss in each batch: inf is the square."""
    limit = limits.get(name, np.inf)

    def batches(seed: int) -> dict[str, np.ndarray]:
        limits = np.full(made.steps, limit, np.float32)
        return made.batches(seed) | {"huber": limits}

    return made._replace(batches=batches)


def before_adamw(clip: optax.GradientTransformation) -> Callable[..., Any]:
    """A transform of gradients in front of AdamW."""
    return lambda rate: optax.chain(clip, optax.adamw(rate))


def _tuned_clip(rate: Any, threshold: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(threshold), optax.adamw(rate))


def _momentum(rate: Any, threshold: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(threshold), optax.sgd(rate, 0.9))


def _acclip(rate: Any) -> optax.GradientTransformation:
    return oht.acclip(rate, normalize=True, eps=1e-8, weight_decay=DECAY)


def _finite(rate: Any) -> optax.GradientTransformation:
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    return optax.apply_if_finite(clipped, max_consecutive_errors=5)


# name -> (transform, middle of the rates over AdamW's, middle of the thresholds)
_METHODS: dict[str, tuple[Callable[..., Any], float, float | None]] = {
    "adamw": (optax.adamw, 1.0, None),
    "adamw, b2=0.99": (lambda rate: optax.adamw(rate, b2=0.99), 1.0, None),
    BASELINE: (before_adamw(optax.clip_by_global_norm(1.0)), 1.0, None),
    "clip_by_global_norm(tuned), adamw": (_tuned_clip, 1.0, 1.0),
    "clip_by_global_norm(tuned), momentum": (_momentum, 16.0, 1.0),
    FINITE: (_finite, 1.0, None),
    "clip_by_history, adamw": (before_adamw(oht.clip_by_history()), 1.0, None),
    "guarded(adamw)": (lambda rate: oht.guarded(optax.adamw(rate)), 1.0, None),
    SKIPPING: (
        lambda rate: oht.skip_if_unsafe(optax.adamw(rate)),
        1.0,
        None,
    ),
    "clip_by_zscore, adamw": (before_adamw(oht.clip_by_zscore()), 1.0, None),
    "adagc": (lambda rate: oht.adagc(rate, weight_decay=DECAY), 1.0, None),
    "stable_adamw": (
        lambda rate: oht.stable_adamw(rate, weight_decay=DECAY),
        1.0,
        None,
    ),
    "acclip": (lambda rate: oht.acclip(rate, weight_decay=DECAY), 64.0, None),
    "acclip, normalize": (_acclip, 1.0, None),
    "guarded(acclip, normalize)": (lambda rate: oht.guarded(_acclip(rate)), 1.0, None),
}
NAMES = tuple(_METHODS)
# Those for gradients that are finite.
CLIPS = tuple(name for name in _METHODS if name not in (FINITE, SKIPPING))


def contestants(rate: float, names: Sequence[str] = NAMES) -> dict[str, Contestant]:
    """Optimizers by name, AdamW's grid with its middle at ``rate``."""
    chosen = {name: _METHODS[name] for name in names}
    return {
        name: Contestant(make, rate * factor, threshold)
        for name, (make, factor, threshold) in chosen.items()
    }
