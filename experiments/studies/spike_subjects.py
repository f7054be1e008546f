"""The optimizers and transforms whose answer to one bad gradient is measured.

Arguments are the defaults, but for thresholds that are absolute: these are twice the
usual norm of the gradient, or of its entries.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import optax_heavytail as oht


class Subject(NamedTuple):
    """An optimizer, and the public function of the package that it shows."""

    make: Callable[[float], Any]  # of the learning rate
    shows: str | None = None


NORM = 1.0  # the usual norm of gradients
ENTRY = NORM / 20**0.5


def _before(clip: Any) -> Callable[[float], Any]:
    """A transform of gradients, in front of AdamW."""
    return lambda rate: optax.chain(clip, optax.adamw(rate))


def _alone(direction: Any) -> Callable[[float], Any]:
    """A direction, times the rate."""
    return lambda rate: optax.chain(direction, oht.scale_by_learning_rate(rate))


_BEFORE_ADAMW = {
    "clip_by_history": (oht.clip_by_history, {}),
    "clip_by_norm_quantile": (oht.clip_by_norm_quantile, {}),
    "clip_by_norm_deviation": (oht.clip_by_norm_deviation, {}),
    "clip_by_zscore": (oht.clip_by_zscore, {}),
    "clip_by_norm_ema": (oht.clip_by_norm_ema, {}),
    "clip_by_norm": (oht.clip_by_norm, {"threshold": 2 * NORM}),
    "clip_by_value": (oht.clip_by_value, {"threshold": 2 * ENTRY}),
    "clip_by_rms": (oht.clip_by_rms, {"threshold": 2 * ENTRY}),
    "clip_by_interval": (oht.clip_by_interval, {"lower": 0.0, "upper": 2 * ENTRY}),
    "clip_by_spectral_norm": (oht.clip_by_spectral_norm, {"threshold": 2 * NORM}),
    "clip_smoothly": (oht.clip_smoothly, {"threshold": 2 * ENTRY}),
    "clip_by_peak": (oht.clip_by_peak, {}),
    "clip_spikes": (oht.clip_spikes, {}),
    "scale_by_stable_norm": (oht.scale_by_stable_norm, {}),
    "normalize_by_norm": (oht.normalize_by_norm, {}),
}
_OPTIMIZERS = {
    "gclip": {"threshold": 2 * NORM},
    "cclip": {"threshold": 2 * ENTRY},
    "biclip": {"lower": 0.5 * ENTRY, "upper": 2 * ENTRY},
    "adagc": {},
    "adamw_decoupled": {},
    "amsgrad": {},
    "adashift": {},
    "adam_atan2": {},
    "fast_adabelief": {},
    "stable_adamw": {},
    "spam": {},
    "stable_spam": {},
    "lambc": {},
    "larsc": {},
    "sgdw": {},
    "normalized_gd": {"b1": 0.9},
    "powersign": {},
    "addsign": {},
    "neumann": {},
}
OF_OPTAX = {
    "optax.sgd": Subject(optax.sgd),
    "optax.sgd, momentum": Subject(lambda rate: optax.sgd(rate, 0.9)),
    "optax.adamw": Subject(optax.adamw),
    "optax.clip_by_global_norm, adamw": Subject(
        _before(optax.clip_by_global_norm(2 * NORM))
    ),
    "optax.apply_if_finite(adamw)": Subject(
        lambda rate: optax.apply_if_finite(optax.adamw(rate), 5)
    ),
    "optax.adabelief": Subject(optax.adabelief),
    "optax.lamb": Subject(optax.lamb),
    "optax.lion": Subject(optax.lion),
    "optax.rmsprop": Subject(optax.rmsprop),
    "optax.contrib.muon": Subject(optax.contrib.muon),
}
GUARDS = {
    "guarded(adamw)": Subject(lambda rate: oht.guarded(optax.adamw(rate)), "guarded"),
    "skip_if_unsafe(adamw)": Subject(
        lambda rate: oht.skip_if_unsafe(optax.adamw(rate)), "skip_if_unsafe"
    ),
    "acclip, normalize": Subject(
        functools.partial(oht.acclip, normalize=True, eps=1e-8), "acclip"
    ),
    "acclip, normalize, winsorise=8": Subject(
        functools.partial(oht.acclip, normalize=True, eps=1e-8, winsorise=8.0)
    ),
    "acclip, normalize, winsorise=8, past": Subject(
        functools.partial(
            oht.acclip,
            normalize=True,
            eps=1e-8,
            winsorise=8.0,
            include_current=False,
        )
    ),
    "acclip": Subject(oht.acclip, "scale_by_acclip"),
    "clip_by_moment": Subject(_alone(oht.clip_by_moment()), "clip_by_moment"),
    "scale_by_stable_norm, max_ratio=3, adamw": Subject(
        _before(oht.scale_by_stable_norm(max_ratio=3.0))
    ),
    "clipped_ema, relative=3": Subject(
        _alone(oht.clipped_ema(relative=3.0)), "clipped_ema"
    ),
    "cautious(adam)": Subject(
        lambda rate: oht.cautious(optax.adam(rate), descent=True), "cautious"
    ),
    "grams(adam)": Subject(_alone(oht.grams(oht.scale_by_adam())), "grams"),
    "reset_moments(adam)": Subject(
        _alone(oht.reset_moments(oht.scale_by_adam())), "reset_moments"
    ),
    "ema, orthogonalize": Subject(
        _alone(optax.chain(oht.ema(0.9), oht.orthogonalize())), "orthogonalize"
    ),
    "clipped_gd": Subject(
        lambda rate: oht.clipped_gd(rate, max_update_norm=2 * NORM * rate),
        "clipped_gd",
    ),
    "conditional_gradient": Subject(
        lambda rate: oht.conditional_gradient(1.0, step=rate), "conditional_gradient"
    ),
    "ema": Subject(_alone(oht.ema(0.9)), "ema"),
    "trace": Subject(_alone(oht.trace(0.9)), "trace"),
}
SUBJECTS: dict[str, Subject] = {
    **OF_OPTAX,
    **{
        f"{name}, adamw": Subject(_before(clip(**kwargs)), name)
        for name, (clip, kwargs) in _BEFORE_ADAMW.items()
    },
    **GUARDS,
    **{
        name: Subject(functools.partial(getattr(oht, name), **kwargs), name)
        for name, kwargs in _OPTIMIZERS.items()
    },
}

# Public transforms that have no row, and why.
WITHOUT_ROW = {
    "adaptive_coordinate_threshold": "reports, and changes no gradient",
    "add_decayed_weights": "has no memory of gradients",
    "scale_by_learning_rate": "has no memory of gradients",
    "weighted_iterate_average": "steps as the optimizer in it",
    "snapshot_ensemble": "steps as the optimizer in it",
    "stack_leaves": "steps as the optimizer in it",
    "compress_state": "steps as the optimizer in it, with noise",
    "overdamped_langevin": "has no memory of gradients; its noise is meant",
    "underdamped_langevin": "has noise that is meant; its memory is that of `trace`",
    "saga": "asks which group of the data a gradient is of",
    "neumann_inner_loop": "asks for gradients of its own",
    "neumann_two_loop": "asks for gradients of its own",
    "qk_clip": "looks at logits and parameters, not at gradients",
    "scale_by_clipped_trust_ratio": "`lambc`",
    "scale_by_adam": "`adamw_decoupled`",
    "scale_by_adam_atan2": "`adam_atan2`",
    "scale_by_adashift": "`adashift`",
    "scale_by_amsgrad": "`amsgrad`",
    "scale_by_addsign": "`addsign`",
    "scale_by_powersign": "`powersign`",
    "scale_by_fast_belief": "`fast_adabelief`",
    "scale_by_spam": "`spam`",
    "scale_by_stable_adam": "`stable_adamw`",
}
