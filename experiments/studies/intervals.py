"""What differences between runs say: intervals, and a mark for a table of many."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from experiments.common import markdown

LEVEL = 0.05  # of the mark, for a whole table
MARK = "*"


class Difference(NamedTuple):
    """A cell of a table: paired differences, one of each seed."""

    values: np.ndarray
    form: str  # how numbers are written
    show: Callable[[float], float] = float  # of the mean and the ends, such as exp


def mean_interval(
    values: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """A mean, and the ends of its Student-t interval.

    The ends are NaN where values give no error of the mean: one alone, or equal ones
    that are not zero. Zeros are runs that are the same, about which nothing is unsure.
    """
    mean = float(np.mean(values))
    if not np.any(values):
        return 0.0, 0.0, 0.0
    quantile = special.stdtrit(len(values) - 1, (1 + confidence) / 2)
    half = float(quantile * _error(values))
    return mean, mean - half, mean + half


def p_value(values: np.ndarray) -> float:
    """Of the two-sided t-test that the mean is zero; NaN where there is no error."""
    if not np.any(values):
        return 1.0
    distance = abs(np.mean(values)) / _error(values)
    return float(2 * special.stdtr(len(values) - 1, -distance))


def _error(values: np.ndarray) -> float:
    """Of the mean; NaN where the values do not tell."""
    if len(values) < 2 or np.ptp(values) <= 1e-9 * np.max(np.abs(values)):
        return float("nan")
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values: below 0.05 all are right but in 5% of the tables.

    What has no p-value is no test, and has none afterwards.
    """
    adjusted = np.array(p_values, float)
    tested = np.flatnonzero(np.isfinite(adjusted))
    order = tested[np.argsort(adjusted[tested])]
    factors = np.arange(len(order), 0, -1)
    steps = np.maximum.accumulate(factors * adjusted[order])
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def table(headings: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose differences have intervals, and marks by Holm's method.

    All of its cells that are a `Difference` are one family of tests.
    """
    cells = [cell for row in rows for cell in row if isinstance(cell, Difference)]
    adjusted = iter(holm([p_value(cell.values) for cell in cells]))
    written = [
        [
            _written(cell, next(adjusted)) if isinstance(cell, Difference) else cell
            for cell in row
        ]
        for row in rows
    ]
    return markdown.table(headings, written)


def _written(cell: Difference, adjusted: float) -> str:
    numbers = [float(cell.show(number)) for number in mean_interval(cell.values)]
    mark = MARK if adjusted < LEVEL else ""
    return with_interval(numbers, cell.form) + mark


def with_interval(numbers: Sequence[float], form: str) -> str:
    """A number and its interval as text, each written as ``form`` says."""
    value, low, high = (f"{number:{form}}" for number in numbers)
    if not np.all(np.isfinite(numbers)):
        return f"{value} (no interval)"
    return f"{value} [{low}, {high}]"


def fitted_exponent(
    sizes: Sequence[float], errors: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The slope of the logarithm of the mean error over that of the size.

    Args:
      sizes: (m,), such as steps.
      errors: (n, m), of n independent runs: 30 or more, as the interval is too short
        for few.
      confidence: of the interval.

    Returns:
      The slope, and the ends of its percentile interval under resampling of the runs.
    """
    logs = np.log(sizes)
    weights = (logs - logs.mean()) / np.sum((logs - logs.mean()) ** 2)

    def slope(means: np.ndarray) -> np.ndarray:
        return np.log(means) @ weights

    places = np.random.default_rng(0).integers(len(errors), size=(1000, len(errors)))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(slope(errors[places].mean(axis=1)), tails)
    return float(slope(errors.mean(axis=0))), float(low), float(high)
