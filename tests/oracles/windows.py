"""Limits from the numbers of a window: a robust rule and the usual one."""

import numpy as np

# Makes the median absolute deviation of a Gaussian its standard deviation.
_PER_MAD = 1.4826


def robust_limit(numbers, count, floor):
    """Median plus ``count`` deviations; ``floor`` is the least deviation."""
    median = np.median(numbers)
    mad = np.median(np.abs(numbers - median))
    return median + count * max(_PER_MAD * mad, floor)


def mean_limit(numbers, count, ddof, floor):
    """Mean plus ``count`` deviations, with divisor ``len(numbers) - ddof``."""
    mean = np.mean(numbers)
    variance = np.sum((numbers - mean) ** 2) / (len(numbers) - ddof)
    return mean + count * max(np.sqrt(variance), floor)


def acts(rule, size, window):
    """Whether a rule acts on a window of which ``size`` numbers are there."""
    return size >= (window if rule == "median" else max(2, window // 2))
