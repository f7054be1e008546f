"""Instruments that tell whether gradient noise is heavy-tailed, and where."""

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

__all__ = [
    "MonitorClippingState",
    "MonitorState",
    "NormHistory",
    "NormSample",
    "monitor",
    "monitor_clipping",
    "read_monitor",
    "read_reservoir",
]
