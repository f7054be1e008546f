"""What a pair of methods says: a difference with its interval, and one word."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.studies import intervals
from experiments.studies.training import LOST

WIN, LEVEL, LOSS, OPEN = "win", "level", "loss", "open"
BOTH_LOST = "both lost"
NOT_TESTED = "not tested"


class Pair(NamedTuple):
    """Losses of a method and of the baseline, seed by seed."""

    own: np.ndarray
    base: np.ndarray
    form: str = "+.4f"

    @property
    def is_whole(self) -> bool:
        """Whether no run of either is lost."""
        return bool(np.all(self.own < LOST) and np.all(self.base < LOST))

    @property
    def difference(self) -> np.ndarray:
        """Of the losses; of all seeds, so only of a pair that is whole."""
        return self.own - self.base


class Verdict(NamedTuple):
    """How a pair is shown."""

    difference: str
    word: str


def p_value(pair: Pair) -> float:
    """Of the paired t-test; where runs are lost, of McNemar's exact test on those."""
    if pair.is_whole:
        return intervals.p_value(pair.difference)
    own, base = pair.own >= LOST, pair.base >= LOST
    only = int(np.sum(own & ~base)), int(np.sum(base & ~own))
    return float(stats.binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0


def judge(pairs: Sequence[Pair], margin: float) -> list[Verdict]:
    """The verdicts of one family of pairs, by Holm's method.

    Args:
      pairs: of one table.
      margin: the largest difference that counts as none.

    Returns:
      *level*: the whole interval lies within the margin, whether the difference stands
      or not. *win* or *loss*: it does not, and the difference stands among all of the
      family. *both lost*: every run of either is. *open*: none of these.
    """
    adjusted = intervals.holm([p_value(pair) for pair in pairs])
    return [_judged(pair, p, margin) for pair, p in zip(pairs, adjusted, strict=True)]


def _judged(pair: Pair, adjusted: float, margin: float) -> Verdict:
    stands = bool(adjusted < intervals.LEVEL)
    if np.all(np.minimum(pair.own, pair.base) >= LOST):
        return Verdict("", BOTH_LOST)
    if not pair.is_whole:
        more = int(np.sum(pair.own >= LOST)) - int(np.sum(pair.base >= LOST))
        word = (LOSS if more > 0 else WIN) if stands else OPEN
        return Verdict("", word)
    numbers = intervals.mean_interval(pair.difference)
    shown = intervals.with_interval(numbers, pair.form) + intervals.MARK * stands
    if max(abs(numbers[1]), abs(numbers[2])) <= margin:
        return Verdict(shown, LEVEL)
    word = (LOSS if numbers[0] > 0 else WIN) if stands else OPEN
    return Verdict(shown, word)
