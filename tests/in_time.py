"""Which parameters of a test CI runs, and which wait for the nightly."""

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import pytest

TURNS = 3


def in_time(values: Mapping[str, Any], is_quick: Callable[[str], bool]) -> list[Any]:
    """Parameters by name, the others than quick ones with the mark ``nightly``."""
    marks = {True: (), False: pytest.mark.nightly}
    return [
        pytest.param(value, id=name, marks=marks[is_quick(name)])
        for name, value in values.items()
    ]


def in_turn(names: Iterable[str], turn: int) -> set[str]:
    """A third of the names, for tests that all of them would take too long in.

    Tests with other turns, in [0, 3), have other thirds: each name is in one of three
    tests, and each test has one of three names.
    """
    return set(list(names)[turn::TURNS])


def only(quick: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters, or tuples of them; those not among the quick ones wait."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=() if value in quick else pytest.mark.nightly,
        )
        for value in values
    ]
