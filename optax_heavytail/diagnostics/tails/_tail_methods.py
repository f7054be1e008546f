"""The estimators as statistics of prepared samples, many rows at a time."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail.diagnostics.tails import _stable, _tail_index

_MAX_ELEMENTS = 2**22  # of a batch of rows: 16 MiB in float32


class Method(NamedTuple):
    """An estimator: a statistic of prepared samples, and the index it stands for."""

    # (rows, n), k, weights (n,) or None -> (rows,)
    statistic: Callable[[jax.Array, int | None, jax.Array | None], jax.Array]
    index: Callable[[np.ndarray], np.ndarray]  # monotone
    prepare: Callable[[Any], Any] = np.abs
    default_k: Callable[[int], int] | None = math.isqrt  # None: fits a stable law


def _inverse(statistic: np.ndarray) -> np.ndarray:
    """1 / x, and inf for what is not positive."""
    with np.errstate(divide="ignore"):
        return 1 / np.maximum(statistic, 0)


def standardise(rows: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return _stable.standardise(rows, np)


# No statistic depends on the scale, so that the range of float32 is enough.
METHODS: dict[str, Method] = {
    "hill": Method(lambda rows, k, _: 1 / _tail_index.hill(rows, k), _inverse),
    "moment_ratio": Method(
        lambda rows, k, _: 1 / _tail_index.moment_ratio(rows, k), _inverse
    ),
    "pickands": Method(
        lambda rows, k, _: _tail_index.pickands_shape(rows, k),
        _inverse,
        default_k=lambda n: 4 * math.isqrt(n),
    ),
    "log_moment": Method(
        lambda rows, k, weights: _stable.log_moment_statistic(rows, weights),
        lambda inverse_square: np.maximum(inverse_square, 0.25) ** -0.5,
        prepare=_stable.halves_apart,
        default_k=None,
    ),
    "characteristic_function": Method(
        lambda rows, k, weights: _stable.stable_fit(rows, weights)[0],
        lambda slope: np.clip(slope, 0, 2),
        prepare=standardise,
        default_k=None,
    ),
}


@functools.partial(jax.jit, static_argnums=(0, 2))
def _evaluate(statistic, rows, k):
    return statistic(rows, k, None)


def evaluate(method: Method, prepared: np.ndarray, k: int | None) -> np.ndarray:
    """The statistic of every row of prepared samples."""
    rows = jnp.asarray(prepared, jnp.float32)
    return np.asarray(_evaluate(method.statistic, rows, k), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _slopes(statistic, row):
    n = len(row)
    weights = jnp.full(n, 1 / n, row.dtype)
    return jax.grad(lambda w: statistic(row[None], None, w)[0])(weights)


def influence(method: Method, prepared: np.ndarray) -> np.ndarray:
    """What every sample of a prepared row adds to the statistic, which is their mean.

    To first order, and but for a constant: the slope by the weight of the sample.
    """
    slopes = _slopes(method.statistic, jnp.asarray(prepared, jnp.float32))
    return np.asarray(slopes, np.float64)


def in_batches(
    compute: Callable[[int, int], np.ndarray], number: int, size: int
) -> np.ndarray:
    """``compute(start, stop)`` of ``number`` items with ``size`` numbers each."""
    step = max(1, _MAX_ELEMENTS // size)
    starts = range(0, number, step)
    return np.concatenate([compute(i, min(i + step, number)) for i in starts])
