"""Intervals of a tail index, from the law of the estimators and of dependent sums."""

import math
import statistics

import numpy as np

from optax_heavytail.diagnostics.tails import _surrogates
from optax_heavytail.diagnostics.tails._tail_methods import METHODS, Method, influence

Interval = tuple[float, float]

# The error of Hill's estimate is that of a mean of k exponential numbers. The moment
# ratio has twice its variance.
_PRECISION = {"hill": 1.0, "moment_ratio": 0.5}


def of_one_row(
    name: str,
    row: np.ndarray,
    k: int | None,
    statistic: float,
    is_series: bool,
    confidence: float,
) -> Interval:
    """From the asymptotic law of the estimator.

    Args:
      name: of the method.
      row: the samples (n,).
      k: size of the tail, or None.
      statistic: what the method makes of the row.
      is_series: whether the samples are in the order of time, and maybe dependent.
      confidence: of the interval.
    """
    method = METHODS[name]
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    prepared = method.prepare(row[None])[0]
    if k is None:
        error = math.sqrt(_variance(method, prepared, is_series))
        return _normal(method, statistic, z * error)
    factor = dependence_factor(prepared, k) if is_series else 1.0
    if name in _PRECISION:
        size = _PRECISION[name] * k / factor
        low, high = (_gamma_quantile(size, sign * z) for sign in (-1, 1))
        return low / statistic, high / statistic
    error = math.sqrt(factor * _pickands_variance(statistic) / (k // 4))
    return _normal(method, statistic, z * error)


def over_draws(
    indices: np.ndarray, confidence: float, number: int, rng: np.random.Generator
) -> Interval:
    """Percentiles of the median over resampled draws."""
    places = rng.integers(len(indices), size=(number, len(indices)))
    return central(np.median(indices[places], axis=1), confidence)


def central(values: np.ndarray, confidence: float) -> Interval:
    """The central interval of values that may be inf."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(values, tails, method="inverted_cdf")
    return float(low), float(high)


def dependence_factor(magnitudes: np.ndarray, k: int) -> float:
    """How many times larger dependence makes the variance of `hill`, at least 1.

    The variance of sums over blocks of what every sample adds to the estimate, against
    that of single samples; of the 4k largest, as the k largest are too few to tell.
    """
    n = len(magnitudes)
    count = min(4 * k, n // 2)
    threshold = np.partition(magnitudes, -count - 1)[-count - 1]
    threshold = max(threshold, np.min(magnitudes[magnitudes > 0]))
    above = magnitudes > threshold
    excess = np.log(np.where(above, magnitudes, threshold) / threshold)
    share = excess - above * excess.sum() / max(1, np.count_nonzero(above))
    single = float(np.var(share))
    length = _length(magnitudes)
    return _surrogates.block_variance(share, length) / single if single > 0 else 1.0


def _length(series: np.ndarray) -> int:
    """The length of blocks; at least five blocks, to have a variance."""
    return min(_surrogates.block_length(series), len(series) // 5)


def _normal(method: Method, statistic: float, reach: float) -> Interval:
    ends = method.index(np.array([statistic - reach, statistic + reach]))
    return float(np.min(ends)), float(np.max(ends))


def _variance(method: Method, prepared: np.ndarray, is_series: bool) -> float:
    """The variance of the statistic of all samples."""
    shares = influence(method, prepared)
    if not is_series:
        return float(np.var(shares)) / len(shares)
    return _surrogates.block_variance(shares, _length(shares)) / len(shares)


def _pickands_variance(shape: float) -> float:
    """The variance of Pickands' estimate of the shape, times a quarter of k."""
    log2 = math.log(2)
    slope = math.expm1(shape * log2) / shape if shape else log2
    return (2 ** (2 * shape + 1) + 1) / (2 * log2 * slope) ** 2


def _gamma_quantile(shape: float, z: float) -> float:
    """The gamma law of mean 1 at a normal quantile, by Wilson and Hilferty."""
    return max(0.0, 1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))) ** 3
