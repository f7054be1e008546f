"""What the fields of a config may be, declared as tables: name -> `Field`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common.errors import UserError
from experiments.common.types import Config

LARGEST = 2**31 - 1  # of an integer that JAX counts with
LARGEST_SEED = 2**32 - 1


class Field(NamedTuple):
    """What one field may be."""

    allowed: str  # in words, after "must be"
    accepts: Callable[[Any], bool]
    may_miss: bool = False

    def or_missing(self) -> "Field":
        """The same of a field that need not be there."""
        return self._replace(may_miss=True)

    def or_none(self) -> "Field":
        """The same of a field that may be ``None``."""
        return self._replace(
            allowed=f"{self.allowed}, or None",
            accepts=lambda value: value is None or self.accepts(value),
        )

    def or_text(self, word: str) -> "Field":
        """The same of a field that may be a word."""
        return self._replace(
            allowed=f"{self.allowed}, or {word}",
            accepts=lambda value: value == word or self.accepts(value),
        )


def integer(low: int, high: int = LARGEST) -> Field:
    """An integer in [low, high]; no bool is one."""

    def accepts(value: Any) -> bool:
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        return bool(is_integer and low <= value <= high)

    return Field(f"an integer in [{low}, {high}]", accepts)


def number(
    low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Field:
    """A finite number in [low, high]; ``above`` and ``below`` leave the ends out."""
    ends = f"{'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    least = f"above {low:g}" if above else f"{low:g} or more"
    allowed = f", in {ends}" if math.isfinite(high) else f", {least}"

    def accepts(value: Any) -> bool:
        is_number = is_real(value) and math.isfinite(value) and low <= value <= high
        return is_number and not ((above and value == low) or (below and value == high))

    if low == -math.inf and high == math.inf:
        allowed = ""
    return Field(f"a finite number{allowed}", accepts)


def is_real(value: Any) -> bool:
    """Whether it is a number, which no bool is."""
    kinds = int | float | np.integer | np.floating
    return isinstance(value, kinds) and not isinstance(value, bool)


def flag() -> Field:
    """A bool."""
    return Field("True or False", lambda value: isinstance(value, bool))


def text() -> Field:
    """Any text."""
    return Field("text", lambda value: isinstance(value, str))


def choice(*names: str) -> Field:
    """One of several texts."""
    return Field(
        f"one of {', '.join(names)}",
        lambda value: isinstance(value, str) and value in names,
    )


def several(item: Field, least: int = 0) -> Field:
    """A tuple or list of ``least`` items or more."""

    def accepts(value: Any) -> bool:
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
        return is_sequence and len(value) >= least and all(map(item.accepts, value))

    return Field(f"{least} or more items, each {item.allowed}", accepts)


def each_once(item: Field) -> Field:
    """A tuple or list of one or more items, none of them twice."""
    items = several(item, least=1)
    return Field(
        f"1 or more items, none twice, each {item.allowed}",
        lambda value: items.accepts(value) and len(set(value)) == len(value),
    )


def mapping() -> Field:
    """Names with values."""
    return Field("names with values", lambda value: hasattr(value, "items"))


def check(config: Config, fields: Mapping[str, Field], where: str = "config") -> None:
    """Refuses the first field that is not what its table says.

    Args:
      config: what is checked.
      fields: by their names, with dots between those of nested fields.
      where: what comes before the names in the message.

    Raises:
      UserError: naming the field, its value and what is allowed.
    """
    for name, field in fields.items():
        value, is_there = _find(config, name.split("."))
        if is_there and field.accepts(value):
            continue
        if is_there:
            is_word = isinstance(value, str) and (not value or value.isidentifier())
            shown = value if is_word else repr(value)
            raise UserError(f"{where}.{name}={shown:.60}: must be {field.allowed}")
        if not field.may_miss:
            raise UserError(f"{where}.{name}: is missing; must be {field.allowed}")


def _find(config: Any, names: Sequence[str]) -> tuple[Any, bool]:
    for name in names:
        if not hasattr(config, "items") or name not in config:
            return None, False
        config = config[name]
    return config, True
