"""Which parameters of a test CI runs, and which wait for the nightly."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest


def in_time(values: Mapping[str, Any], is_quick: Callable[[str], bool]) -> list[Any]:
    """Parameters by name, the others than quick ones with the mark ``nightly``."""
    marks = {True: (), False: pytest.mark.nightly}
    return [
        pytest.param(value, id=name, marks=marks[is_quick(name)])
        for name, value in values.items()
    ]
