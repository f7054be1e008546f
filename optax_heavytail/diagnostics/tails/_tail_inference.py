"""What a tail estimate consists of: interval, Gaussian null, goodness of fit."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.special
import numpy as np

from optax_heavytail.diagnostics.tails import (
    _choose_k,
    _stable,
    _surrogates,
    _tail_intervals,
    _tail_methods,
)
from optax_heavytail.diagnostics.tails._tail_methods import (
    METHODS,
    evaluate,
    in_batches,
)

_MIN_SIMULATED_INDEX = 0.2  # below, stable samples leave the range of float32


_log_ndtr = jax.jit(jax.scipy.special.log_ndtr)
_jitted_pareto_distance = jax.jit(_choose_k.pareto_distance)
_jitted_stable_fit = jax.jit(_stable.stable_fit)


class Question(NamedTuple):
    """Samples, and what is asked of them."""

    rows: np.ndarray  # (draws, n), float64, at most 1 in size, none constant
    method: str
    k: int | None
    is_series: bool  # of one row, in the order of time


def infer(
    question: Question,
    confidence: float,
    num_bootstrap: int,
    num_null: int,
    null: np.ndarray | None,
    rng: np.random.Generator,
) -> dict[str, float | None] | None:
    """The numbers of a `TailEstimate`; None if there are none.

    Args:
      question: what to estimate from.
      confidence: of the intervals.
      num_bootstrap: number of resamples.
      num_null: number of null samples, unless they are given.
      null: (number, draws, n), or None for the Gaussian null.
      rng: where all random numbers come from.
    """
    rows, name, k, is_series = question
    method = METHODS[name]
    statistic = evaluate(method, method.prepare(rows), k)
    if np.isnan(statistic).any():
        return None
    indices = method.index(statistic)
    index = float(np.median(indices))
    interval = (
        _tail_intervals.of_one_row(
            name, rows[0], k, float(statistic[0]), is_series, confidence
        )
        if len(rows) == 1
        else _tail_intervals.over_draws(indices, confidence, num_bootstrap, rng)
    )
    nulls = _null_indices(question, num_null, null, rng)
    if np.isnan([*interval, *nulls]).any():
        return None
    null_interval = _tail_intervals.central(nulls, confidence)
    return {
        "index": index,
        "low": interval[0],
        "high": interval[1],
        "p_value": _p_value(question, num_null, rng),
        "null_low": null_interval[0],
        "null_high": null_interval[1],
        "null_p_value": _share(np.count_nonzero(nulls <= index), len(nulls)),
    }


def _share(count: Any, number: int) -> float:
    """A p-value: the samples themselves are one that satisfies the hypothesis."""
    return float((1 + count) / (1 + number))


def _null_indices(
    question: Question,
    number: int,
    null: np.ndarray | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """The index of every null sample, of several draws the median."""
    rows, method = question.rows, METHODS[question.method]

    def gaussian(count):
        if question.is_series:
            normal = _surrogates.gaussian_series(rows[0], count, rng)
            return (rows.mean() + rows.std() * normal)[:, None]
        if len(rows) == 1:
            return rng.standard_normal((count, *rows.shape))
        return _surrogates.gaussian_draws(rows, count, rng)

    def indices(start, stop):
        batch = gaussian(stop - start) if null is None else null[start:stop]
        prepared = method.prepare(batch.reshape(-1, rows.shape[1]))
        found = method.index(evaluate(method, prepared, question.k))
        return np.median(found.reshape(len(batch), -1), axis=1)

    return in_batches(indices, number if null is None else len(null), rows.size)


def _p_value(question: Question, number: int, rng: np.random.Generator) -> float | None:
    """The p-value of the tail being a power law, or of the law being stable.

    Of several draws, twice the median of their p-values: a p-value however the draws
    depend on each other. None where a distance to the law cannot be told.
    """
    if question.k is None:
        measured = _stable_distance(question.rows)
        # The index that the distance is measured at, whatever the method's is.
        slope = float(np.median(_stable_fit(question.rows)[0]))
        simulate = functools.partial(_stable_rows, question, min(slope, 2.0), rng)
        distance = _stable_distance
    else:
        with np.errstate(divide="ignore"):  # the smallest of them may be 0
            logs = np.log(_largest(np.abs(question.rows), question.k))
        measured = _pareto_distance(logs)
        simulate = functools.partial(_exponential_tails, question, question.k, rng)
        distance = _pareto_distance
    if np.isnan(measured).any():
        return None
    simulated = in_batches(
        lambda start, stop: distance(simulate(stop - start)),
        number,
        question.rows.shape[1],
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
    normal = _surrogates.gaussian_series(np.abs(question.rows[0]), count, rng)
    return -np.asarray(_log_ndtr(-_largest(normal, k)))


def _pareto_distance(logs: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
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
    return _stable_fit(rows)[1]


def _stable_fit(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    standard = jnp.asarray(_tail_methods.standardise(rows), jnp.float32)
    slope, distance = _jitted_stable_fit(standard)
    return np.asarray(slope), np.asarray(distance)
