"""Laws whose tail index is known, independent and in series that depend on time."""

from typing import Literal, NamedTuple

import numpy as np
import scipy.signal
import scipy.special
import scipy.stats

BURN_IN = 300


class Law(NamedTuple):
    """A law of samples."""

    family: Literal["Pareto", "Student-t", "stable", "Gaussian"]
    index: float  # inf for the Gaussian law

    def __str__(self) -> str:
        """As in the tables."""
        return self.family if np.isinf(self.index) else f"{self.family} {self.index:g}"

    def samples(self, shape: tuple[int, int], phi: float, seed: int) -> np.ndarray:
        """Rows of samples.

        Args:
          shape: (rows, n).
          phi: coefficient of an autoregression of first order. Stable and Gaussian
            series are linear ones, in which an outlier decays. Pareto and Student-t
            series have the ranks of a Gaussian one, and their own law exactly.
          seed: of the samples.
        """
        rng = np.random.default_rng(seed)
        length = (shape[0], shape[1] + BURN_IN)
        if self.family == "stable":
            law = scipy.stats.levy_stable(self.index, 0)
            noise = np.asarray(law.rvs(size=length, random_state=rng))
            return _autoregression(noise, phi)
        normal = rng.standard_normal(length) * np.sqrt(1 - phi**2)
        series = _autoregression(normal, phi)
        if self.family == "Gaussian":
            return series
        # From the small tail, as 1 - p would lose what is far out in the large one.
        if self.family == "Pareto":
            return scipy.special.ndtr(-series) ** (-1 / self.index)
        tail = scipy.special.ndtr(-np.abs(series))
        return -np.sign(series) * scipy.special.stdtrit(self.index, tail)


def _autoregression(noise: np.ndarray, phi: float) -> np.ndarray:
    series = scipy.signal.lfilter([1.0], [1.0, -phi], noise, axis=1)
    return np.asarray(series)[:, BURN_IN:]


GAUSSIAN = Law("Gaussian", np.inf)
POWER_LAWS = (
    Law("Pareto", 1.5),
    Law("Student-t", 1.5),
    Law("Student-t", 2),
    Law("Student-t", 3),
    Law("Student-t", 4),
)
STABLE_LAWS = (Law("stable", 1.2), Law("stable", 1.5), Law("stable", 1.8))
