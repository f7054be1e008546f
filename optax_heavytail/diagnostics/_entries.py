"""Tails of single coordinates: across iterations, and within one."""

import dataclasses
import math
from collections.abc import Iterator
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail.diagnostics._tail_estimate import (
    TailEstimate,
    estimate_tail,
    fewest_nulls,
)
from optax_heavytail.diagnostics._tail_index import hill

_FEWEST = 10  # of a tail, for any estimate
_MOST_ENTRIES = 32
_MOST_DRAWS = 64
_NUM_NULLS = 49  # more where the confidence asks for it
_FOLDS = 20  # of the jackknife
_QUARTERS = 4
_GAUSSIAN_SERIES = 200


@dataclasses.dataclass(frozen=True)
class CoordinateGroup:
    """A quarter of a layer's coordinates, by the size of their noise.

    Attributes:
      scale: median of the absolute noise.
      index: median over the coordinates of their Hill indices across iterations.
      gaussian_index: the same of Gaussian noise.
    """

    scale: float
    index: float
    gaussian_index: float


def tail_size(num_samples: int) -> int:
    """How many of the largest are the tail: a tenth, or of few samples the root.

    With a tenth, intervals of some hundreds of samples are narrow enough to decide, at
    the price of some bias that a Hill plot shows.
    """
    return max(num_samples // 10, math.isqrt(num_samples), _FEWEST)


def scaled(coordinates: np.ndarray) -> np.ndarray:
    """Each column in units of its median size; without those that hardly ever vary.

    The median is not moved by the very spikes that are looked for.
    """
    sizes = np.median(np.abs(coordinates), axis=0)
    return coordinates[:, sizes > 0] / sizes[sizes > 0]


def across_iterations(scaled: np.ndarray, confidence: float, seed: int) -> TailEstimate:
    """Of single coordinates: the median of their indices.

    The interval is a jackknife over blocks of iterations, which all coordinates share.
    """
    n, there = scaled.shape
    chosen = np.linspace(0, there - 1, min(there, _MOST_ENTRIES)).astype(int)
    rows = scaled[:, chosen].T
    if not there:
        return _without_scale("iterations", confidence, n)
    nulls = _like(scaled[:, chosen], _num_nulls(confidence), seed)
    null = np.stack([draws.T for draws in nulls])
    found = estimate_tail(
        rows if len(rows) > 1 else rows[0],
        over="coordinates",  # each row has its own index, as a draw has there
        k=tail_size(n),
        confidence=confidence,
        null=null if len(rows) > 1 else null[:, 0],
        seed=seed,
    )
    reason = found.reason and found.reason.replace("draws", "coordinates")
    found = dataclasses.replace(found, over="iterations", reason=reason)
    if found.index is None:
        return found
    error = NormalDist().inv_cdf((1 + confidence) / 2) * _log_error(rows)
    low, high = (found.index * math.exp(sign * error) for sign in (-1, 1))
    return dataclasses.replace(found, low=low, high=high)


def _log_error(rows: np.ndarray) -> float:
    """Standard error of the logarithm of the median index."""
    n = rows.shape[1]
    block = n // _FOLDS
    left = np.stack(
        [
            np.delete(rows, slice(i, i + block), 1)
            for i in range(0, block * _FOLDS, block)
        ]
    )
    indices = _hill(left, tail_size(n - block))
    # Of a coordinate that moved in the batches left out alone, all are equal now.
    indices = np.where(np.isnan(indices), np.inf, indices)
    logs = np.log(np.median(indices, axis=1))
    return float(np.sqrt((_FOLDS - 1) * np.var(logs)))


def across_coordinates(
    scaled: np.ndarray, confidence: float, seed: int
) -> TailEstimate:
    """Within an iteration: the median of the iterations' indices."""
    n, c = scaled.shape
    if not c:
        return _without_scale("coordinates", confidence, n)
    step = -(-n // _MOST_DRAWS)
    # In units of a median that is measured, as there.
    null = np.stack(
        [
            draws[::step] / np.median(np.abs(draws), axis=0)
            for draws in _like(scaled, _num_nulls(confidence), seed)
        ]
    )
    return estimate_tail(
        scaled[::step],
        over="coordinates",
        k=tail_size(c),
        confidence=confidence,
        null=null,
        seed=seed,
    )


def _without_scale(over: str, confidence: float, n: int) -> TailEstimate:
    return TailEstimate(
        over,
        "hill",
        confidence,
        None,
        n,
        reason="every coordinate looked at is constant in most iterations",
    )


def _num_nulls(confidence: float) -> int:
    return max(_NUM_NULLS, fewest_nulls(confidence))


def _like(scaled: np.ndarray, number: int, seed: int) -> Iterator[np.ndarray]:
    """Gaussian draws whose coordinates depend on each other as the ranks of these do.

    Their covariance is that of the normal scores: the largest spikes count as what
    comes first in rank, no more.

    Yields:
      ``number`` arrays (n, c), each coordinate of variance 1.
    """
    rng, (n, _) = np.random.default_rng(seed), scaled.shape
    levels = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    scores = np.asarray(levels, np.float32)[np.argsort(np.argsort(scaled, 0), 0)]
    # Random combinations of the n rows have the law of those of the principal ones,
    # which are no more than the columns.
    _, sizes, directions = np.linalg.svd(scores, full_matrices=False)
    principal = sizes[:, None] * directions / np.linalg.norm(scores[:, 0])
    for _ in range(number):
        yield rng.standard_normal((n, len(sizes)), np.float32) @ principal


def groups(coordinates: np.ndarray, seed: int) -> tuple[CoordinateGroup, ...]:
    """The index across iterations of the quiet and of the loud coordinates."""
    sizes, n = np.median(np.abs(coordinates), axis=0), len(coordinates)
    k = tail_size(n)
    sizes = sizes[sizes > 0]
    if len(sizes) < _QUARTERS or not 1 <= k < n:
        return ()
    indices, order = _hill(scaled(coordinates).T, k), np.argsort(sizes)
    series = np.random.default_rng(seed).standard_normal((_GAUSSIAN_SERIES, n))
    expected = float(np.median(_hill(series, k)))
    return tuple(
        CoordinateGroup(
            float(np.median(sizes[part])), float(np.median(indices[part])), expected
        )
        for part in np.array_split(order, _QUARTERS)
    )


_jitted_hill = jax.jit(hill, static_argnums=1)


def _hill(samples: np.ndarray, k: int) -> np.ndarray:
    return np.asarray(_jitted_hill(jnp.asarray(samples, jnp.float32), k))
