"""Composable gradient transformations for heavy-tailed gradients and huge batches."""

from optax_heavytail import schedules
from optax_heavytail._acclip import acclip, scale_by_acclip
from optax_heavytail._averaging import (
    WeightedIterateAverageState,
    weighted_iterate_average,
    weighted_iterate_average_eval_params,
)
from optax_heavytail._cclip import ClipByValueState, cclip, clip_by_value
from optax_heavytail._clip_by_moment import (
    AdaptiveCoordinateThresholdState,
    ClipByMomentState,
    adaptive_coordinate_threshold,
    clip_by_moment,
)
from optax_heavytail._ema import ema
from optax_heavytail._gclip import ClipByNormState, clip_by_norm, gclip
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._readers import get_momentum, get_threshold
from optax_heavytail._weight_decay import (
    AddDecayedWeightsState,
    MaskCoverage,
    add_decayed_weights,
    decay_mask,
    mask_coverage,
)
from optax_heavytail.schedules import (
    clipping_threshold,
    nonconvex_step,
    nonconvex_threshold,
    strongly_convex_step,
)

__version__ = "0.1.0"

__all__ = [
    "AdaptiveCoordinateThresholdState",
    "AddDecayedWeightsState",
    "ClipByMomentState",
    "ClipByNormState",
    "ClipByValueState",
    "MaskCoverage",
    "WeightedIterateAverageState",
    "acclip",
    "adaptive_coordinate_threshold",
    "add_decayed_weights",
    "cclip",
    "clip_by_moment",
    "clip_by_norm",
    "clip_by_value",
    "clipping_threshold",
    "decay_mask",
    "ema",
    "gclip",
    "get_momentum",
    "get_threshold",
    "mask_coverage",
    "nonconvex_step",
    "nonconvex_threshold",
    "scale_by_acclip",
    "scale_by_learning_rate",
    "schedules",
    "strongly_convex_step",
    "weighted_iterate_average",
    "weighted_iterate_average_eval_params",
]
