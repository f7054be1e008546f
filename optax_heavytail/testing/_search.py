"""Looks for gradients that a law refuses, and makes them small."""

import itertools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from optax_heavytail.testing import _inputs
from optax_heavytail.testing._compare import Broken, explain
from optax_heavytail.testing._inputs import Drawn

_SHRINKING = 60  # tries after the first failure; most of what there is to gain
_FEW = 10  # examples, unless a profile says otherwise: each may compile
_OF_HYPOTHESIS = 100  # examples of its own profile


def default_examples() -> int:
    """As many as the loaded profile of hypothesis says, if somebody has set one."""
    hypothesis = sys.modules.get("hypothesis")
    loaded = hypothesis.settings().max_examples if hypothesis else _OF_HYPOTHESIS
    return _FEW if loaded == _OF_HYPOTHESIS else loaded


class Search(NamedTuple):
    """What is drawn: gradients like ``params`` of so many steps."""

    holds: Callable[[list[Any]], None]
    params: Any
    at_least: int
    at_most: int
    values: tuple[float, ...]
    change: Callable[[list[Any]], list[Any]]

    def run(self, max_examples: int) -> None:
        """Breaks with the smallest gradients found that ``holds`` refuses."""
        drawing = _inputs.drawing(
            self.params, self.at_least, self.at_most, len(self.values)
        )
        for drawn in itertools.islice(drawing, max_examples):
            if (failure := self.failure(drawn)) is not None:
                failure = _Shrinking(self, failure).smallest()
                found = _inputs.describe(failure.grads)
                text = f"{explain(failure.error)}\n  smallest input found: {found}"
                raise Broken(text) from failure.error

    def failure(self, drawn: Drawn) -> "_Failure | None":
        """What ``holds`` raised, if it did."""
        grads = self.change(
            _inputs.gradients(self.params, drawn, self.at_most, self.values)
        )
        try:
            self.holds(grads)
        except Exception as error:
            return _Failure(drawn, grads, error)
        return None


class _Failure(NamedTuple):
    drawn: Drawn
    grads: list[Any]
    error: Exception


class _Shrinking:
    """Takes away what the failure does not need, as long as there are tries left."""

    def __init__(self, search: Search, failure: _Failure):
        self._search = search
        self._best = failure
        self._tries_left = _SHRINKING

    def smallest(self) -> _Failure:
        at_least = self._search.at_least
        self._try(Drawn(at_least, (0,) * len(self._best.drawn.places)))
        for steps in range(at_least, self._best.drawn.steps):
            if self._try(self._best.drawn._replace(steps=steps)):
                break
        self._without_entries()
        for place in self._nonzero():
            for value in range(1, self._best.drawn.places[place]):
                if self._try(self._with([place], value)):
                    break
        return self._best

    def _without_entries(self) -> None:
        size = len(self._nonzero()) // 2
        while size:
            nonzero = self._nonzero()
            for start in range(0, len(nonzero), size):
                self._try(self._with(nonzero[start : start + size], 0))
            size //= 2

    def _nonzero(self) -> list[int]:
        drawn = self._best.drawn
        skipped = len(drawn.places) - len(drawn.used(self._search.at_most))
        return [k for k, x in enumerate(drawn.places) if x and k >= skipped]

    def _with(self, places: list[int], value: int) -> Drawn:
        changed = list(self._best.drawn.places)
        for place in places:
            changed[place] = value
        return self._best.drawn._replace(places=tuple(changed))

    def _try(self, drawn: Drawn) -> bool:
        if not self._tries_left or drawn == self._best.drawn:
            return False
        self._tries_left -= 1
        failure = self._search.failure(drawn)
        self._best = failure or self._best
        return failure is not None
