"""Tails of single coordinates: across iterations, and within one."""

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail.diagnostics.tails._tail_estimate import (
    TailEstimate,
    estimate_tail,
    fewest_nulls,
)
from optax_heavytail.diagnostics.tails._tail_index import hill
from optax_heavytail.diagnostics.tails._tail_methods import in_batches

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
    """The tail of single coordinates over the iterations: the median of their indices.

    The interval is a jackknife over blocks of iterations, which all coordinates share.
    """
    n, there = scaled.shape
    chosen = np.linspace(0, there - 1, min(there, _MOST_ENTRIES)).astype(int)
    rows = scaled[:, chosen].T
    if not there:
        return _without_scale("iterations", confidence, n)
    null = _nulls(
        scaled[:, chosen], confidence, seed, lambda draws: np.moveaxis(draws, 1, 2)
    )
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

    def measured(draws):  # in units of a median, as there
        return draws[:, ::step] / np.median(np.abs(draws), axis=1, keepdims=True)

    return estimate_tail(
        scaled[::step],
        over="coordinates",
        k=tail_size(c),
        confidence=confidence,
        null=_nulls(scaled, confidence, seed, measured),
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


def _nulls(
    scaled: np.ndarray,
    confidence: float,
    seed: int,
    look: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Gaussian draws whose coordinates depend on each other as the ranks of these do.

    Their covariance is that of the normal scores: the largest spikes count as what
    comes first in rank, no more.

    Args:
      scaled: (n, c).
      confidence: that is to be had.
      seed: of the draws.
      look: from some nulls (m, n, c), each coordinate of variance 1, to what is kept.
    """
    rng, (n, c) = np.random.default_rng(seed), scaled.shape
    levels = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    scores = np.asarray(levels, np.float32)[np.argsort(np.argsort(scaled, 0), 0)]
    # Random combinations of the rows of Q R have the law of those of the rows of R,
    # which are no more than the columns.
    _, upper = np.linalg.qr(scores)
    rows = upper / np.linalg.norm(scores[:, 0])

    def some(start, stop):
        normal = rng.standard_normal(((stop - start) * n, len(rows)), np.float32)
        return look((normal @ rows).reshape(-1, n, c))

    return in_batches(some, max(_NUM_NULLS, fewest_nulls(confidence)), n * c)


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
