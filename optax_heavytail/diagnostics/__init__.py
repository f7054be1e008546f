"""Instruments that tell whether gradient noise is heavy-tailed, and where."""

from optax_heavytail.diagnostics.curvature._hvp import hvp, mean_gradient
from optax_heavytail.diagnostics.curvature._lanczos import Lanczos, lanczos
from optax_heavytail.diagnostics.curvature._smoothness import (
    LocalSmoothness,
    SmoothnessFit,
    fit_smoothness,
    local_smoothness,
)
from optax_heavytail.diagnostics.curvature._spectrum import (
    ExtremeEigenvalues,
    Spectrum,
    extreme_eigenvalues,
    spectral_density,
)
from optax_heavytail.diagnostics.monitoring._monitor import MonitorState, monitor
from optax_heavytail.diagnostics.monitoring._monitor_clipping import (
    MonitorClippingState,
    monitor_clipping,
)
from optax_heavytail.diagnostics.monitoring._norm_history import NormHistory
from optax_heavytail.diagnostics.monitoring._read_monitor import (
    NormSample,
    read_monitor,
    read_reservoir,
)
from optax_heavytail.diagnostics.noise._collect_noise import collect_noise
from optax_heavytail.diagnostics.noise._diagnose import Diagnosis, diagnose
from optax_heavytail.diagnostics.noise._effect import Clip, ClipEffect
from optax_heavytail.diagnostics.noise._entries import CoordinateGroup
from optax_heavytail.diagnostics.noise._layer import LayerDiagnosis
from optax_heavytail.diagnostics.noise._noise import LayerNoise, Noise
from optax_heavytail.diagnostics.noise._recommend import Recommendation
from optax_heavytail.diagnostics.noise._verdict import Verdict
from optax_heavytail.diagnostics.tails._choose_k import choose_k
from optax_heavytail.diagnostics.tails._stable import (
    characteristic_function,
    log_moment,
)
from optax_heavytail.diagnostics.tails._tail_estimate import TailEstimate, estimate_tail
from optax_heavytail.diagnostics.tails._tail_index import (
    hill,
    hill_plot,
    moment_ratio,
    pickands,
)

__all__ = [
    "Clip",
    "ClipEffect",
    "CoordinateGroup",
    "Diagnosis",
    "ExtremeEigenvalues",
    "Lanczos",
    "LayerDiagnosis",
    "LayerNoise",
    "LocalSmoothness",
    "MonitorClippingState",
    "MonitorState",
    "Noise",
    "NormHistory",
    "NormSample",
    "Recommendation",
    "SmoothnessFit",
    "Spectrum",
    "TailEstimate",
    "Verdict",
    "characteristic_function",
    "choose_k",
    "collect_noise",
    "diagnose",
    "estimate_tail",
    "extreme_eigenvalues",
    "fit_smoothness",
    "hill",
    "hill_plot",
    "hvp",
    "lanczos",
    "local_smoothness",
    "log_moment",
    "mean_gradient",
    "moment_ratio",
    "monitor",
    "monitor_clipping",
    "pickands",
    "read_monitor",
    "read_reservoir",
    "spectral_density",
]
