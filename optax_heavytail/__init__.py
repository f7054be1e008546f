"""Composable gradient transformations for heavy-tailed gradients and huge batches."""

import importlib as _importlib
import typing as _typing

from optax_heavytail._acclip import acclip, scale_by_acclip
from optax_heavytail._adagc import ClipByNormEmaState, adagc, clip_by_norm_ema
from optax_heavytail._adam import adamw_decoupled, scale_by_adam
from optax_heavytail._adam_atan2 import (
    ScaleByAdamAtan2State,
    adam_atan2,
    scale_by_adam_atan2,
)
from optax_heavytail._adaptive_coordinate_threshold import (
    AdaptiveCoordinateThresholdState,
    adaptive_coordinate_threshold,
)
from optax_heavytail._adashift import ScaleByAdashiftState, adashift, scale_by_adashift
from optax_heavytail._amsgrad import amsgrad, scale_by_amsgrad
from optax_heavytail._averaging import (
    WeightedIterateAverageState,
    weighted_iterate_average,
    weighted_iterate_average_eval_params,
)
from optax_heavytail._biclip import biclip, clip_by_interval
from optax_heavytail._cautious import cautious, grams
from optax_heavytail._cclip import ClipByValueState, cclip, clip_by_value
from optax_heavytail._clip_by_history import ClipByHistoryState, clip_by_history
from optax_heavytail._clip_by_moment import ClipByMomentState, clip_by_moment
from optax_heavytail._clip_by_rms import clip_by_rms
from optax_heavytail._clip_by_spectral_norm import clip_by_spectral_norm
from optax_heavytail._clipped_ema import ClippedEmaState, clipped_ema
from optax_heavytail._clipped_gd import clipped_gd, normalize_by_norm, normalized_gd
from optax_heavytail._compress_state import (
    CompressedArray,
    CompressStateState,
    compress_state,
    decompress_state,
)
from optax_heavytail._conditional_gradient import (
    ConditionalGradientState,
    conditional_gradient,
)
from optax_heavytail._decay_mask import MaskCoverage, decay_mask, mask_coverage
from optax_heavytail._ema import ema
from optax_heavytail._fast_belief import (
    ScaleByFastBeliefState,
    fast_adabelief,
    scale_by_fast_belief,
)
from optax_heavytail._gclip import ClipByNormState, clip_by_norm, gclip
from optax_heavytail._guarded import guarded
from optax_heavytail._lambc import lambc
from optax_heavytail._langevin import (
    OverdampedLangevinState,
    UnderdampedLangevinState,
    overdamped_langevin,
    underdamped_langevin,
)
from optax_heavytail._larsc import larsc
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._neumann import NeumannState, neumann, neumann_eval_params
from optax_heavytail._neumann_two_loop import (
    NeumannInnerLoopState,
    neumann_inner_loop,
    neumann_two_loop,
)
from optax_heavytail._norm_deviation import clip_by_norm_deviation
from optax_heavytail._norm_quantile import clip_by_norm_quantile
from optax_heavytail._orthogonalize import orthogonalize
from optax_heavytail._qk_clip import QKClipState, qk_clip, qk_clip_factors
from optax_heavytail._readers import get_momentum, get_threshold, get_trust_ratio
from optax_heavytail._reset_moments import ResetMomentsState, reset_moments
from optax_heavytail._saga import SagaState, saga
from optax_heavytail._schedules.batch_growth import BatchSizePlan, grow_batch
from optax_heavytail._schedules.normalized import (
    NormalizedMomentum,
    batch_for_normalized,
    normalized_momentum,
)
from optax_heavytail._schedules.smoothness import l0l1_constants
from optax_heavytail._schedules.survey import (
    neumann_momentum,
    transformer_schedule,
    warm_restarts,
)
from optax_heavytail._schedules.theory import (
    clipping_threshold,
    nonconvex_step,
    nonconvex_threshold,
    strongly_convex_step,
)
from optax_heavytail._sgdw import sgdw
from optax_heavytail._sign_agreement import (
    ScaleBySignAgreementState,
    addsign,
    powersign,
    scale_by_addsign,
    scale_by_powersign,
)
from optax_heavytail._skip_if_unsafe import SkipIfUnsafeState, skip_if_unsafe
from optax_heavytail._smooth_clip import clip_smoothly
from optax_heavytail._snapshots import (
    SnapshotEnsembleState,
    snapshot_ensemble,
    snapshot_predictions,
)
from optax_heavytail._spam import (
    ClipSpikesState,
    ScaleBySpamState,
    clip_spikes,
    scale_by_spam,
    spam,
)
from optax_heavytail._stable_adam import (
    ScaleByStableAdamState,
    scale_by_stable_adam,
    stable_adamw,
)
from optax_heavytail._stable_norm import ScaleByStableNormState, scale_by_stable_norm
from optax_heavytail._stable_spam import ClipByPeakState, clip_by_peak, stable_spam
from optax_heavytail._stack_leaves import stack_leaves
from optax_heavytail._stochastic_rounding import StochasticRoundingState
from optax_heavytail._trace import trace
from optax_heavytail._trust_ratio import (
    ScaleByClippedTrustRatioState,
    scale_by_clipped_trust_ratio,
)
from optax_heavytail._unroll import unroll
from optax_heavytail._weight_decay import (
    AddDecayedWeightsState,
    add_decayed_weights,
)
from optax_heavytail._zscore import ClipByZscoreState, clip_by_zscore

if _typing.TYPE_CHECKING:
    from optax_heavytail import aggregation, diagnostics, learned, rules
    from optax_heavytail import testing as testing
else:

    def __getattr__(name):
        # Imported when asked for: a training script that needs none starts sooner.
        if name in ("aggregation", "diagnostics", "learned", "rules", "testing"):
            return _importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "AdaptiveCoordinateThresholdState",
    "AddDecayedWeightsState",
    "BatchSizePlan",
    "ClipByHistoryState",
    "ClipByMomentState",
    "ClipByNormEmaState",
    "ClipByNormState",
    "ClipByPeakState",
    "ClipByValueState",
    "ClipByZscoreState",
    "ClipSpikesState",
    "ClippedEmaState",
    "CompressStateState",
    "CompressedArray",
    "ConditionalGradientState",
    "MaskCoverage",
    "NeumannInnerLoopState",
    "NeumannState",
    "NormalizedMomentum",
    "OverdampedLangevinState",
    "QKClipState",
    "ResetMomentsState",
    "SagaState",
    "ScaleByAdamAtan2State",
    "ScaleByAdashiftState",
    "ScaleByClippedTrustRatioState",
    "ScaleByFastBeliefState",
    "ScaleBySignAgreementState",
    "ScaleBySpamState",
    "ScaleByStableAdamState",
    "ScaleByStableNormState",
    "SkipIfUnsafeState",
    "SnapshotEnsembleState",
    "StochasticRoundingState",
    "UnderdampedLangevinState",
    "WeightedIterateAverageState",
    "acclip",
    "adagc",
    "adam_atan2",
    "adamw_decoupled",
    "adaptive_coordinate_threshold",
    "adashift",
    "add_decayed_weights",
    "addsign",
    "aggregation",
    "amsgrad",
    "batch_for_normalized",
    "biclip",
    "cautious",
    "cclip",
    "clip_by_history",
    "clip_by_interval",
    "clip_by_moment",
    "clip_by_norm",
    "clip_by_norm_deviation",
    "clip_by_norm_ema",
    "clip_by_norm_quantile",
    "clip_by_peak",
    "clip_by_rms",
    "clip_by_spectral_norm",
    "clip_by_value",
    "clip_by_zscore",
    "clip_smoothly",
    "clip_spikes",
    "clipped_ema",
    "clipped_gd",
    "clipping_threshold",
    "compress_state",
    "conditional_gradient",
    "decay_mask",
    "decompress_state",
    "diagnostics",
    "ema",
    "fast_adabelief",
    "gclip",
    "get_momentum",
    "get_threshold",
    "get_trust_ratio",
    "grams",
    "grow_batch",
    "guarded",
    "l0l1_constants",
    "lambc",
    "larsc",
    "learned",
    "mask_coverage",
    "neumann",
    "neumann_eval_params",
    "neumann_inner_loop",
    "neumann_momentum",
    "neumann_two_loop",
    "nonconvex_step",
    "nonconvex_threshold",
    "normalize_by_norm",
    "normalized_gd",
    "normalized_momentum",
    "orthogonalize",
    "overdamped_langevin",
    "powersign",
    "qk_clip",
    "qk_clip_factors",
    "reset_moments",
    "rules",
    "saga",
    "scale_by_acclip",
    "scale_by_adam",
    "scale_by_adam_atan2",
    "scale_by_adashift",
    "scale_by_addsign",
    "scale_by_amsgrad",
    "scale_by_clipped_trust_ratio",
    "scale_by_fast_belief",
    "scale_by_learning_rate",
    "scale_by_powersign",
    "scale_by_spam",
    "scale_by_stable_adam",
    "scale_by_stable_norm",
    "sgdw",
    "skip_if_unsafe",
    "snapshot_ensemble",
    "snapshot_predictions",
    "spam",
    "stable_adamw",
    "stable_spam",
    "stack_leaves",
    "strongly_convex_step",
    "trace",
    "transformer_schedule",
    "underdamped_langevin",
    "unroll",
    "warm_restarts",
    "weighted_iterate_average",
    "weighted_iterate_average_eval_params",
]


def __dir__() -> list[str]:
    return [*__all__, "testing"]
