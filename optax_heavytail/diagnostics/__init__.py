"""Instruments that tell whether gradient noise is heavy-tailed, and where."""

from optax_heavytail.diagnostics._hvp import hvp, mean_gradient
from optax_heavytail.diagnostics._lanczos import Lanczos, lanczos
from optax_heavytail.diagnostics._monitor import MonitorState, monitor
from optax_heavytail.diagnostics._monitor_clipping import (
    MonitorClippingState,
    monitor_clipping,
)
from optax_heavytail.diagnostics._norm_history import NormHistory
from optax_heavytail.diagnostics._read_monitor import (
    NormSample,
    read_monitor,
    read_reservoir,
)
from optax_heavytail.diagnostics._smoothness import (
    LocalSmoothness,
    SmoothnessFit,
    fit_smoothness,
    local_smoothness,
)
from optax_heavytail.diagnostics._spectrum import (
    ExtremeEigenvalues,
    Spectrum,
    extreme_eigenvalues,
    spectral_density,
)

__all__ = [
    "ExtremeEigenvalues",
    "Lanczos",
    "LocalSmoothness",
    "MonitorClippingState",
    "MonitorState",
    "NormHistory",
    "NormSample",
    "SmoothnessFit",
    "Spectrum",
    "extreme_eigenvalues",
    "fit_smoothness",
    "hvp",
    "lanczos",
    "local_smoothness",
    "mean_gradient",
    "monitor",
    "monitor_clipping",
    "read_monitor",
    "read_reservoir",
    "spectral_density",
]
