"""What a tail estimate consists of: estimators, bootstrap, null, goodness of fit."""

import functools
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.special
import numpy as np

from optax_heavytail.diagnostics import _stable, _surrogates, _tail_index

_MAX_ELEMENTS = 2**22  # of a batch of resamples: 16 MiB in float32
_MIN_SIMULATED_INDEX = 0.2  # below, stable samples leave the range of float32


_jitted_pareto_distance = jax.jit(_tail_index.pareto_distance)
_jitted_stable_fit = jax.jit(_stable.stable_fit)


class Method(NamedTuple):
    """An estimator as a statistic of prepared samples, and the index it stands for."""

    statistic: Callable[[jax.Array, int | None], jax.Array]  # (rows, n) -> (rows,)
    index: Callable[[np.ndarray], np.ndarray]  # monotone
    prepare: Callable[[Any], Any] = np.abs
    default_k: Callable[[int], int] | None = math.isqrt  # None: fits a stable law
    is_gamma: bool = False  # it errs as the mean of k exponential numbers does


class Question(NamedTuple):
    """Samples, and what is asked of them."""

    rows: np.ndarray  # (draws, n), float64, finite, none constant
    method: Method
    k: int | None
    is_series: bool  # of one row, in the order of time


def _inverse(statistic: np.ndarray) -> np.ndarray:
    """1 / x, and inf for what is not positive."""
    with np.errstate(divide="ignore"):
        return 1 / np.maximum(statistic, 0)


METHODS: dict[str, Method] = {
    "hill": Method(
        lambda rows, k: 1 / _tail_index.hill(rows, k), _inverse, is_gamma=True
    ),
    "moment_ratio": Method(
        lambda rows, k: 1 / _tail_index.moment_ratio(rows, k), _inverse, is_gamma=True
    ),
    "pickands": Method(_tail_index.pickands_shape, _inverse),
    "log_moment": Method(
        lambda rows, k: _stable.log_moment_statistic(rows),
        lambda inverse_square: np.maximum(inverse_square, 0.25) ** -0.5,
        prepare=_stable.halves_apart,
        default_k=None,
    ),
    "characteristic_function": Method(
        lambda rows, k: _stable.stable_fit(rows)[0],
        lambda slope: np.clip(slope, 0, 2),
        prepare=lambda rows: rows - np.median(rows, axis=-1, keepdims=True),
        default_k=None,
    ),
}


def infer(
    question: Question,
    confidence: float,
    num_bootstrap: int,
    num_null: int,
    null: np.ndarray | None,
    rng: np.random.Generator,
) -> dict[str, float] | None:
    """The numbers of a `TailEstimate`; None if there are none.

    Args:
      question: what to estimate from.
      confidence: of the intervals.
      num_bootstrap: number of resamples.
      num_null: number of null samples, unless they are given.
      null: (number, draws, n), or None for the Gaussian null.
      rng: where all random numbers come from.
    """
    method = question.method
    statistic = _statistic(question, question.rows)
    index = float(np.median(method.index(statistic)))
    if len(question.rows) == 1:
        low, high = _interval(question, statistic[0], num_bootstrap, confidence, rng)
    else:
        indices = method.index(statistic)
        low, high = _interval_over_draws(indices, num_bootstrap, confidence, rng)
    nulls = _null_indices(question, num_null, null, rng)
    if np.isnan([index, low, high, *nulls]).any():
        return None
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    # Not interpolated: an index may be inf.
    null_low, null_high = np.quantile(nulls, tails, method="inverted_cdf")
    return {
        "index": index,
        "low": float(low),
        "high": float(high),
        "p_value": _p_value(question, index, num_null, rng),
        "null_low": float(null_low),
        "null_high": float(null_high),
        "null_p_value": _share(np.count_nonzero(nulls <= index), len(nulls)),
    }


def _share(count: Any, number: int) -> float:
    """A p-value: the samples themselves are one that satisfies the hypothesis."""
    return float((1 + count) / (1 + number))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _evaluate(statistic, rows, k):
    return statistic(rows, k)


def _float32(rows: np.ndarray) -> jax.Array:
    """Rows within the range of float32: no statistic here depends on the scale."""
    return jnp.asarray(rows / np.max(np.abs(rows)), jnp.float32)


def _statistic(question: Question, rows: np.ndarray) -> np.ndarray:
    """Of every row of ``rows`` (rows, n)."""
    return _prepared_statistic(question, question.method.prepare(rows))


def _prepared_statistic(question: Question, prepared: np.ndarray) -> np.ndarray:
    found = _evaluate(question.method.statistic, _float32(prepared), question.k)
    return np.asarray(found, np.float64)


def _in_batches(
    compute: Callable[[int, int], np.ndarray], number: int, size: int
) -> np.ndarray:
    """``compute(start, stop)`` of ``number`` items with ``size`` numbers each."""
    step = max(1, _MAX_ELEMENTS // size)
    starts = range(0, number, step)
    return np.concatenate([compute(i, min(i + step, number)) for i in starts])


def _interval(
    question: Question,
    statistic: float,
    number: int,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """From the bootstrap variance of the statistic of one row."""
    (prepared,) = question.method.prepare(question.rows)
    length = _surrogates.block_length(prepared) if question.is_series else 1

    def resampled(start, stop):
        places = _surrogates.block_indices(len(prepared), length, stop - start, rng)
        return _prepared_statistic(question, prepared[places])

    error = float(np.std(_in_batches(resampled, number, len(prepared))))
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    if not question.method.is_gamma:
        ends = np.array([statistic - z * error, statistic + z * error])
        low, high = np.sort(question.method.index(ends))
        return low, high
    # As precise as the mean of this number of exponential samples.
    size = (statistic / error) ** 2
    low, high = (_gamma_quantile(size, sign * z) / statistic for sign in (-1, 1))
    return low, high


def _gamma_quantile(shape: float, z: float) -> float:
    """Of the gamma law of mean 1, by Wilson and Hilferty, at a normal quantile."""
    return max(0.0, 1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))) ** 3


def _interval_over_draws(
    indices: np.ndarray, number: int, confidence: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentiles of the median over resampled draws."""
    places = rng.integers(len(indices), size=(number, len(indices)))
    medians = np.median(indices[places], axis=1)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(medians, tails, method="inverted_cdf")
    return low, high


def _null_indices(
    question: Question,
    number: int,
    null: np.ndarray | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """The index of every null sample, of several draws the median."""
    rows = question.rows

    def gaussian(count):
        if question.is_series:
            normal = _surrogates.gaussian_series(rows[0], count, rng)
            return (rows.mean() + rows.std() * normal)[:, None]
        if len(rows) == 1:
            return rng.standard_normal((count, *rows.shape))
        return _surrogates.gaussian_draws(rows, count, rng)

    def indices(start, stop):
        batch = gaussian(stop - start) if null is None else null[start:stop]
        statistic = _statistic(question, batch.reshape(-1, rows.shape[1]))
        return np.median(question.method.index(statistic).reshape(len(batch), -1), 1)

    return _in_batches(indices, number if null is None else len(null), rows.size)


def _p_value(
    question: Question, index: float, number: int, rng: np.random.Generator
) -> float:
    """Of the hypothesis that the tail is a power law, or that the law is stable.

    Of several draws, twice the median of their p-values: a p-value however the draws
    depend on each other.
    """
    if question.k is None:
        measured = _stable_distance(question.rows)
        simulate = functools.partial(_stable_rows, question, index, rng)
        distance = _stable_distance
    else:
        measured = _pareto_distance(np.log(_largest(np.abs(question.rows), question.k)))
        simulate = functools.partial(_exponential_tails, question, question.k, rng)
        distance = _pareto_distance
    size = question.rows.shape[1]
    simulated = _in_batches(
        lambda start, stop: distance(simulate(stop - start)), number, size
    )
    found = [_share(np.count_nonzero(simulated >= one), number) for one in measured]
    return found[0] if len(found) == 1 else min(1.0, 2 * float(np.median(found)))


def _largest(rows: np.ndarray, k: int) -> np.ndarray:
    """The k + 1 largest of each row, in falling order."""
    return np.sort(np.partition(rows, -k - 1, axis=1)[:, -k - 1 :], axis=1)[:, ::-1]


def _exponential_tails(
    question: Question, k: int, rng: np.random.Generator, count: int
) -> np.ndarray:
    """The k + 1 largest logarithms of Pareto samples as dependent as the samples."""
    if not question.is_series:
        # Only the k excesses matter, and these are independent.
        excess = np.sort(rng.exponential(size=(count, k)), axis=1)[:, ::-1]
        return np.pad(excess, ((0, 0), (0, 1)))
    normal = _surrogates.gaussian_series(question.rows[0], count, rng)
    return -np.asarray(jax.scipy.special.log_ndtr(-_largest(normal, k)))


def _pareto_distance(logs: np.ndarray) -> np.ndarray:
    excess = jnp.asarray(logs - logs[:, -1:], jnp.float32)
    return np.asarray(_jitted_pareto_distance(excess, logs.shape[1] - 1))


def _stable_rows(
    question: Question, index: float, rng: np.random.Generator, count: int
) -> np.ndarray:
    """Stable samples, in the order of surrogates that are as dependent as the samples.

    The law of the test statistic depends neither on location and scale nor, much, on
    the skew.
    """
    shape = (count, question.rows.shape[1])
    rows = _stable.stable_samples(max(index, _MIN_SIMULATED_INDEX), shape, rng)
    if not question.is_series:
        return rows
    normal = _surrogates.gaussian_series(question.rows[0], count, rng)
    ranks = np.argsort(np.argsort(normal, axis=1), axis=1)
    return np.take_along_axis(np.sort(rows, axis=1), ranks, axis=1)


def _stable_distance(rows: np.ndarray) -> np.ndarray:
    return np.asarray(_jitted_stable_fit(_float32(rows))[1])
