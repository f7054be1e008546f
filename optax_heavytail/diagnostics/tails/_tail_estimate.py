"""Tail indices with intervals, a test of fit and a Gaussian null hypothesis."""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from optax_heavytail import _base
from optax_heavytail.diagnostics.tails import _tail_inference
from optax_heavytail.diagnostics.tails._tail_methods import METHODS

Over = Literal["iterations", "coordinates"]

_MIN_SAMPLES = 100
_MIN_DRAWS = 8
_MIN_TAIL = 10
_MIN_RESAMPLES = 20


@dataclasses.dataclass(frozen=True)
class TailEstimate:
    """A tail index, what it is worth, and what Gaussian samples would give.

    Attributes:
      over: "iterations" or "coordinates": what the samples go over.
      method: the estimator.
      confidence: nominal probability that the interval covers the index.
      k: how many of the largest samples (of each draw) are the tail; None for the
        methods that fit a stable law to all samples.
      num_samples: how many samples (of each draw) there were.
      index: the tail index alpha; :math:`P(|X| > x)` falls off as :math:`x^{-alpha}`.
      low: lower end of the interval.
      high: upper end of the interval. With ``method="pickands"``, this, ``low``,
        ``index`` and those of the null may be inf: lighter than every power.
      p_value: of the hypothesis that the tail is a power law, or that the law is
        stable. A small one says that the index describes something that is not there.
        None where the estimate exists and the law that would fit does not, as if too
        many samples are 0 or equal.
      null_low: lower end of the central interval, of probability ``confidence``, of
        the index on the Gaussian null.
      null_high: its upper end.
      null_p_value: share of the Gaussian null with an index as small as this one.
      reason: why there are no numbers, in one sentence; None if there are.
    """

    over: str
    method: str
    confidence: float
    k: int | None
    num_samples: int
    index: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    null_low: float | None = None
    null_high: float | None = None
    null_p_value: float | None = None
    reason: str | None = None

    @property
    def heavier_than_null(self) -> bool | None:
        """Whether Gaussian samples so seldom have an index as small.

        That is, with at most half of the probability that ``confidence`` leaves: of
        Gaussian samples one in twenty is called heavier with the default. None if there
        is no estimate.
        """
        if self.null_p_value is None:
            return None
        return self.null_p_value <= (1 - self.confidence) / 2


def estimate_tail(
    samples: Any,
    *,
    over: Over,
    method: str = "hill",
    k: int | None = None,
    confidence: float = 0.9,
    num_bootstrap: int = 200,
    num_null: int = 200,
    null: Any = None,
    seed: int = 0,
) -> TailEstimate:
    r"""A tail index with an interval, a test of fit, and a Gaussian null hypothesis.

    Tails over iterations and tails over coordinates are different questions. Noise
    whose coordinates are Gaussian in every step, but of a size that changes from step
    to step, is heavy-tailed over iterations alone; Gaussian noise of which some
    coordinates are always larger than others looks heavy-tailed over coordinates alone.

    ``over="iterations"``: one number per step, such as the norm of the noise.

    - Interval: from the estimator's asymptotic law, with the variance multiplied by
      what dependence adds to it, as the variances of sums over blocks tell.
    - Null: Gaussian series of the same length, mean, variance and autocorrelation: the
      normal scores of the samples with random phases.

    ``over="coordinates"``: the coordinates of one draw of the noise, or of n draws. Of
    several, the index is the median of the draws' indices.

    - Interval: as above, as if coordinates were independent. Of several draws, from
      resamples of the draws; it is one for the median index of a draw at this k, whose
      bias does not shrink with the number of draws.
    - Null: Gaussian coordinates. Of several draws, each coordinate has its own scale,
      and they are correlated as in the draws. One draw cannot tell heavy tails from
      uneven scales.

    ``p_value`` is that of the distance of Kolmogorov and Smirnov between the k largest
    and a Pareto law, or of the distance between the characteristic function and that of
    a stable law, among simulated samples that are as dependent. Of several draws it is
    twice the median of theirs.

    The documentation has tables of bias and coverage on known laws: where the tail
    begins late, as that of a stable law of an index near 2, no interval covers.

    Args:
      samples: real numbers, anything that ``numpy.asarray`` takes. Over iterations (n,)
        in the order of time; over coordinates (d,) or (n, d).
      over: "iterations" or "coordinates".
      method: "hill", "moment_ratio", "pickands", "log_moment" or
        "characteristic_function", as the functions of these names.
      k: for the first three, how many of the largest samples are the tail, at least
        10. None: the square root of the number of samples, rounded down (four
        times it for "pickands"). That is fewer than the estimate alone would like, and
        few enough for most intervals to cover.
      confidence: of the interval, in (0, 1).
      num_bootstrap: number of resamples of several draws, at least 20.
      num_null: number of samples of the null, and of those behind ``p_value``, at least
        20, and ``2 / (1 - confidence) - 1``: with fewer, no index would be rare enough
        to be called heavier than theirs.
      null: samples of another null hypothesis, (number, \*samples.shape), as many.
      seed: of the resamples and the null.

    Returns:
      The estimate. It has a ``reason`` instead of numbers if a sample is inf or NaN, if
      all are equal, if there are too few, or if too many are 0 or equal.

    Raises:
      ValueError: an argument is out of range, or an array has another shape.
      TypeError: the samples are not real numbers.

    Example:
      >>> from optax_heavytail import diagnostics
      >>> samples = np.random.default_rng(0).pareto(1.5, 2000) + 1
      >>> tail = diagnostics.estimate_tail(samples, over="iterations")
      >>> tail.k, tail.low < 1.5 < tail.high, tail.heavier_than_null
      (44, True, True)
      >>> diagnostics.estimate_tail(samples[:50], over="iterations").reason
      '50 samples are too few: at least 100 are needed.'
    """
    _check_arguments(over, method, confidence, num_bootstrap, num_null, seed)
    if null is None:
        _check_nulls("num_null", num_null, confidence)
    rows = _rows(samples, over)
    k = _tail_size(method, k, rows.shape[1])
    blank = TailEstimate(over, method, confidence, k, rows.shape[1])
    reason = _why_not(rows, k)
    if reason:
        return dataclasses.replace(blank, reason=reason)
    if null is not None:
        null = _given_null(null, np.shape(samples), confidence)
        null = _unit(null.reshape(-1, *rows.shape))
    found = _tail_inference.infer(
        _tail_inference.Question(_unit(rows), method, k, over == "iterations"),
        confidence,
        num_bootstrap,
        num_null,
        null,
        np.random.default_rng(seed),
    )
    if found is None:
        return dataclasses.replace(blank, reason="Too many samples are 0 or equal.")
    return dataclasses.replace(blank, **found)


def _check_arguments(over, method, confidence, num_bootstrap, num_null, seed):
    _base.check_choice("over", over, ("iterations", "coordinates"))
    _base.check_choice("method", method, tuple(METHODS))
    _base.check_range("confidence", confidence, 0, 1, low_open=True, high_open=True)
    _base.check_static_integer("num_bootstrap", num_bootstrap, _MIN_RESAMPLES)
    _base.check_static_integer("num_null", num_null, _MIN_RESAMPLES)
    _base.check_static_integer("seed", seed, 0)


def fewest_nulls(confidence: float) -> int:
    """So many that an index below all of theirs is heavier than the null."""
    return math.ceil(2 / (1 - confidence)) - 1


def _check_nulls(name: str, number: int, confidence: float) -> None:
    fewest = fewest_nulls(confidence)
    if number < fewest:
        raise ValueError(
            f"{name} must be at least 2 / (1 - confidence) - 1 = {fewest} with a "
            f"confidence of {confidence}, got {number}: with fewer nothing can be "
            "heavier than the null."
        )


def _tail_size(method: str, k: int | None, n: int) -> int | None:
    default = METHODS[method].default_k
    if default is None:
        if k is not None:
            raise ValueError(f"{method} uses all samples and no k, got k={k}.")
        return None
    if k is None:
        return default(n)
    _base.check_static_integer("k", k, _MIN_TAIL)
    return int(k)


def _real(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if not any(jnp.issubdtype(array.dtype, t) for t in (jnp.floating, jnp.integer)):
        raise TypeError(f"{name} must be real numbers, got {array.dtype}.")
    return array.astype(np.float64)


def _rows(samples: Any, over: Over) -> np.ndarray:
    """The samples as (draws, n)."""
    array = _real("samples", samples)
    allowed = {"iterations": (1,), "coordinates": (1, 2)}[over]
    if array.ndim not in allowed or (array.ndim == 2 and not len(array)):
        shapes = {"iterations": "(n,)", "coordinates": "(d,) or (n, d)"}[over]
        raise ValueError(f"samples over {over} must be {shapes}, got {array.shape}.")
    return np.atleast_2d(array)


def _given_null(null: Any, shape: tuple[int, ...], confidence: float) -> np.ndarray:
    array = _real("null", null)
    if array.shape[1:] != shape or len(array) < _MIN_RESAMPLES:
        wanted = f"(number, {', '.join(map(str, shape))})"
        raise ValueError(
            f"null must be {wanted} with at least {_MIN_RESAMPLES} of them, "
            f"got {array.shape}."
        )
    _check_nulls("the number of null samples", len(array), confidence)
    if not np.all(np.isfinite(array)):
        raise ValueError("null must be finite.")
    return array


def _unit(array: np.ndarray) -> np.ndarray:
    """At most 1 in size, and within the range of float32."""
    largest = np.max(np.abs(array))
    return array if largest == 0 else array / largest


def _why_not(rows: np.ndarray, k: int | None) -> str | None:
    """Why there can be no estimate."""
    draws, n = rows.shape
    infinite = rows.size - np.count_nonzero(np.isfinite(rows))
    if infinite:
        return f"{infinite} of {rows.size} samples are not finite."
    needed = max(_MIN_SAMPLES, (k or 0) + 1)
    if n < needed:
        return f"{n} samples are too few: at least {needed} are needed."
    if 1 < draws < _MIN_DRAWS:
        return f"{draws} draws are too few: 1 or at least {_MIN_DRAWS} are needed."
    constant = np.count_nonzero(np.all(rows == rows[:, :1], axis=1))
    if constant:
        which = "All samples" if draws == 1 else f"In {constant} draws all samples"
        return f"{which} are equal."
    return None
