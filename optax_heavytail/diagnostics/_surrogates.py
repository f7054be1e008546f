"""Resamples that keep the dependence of samples, and Gaussian ones that have it."""

import math

import jax
import jax.scipy.special
import numpy as np

_ndtri = jax.jit(jax.scipy.special.ndtri)


def normal_scores(series: np.ndarray) -> np.ndarray:
    """The normal quantiles of the ranks: the same order with a Gaussian law."""
    n = len(series)
    ranks = np.empty(n)
    ranks[np.argsort(series, kind="stable")] = np.arange(n)
    return np.asarray(_ndtri((ranks + 0.5) / n))


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
    """Gaussian draws with the covariance that the draws have.

    Args:
      draws: (n, d), n draws of d coordinates.
      number: of surrogates of all n draws.
      rng: where the numbers come from.

    Returns:
      Array (number, n, d): random combinations of the centered draws.
    """
    n = len(draws)
    centered = (draws - draws.mean(axis=0)).astype(np.float32)
    weights = rng.standard_normal((number * n, n), np.float32) / math.sqrt(n)
    return (weights @ centered).reshape(number, *draws.shape)


def block_length(series: np.ndarray) -> int:
    """The length of the blocks that a bootstrap of the series should move.

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


def block_indices(
    n: int, length: int, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Places (number, n) of resamples made of blocks that wrap around the end."""
    starts = rng.integers(n, size=(number, math.ceil(n / length), 1))
    places = (starts + np.arange(length)) % n
    return places.reshape(number, -1)[:, :n]
