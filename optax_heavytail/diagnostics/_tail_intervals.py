"""Intervals of a tail index."""

import math
import statistics

import numpy as np

from optax_heavytail.diagnostics import _surrogates
from optax_heavytail.diagnostics._tail_methods import Method, evaluate, in_batches

Interval = tuple[float, float]


def of_one_row(
    method: Method,
    row: np.ndarray,
    k: int | None,
    statistic: float,
    is_series: bool,
    confidence: float,
    number: int,
    rng: np.random.Generator,
) -> Interval:
    """From the asymptotic law of the estimator, or from resamples.

    Args:
      method: the estimator.
      row: the samples (n,).
      k: size of the tail.
      statistic: what the method makes of the row.
      is_series: whether the samples are in the order of time, and maybe dependent.
      confidence: of the interval.
      number: of resamples.
      rng: where the resamples come from.
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    prepared = method.prepare(row[None])[0]
    if method.precision is not None and k is not None:
        factor = dependence_factor(prepared, k) if is_series else 1.0
        size = method.precision * k / factor
        low, high = (_gamma_quantile(size, sign * z) for sign in (-1, 1))
        return low / statistic, high / statistic
    length = _surrogates.block_length(prepared) if is_series else 1

    def resampled(start, stop):
        places = _surrogates.block_indices(len(prepared), length, stop - start, rng)
        return evaluate(method, prepared[places], k)

    error = float(np.std(in_batches(resampled, number, len(prepared))))
    ends = method.index(np.array([statistic - z * error, statistic + z * error]))
    return float(np.min(ends)), float(np.max(ends))


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
    """By how much dependence multiplies the variance of `hill`, at least 1.

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
    length = min(_surrogates.block_length(magnitudes), n // 5)
    around = np.concatenate([[0.0], np.cumsum(np.concatenate([share, share]))])
    sums = around[length : length + n] - around[:n]
    single = length * float(np.var(share))
    return max(1.0, float(np.var(sums)) / single) if single > 0 else 1.0


def _gamma_quantile(shape: float, z: float) -> float:
    """Of the gamma law of mean 1, by Wilson and Hilferty, at a normal quantile."""
    return max(0.0, 1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))) ** 3
