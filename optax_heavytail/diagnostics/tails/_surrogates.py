"""The dependence of samples: what it does to a variance, and Gaussian ones with it."""

import math

import jax
import jax.scipy.special
import numpy as np

_NORMAL_IQR = 1.349
_ndtri = jax.jit(jax.scipy.special.ndtri)


def normal_scores(series: np.ndarray) -> np.ndarray:
    """The normal quantiles of the ranks: the same order with a Gaussian law."""
    _, place, counts = np.unique(series, return_inverse=True, return_counts=True)
    # Equal samples share a rank: in the order of time it would be a trend.
    ranks = np.cumsum(counts) - counts / 2
    return np.asarray(_ndtri(ranks / len(series)))[place]


def gaussian_series(
    series: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Standard normal series with the autocorrelation of the normal scores.

    Every frequency keeps its amplitude and gets a random phase.

    Args:
      series: (n,), in the order of time.
      number: of surrogates.
      rng: where the phases come from.

    Returns:
      Array (number, n), of mean 0 and variance 1 in every row.
    """
    n = len(series)
    amplitudes = np.abs(np.fft.rfft(normal_scores(series)))
    amplitudes[0] = 0
    turns = rng.random((number, len(amplitudes)))
    if n % 2 == 0:  # the last frequency is real: a sign is all its phase
        turns[:, -1] = np.round(turns[:, -1]) / 2
    phases = np.exp(2j * np.pi * turns)
    found = np.fft.irfft(amplitudes * phases, n)
    return found / np.std(found, axis=1, keepdims=True)


def gaussian_draws(
    draws: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian draws whose coordinates have the scales and correlations of the draws.

    The scale is the interquartile range, or the standard deviation where this is 0.
    Standard deviations of a few heavy-tailed draws are themselves heavy-tailed, so that
    a null with these would find nothing: of Pareto draws of index 1.5, a quarter.

    Args:
      draws: (n, d), n draws of d coordinates.
      number: of surrogates of all n draws.
      rng: where the numbers come from.

    Returns:
      Array (number, n, d): random combinations of the centered and scaled draws.
    """
    n = len(draws)
    low, high = np.quantile(draws, [0.25, 0.75], axis=0)
    deviation = np.std(draws, axis=0)
    scale = np.where(high > low, (high - low) / _NORMAL_IQR, deviation)
    standard = (draws - draws.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    scaled = (standard * scale).astype(np.float32)
    weights = rng.standard_normal((number * n, n), np.float32) / math.sqrt(n)
    return (weights @ scaled).reshape(number, *draws.shape)


def block_length(series: np.ndarray) -> int:
    """The length of the blocks beyond which the series hardly depends on itself.

    The rule of Politis and White for the variance of a mean, with the correction of
    Patton, Politis and White, on the normal scores: an infinite variance does no harm.
    """
    n = len(series)
    scores = normal_scores(series)
    spectrum = np.abs(np.fft.rfft(scores, 2 * n)) ** 2
    covariances = np.fft.irfft(spectrum)[:n] / n
    correlations = np.abs(covariances / covariances[0])
    quiet = max(5, math.ceil(math.sqrt(math.log10(n))))
    small = correlations[1:] < 2 * math.sqrt(math.log10(n) / n)
    runs = np.convolve(small, np.ones(quiet), "valid") == quiet
    longest = math.ceil(math.sqrt(n)) + quiet
    first = int(np.argmax(runs)) if runs.any() else longest
    bandwidth = min(2 * max(first, 1), longest, n - 1)
    lags = np.arange(1, bandwidth + 1)
    flat_top = np.clip(2 * (1 - lags / bandwidth), 0, 1)
    weighted = 2 * flat_top * covariances[lags]
    slope = float(np.sum(weighted * lags))
    level = covariances[0] + float(np.sum(weighted))
    if level <= 0:
        return 1
    length = (1.5 * n) ** (1 / 3) * (abs(slope) / level) ** (2 / 3)
    return max(1, min(math.ceil(length), math.ceil(min(3 * math.sqrt(n), n / 3))))


def block_variance(series: np.ndarray, length: int) -> float:
    """The variance of the sum of a dependent series, for each of its samples.

    From the sums of all blocks of the length, around the end too. These miss the
    covariance across their ends, which twice theirs less that of blocks a third as long
    more than makes up for. At least the variance of independent samples.

    References:
      Vats and Flegal, `Lugsail lag windows for estimating time-average covariance
      matrices <https://arxiv.org/abs/1809.04541>`_, 2022.
    """
    single = float(np.var(series))
    shorter = max(1, length // 3)
    lugsail = 2 * _of_blocks(series, length) - _of_blocks(series, shorter)
    return max(single, lugsail)


def _of_blocks(series: np.ndarray, length: int) -> float:
    sums = np.cumsum(np.concatenate([[0.0], series, series[:length]]))
    return float(np.var(sums[length:-1] - sums[: len(series)])) / length
