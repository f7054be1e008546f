"""Instruments that tell whether gradient noise is heavy-tailed, and where."""

from optax_heavytail.diagnostics._diagnose import Diagnosis, diagnose
from optax_heavytail.diagnostics._effect import Clip, ClipEffect
from optax_heavytail.diagnostics._entries import CoordinateGroup
from optax_heavytail.diagnostics._layer import LayerDiagnosis
from optax_heavytail.diagnostics._noise import LayerNoise, Noise, collect_noise
from optax_heavytail.diagnostics._recommend import Recommendation
from optax_heavytail.diagnostics._stable import characteristic_function, log_moment
from optax_heavytail.diagnostics._tail_estimate import TailEstimate, estimate_tail
from optax_heavytail.diagnostics._tail_index import (
    choose_k,
    hill,
    hill_plot,
    moment_ratio,
    pickands,
)
from optax_heavytail.diagnostics._verdict import Verdict

__all__ = [
    "Clip",
    "ClipEffect",
    "CoordinateGroup",
    "Diagnosis",
    "LayerDiagnosis",
    "LayerNoise",
    "Noise",
    "Recommendation",
    "TailEstimate",
    "Verdict",
    "characteristic_function",
    "choose_k",
    "collect_noise",
    "diagnose",
    "estimate_tail",
    "hill",
    "hill_plot",
    "log_moment",
    "moment_ratio",
    "pickands",
]
