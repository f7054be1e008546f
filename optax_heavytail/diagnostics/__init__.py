"""Instruments that tell whether gradient noise is heavy-tailed, and where."""

from optax_heavytail.diagnostics._stable import characteristic_function, log_moment
from optax_heavytail.diagnostics._tail_estimate import TailEstimate, estimate_tail
from optax_heavytail.diagnostics._tail_index import (
    choose_k,
    hill,
    hill_plot,
    moment_ratio,
    pickands,
)

__all__ = [
    "TailEstimate",
    "characteristic_function",
    "choose_k",
    "estimate_tail",
    "hill",
    "hill_plot",
    "log_moment",
    "moment_ratio",
    "pickands",
]
