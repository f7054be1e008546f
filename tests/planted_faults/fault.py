"""What is broken, and where it must be noticed."""

from typing import NamedTuple


class Fault(NamedTuple):
    name: str
    file: str  # from the root
    old: str
    new: str
    tests: tuple[str, ...]  # arguments of pytest
