"""From a tail index with its interval to words, with their confidence."""

import dataclasses
import math
from statistics import NormalDist

from optax_heavytail.diagnostics.tails._tail_estimate import TailEstimate

# The noise has a variance above it, and none below.
LIMIT = 2.0
_MOST_TIMES = 100  # more batches than that many times those at hand: not worth saying
_FIT_LEVEL = 0.05  # at which a power law counts as refuted


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an estimate says.

    Attributes:
      label: "heavy", "not heavy", "undecided", or "unknown" where there is no estimate.
      confidence: that the index is on that side of 2, from 0.5 to 0.999; ``None`` if
        "unknown". Of this estimate alone, not of all at once.
      text: the finding.
      change: what would change it.
      more_batches: how many more would decide, about; ``None`` where that is decided,
        or no number would do.
    """

    label: str
    confidence: float | None
    text: str
    change: str
    more_batches: int | None = None


def unknown(reason: str) -> Verdict:
    """No estimate, and why."""
    text = reason.removesuffix(".")
    return Verdict("unknown", None, text, "Measurements without this defect.")


def judge(estimate: TailEstimate, num_batches: int) -> Verdict:
    """Heavy, if the whole interval is below 2 and Gaussian noise has no such index.

    The confidence takes the logarithm of the index for normal, which it nearly is for
    the Hill estimator, with the width of the interval.

    Args:
      estimate: with a null and, if it has one, a p-value of its fit.
      num_batches: that were measured.
    """
    if estimate.reason is not None or estimate.index is None:
        return unknown(estimate.reason or "no estimate")
    low, high = float(estimate.low or 0), float(estimate.high or 0)
    if not (math.isfinite(low) and math.isfinite(high)):
        return unknown(
            f"tail index {estimate.index:.2f}, but its interval, {low:.2f} to "
            f"{high:.2f}, is not finite"
        )
    error = _log_error(low, high, estimate.confidence)
    below = _probability_below(estimate.index, error)
    interval = (
        f"tail index {estimate.index:.2f} ({100 * estimate.confidence:.10g}% interval "
        f"{low:.2f} to {high:.2f})"
    )
    if high < LIMIT:
        return _below(estimate, interval, below, num_batches)
    if low > LIMIT:
        return _above(estimate, interval, 1 - below)
    more = _more_batches(estimate, error, num_batches)
    change = (
        f"About {more:,} more batches would decide, if the index stays where it is."
        if more is not None
        else "No affordable number of batches: the index is too close to 2. Take it as "
        "borderline."
    )
    return Verdict(
        "undecided",
        _bounded(max(below, 1 - below)),
        f"{interval}: on both sides of 2, with or without a finite variance",
        change,
        more,
    )


def _below(
    estimate: TailEstimate, interval: str, confidence: float, num_batches: int
) -> Verdict:
    null = f"Gaussian noise would have {_null(estimate)}"
    if not estimate.heavier_than_null:
        return Verdict(
            "undecided",
            0.5,
            f"{interval}, but {null}: the number of samples is too small to tell them "
            "apart",
            "More batches: they raise the index of Gaussian noise, and not that of a "
            "power law.",
            3 * num_batches,
        )
    if estimate.p_value is not None and estimate.p_value < _FIT_LEVEL:
        return Verdict(
            "undecided",
            0.5,
            f"{interval}, but no power law fits the tail (p = {estimate.p_value:.3f}); "
            f"{null}: the noise is heavier than that, with an index that means little",
            "More batches: a lighter tail shows itself further out.",
            3 * num_batches,
        )
    return Verdict(
        "heavy",
        _bounded(confidence),
        f"{interval}: below 2, so the variance is infinite as far as one can see; "
        f"{null}",
        f"An index above {LIMIT:g} on more batches, or a bound on the gradients "
        "elsewhere, such as a clipped loss.",
    )


def _above(estimate: TailEstimate, interval: str, confidence: float) -> Verdict:
    against = (
        f"heavier than Gaussian noise, which would have {_null(estimate)}, but above "
        "2: the variance is finite"
        if estimate.heavier_than_null
        else f"as Gaussian noise would have it ({_null(estimate)})"
    )
    return Verdict(
        "not heavy",
        _bounded(confidence),
        f"{interval}: {against}",
        "Another point of training, another batch size, or rare events that these "
        "batches did not contain.",
    )


def _null(estimate: TailEstimate) -> str:
    if estimate.null_low is None or estimate.null_high is None:
        return "an unknown index"
    return f"{estimate.null_low:.1f} to {estimate.null_high:.1f}"


def _log_error(low: float, high: float, confidence: float) -> float:
    """Standard error of the logarithm that gives an interval its width."""
    if low <= 0:
        return math.inf
    return (math.log(high) - math.log(low)) / (2 * _quantile(confidence))


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _probability_below(index: float, error: float) -> float:
    distance = math.log(LIMIT) - math.log(index)
    if math.isinf(error):
        return 0.5
    return NormalDist().cdf(distance / error) if error > 0 else float(distance > 0)


def _bounded(confidence: float) -> float:
    """No claim to more certainty than an approximation by a normal law gives."""
    return round(min(max(confidence, 0.5), 0.999), 3)


def _more_batches(estimate: TailEstimate, error: float, num_batches: int) -> int | None:
    """Until the interval, narrowing like 1 / sqrt(n), leaves 2 outside."""
    distance = abs(math.log(LIMIT) - math.log(estimate.index or LIMIT))
    wanted = _quantile(estimate.confidence) * error
    if distance * math.sqrt(_MOST_TIMES) < wanted or not math.isfinite(wanted):
        return None
    more = num_batches * ((wanted / distance) ** 2 - 1)
    return max(math.ceil(more), 1) if distance > 0 else None
