"""Rules as trees: numbers, names and calls, with one text for each tree."""

import dataclasses
import math

MAX_DEPTH = 64  # levels of a tree: it is walked by recursion
MAX_NODES = 1000
LARGEST = 3.4028234e38  # of float32: a larger constant would be inf there

COMMUTATIVE = ("+", "*")
# How tightly an operator binds, as in Python; an atom binds tightest.
_LEVELS = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "^": 4}
_ATOM = 5


@dataclasses.dataclass(frozen=True)
class Number:
    """A constant: finite in float32, and not negative, which is a call of ``neg``."""

    value: float

    depth = 1
    nodes = 1

    def __post_init__(self):
        value = float(self.value)
        if math.copysign(1, value) < 0 or not value <= LARGEST:
            raise ValueError(f"a number must be in [0, {LARGEST}], got {self.value!r}")
        object.__setattr__(self, "value", value)

    def __str__(self) -> str:
        """The shortest decimals that are this number."""
        is_whole = self.value.is_integer() and self.value < 1e16
        return str(int(self.value)) if is_whole else repr(self.value)


@dataclasses.dataclass(frozen=True)
class Name:
    """An operand, such as ``g``."""

    name: str

    depth = 1
    nodes = 1

    def __str__(self) -> str:
        """The name."""
        return self.name


@dataclasses.dataclass(frozen=True)
class Call:
    """A function or an operator with its arguments.

    The operators are ``+ - * / ^`` and ``neg``. Those of ``+`` and ``*`` are put in one
    order, which changes no bit of a sum or product; nothing is re-associated.
    """

    function: str
    args: tuple["Rule", ...]
    depth: int = dataclasses.field(init=False, repr=False, compare=False)
    nodes: int = dataclasses.field(init=False, repr=False, compare=False)
    text: str = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        args = tuple(self.args)
        depth = 1 + max((arg.depth for arg in args), default=0)
        nodes = 1 + sum(arg.nodes for arg in args)
        if depth > MAX_DEPTH:
            raise ValueError(f"a rule may be {MAX_DEPTH} levels deep, not more")
        if nodes > MAX_NODES:
            raise ValueError(f"a rule may have {MAX_NODES} nodes, not more")
        if self.function in COMMUTATIVE:
            level = _LEVELS[self.function]
            # What needs no parentheses on the left alone goes there; then the shorter.
            args = tuple(
                sorted(args, key=lambda a: (_level(a) != level, a.nodes, str(a)))
            )
        for name, value in (("args", args), ("depth", depth), ("nodes", nodes)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "text", _print(self))

    def __str__(self) -> str:
        """The canonical text, which `parse` reads back as this tree."""
        return self.text


Rule = Number | Name | Call


def walk(rule: Rule):
    """Every node, each after its arguments."""
    if isinstance(rule, Call):
        for arg in rule.args:
            yield from walk(arg)
    yield rule


def _level(rule: Rule) -> int:
    return _LEVELS.get(rule.function, _ATOM) if isinstance(rule, Call) else _ATOM


def _inside(rule: Rule, level: int) -> str:
    """The text, in parentheses where it binds less than ``level``."""
    return str(rule) if _level(rule) >= level else f"({rule})"


def _print(call: Call) -> str:
    level = _level(call)
    if level == _ATOM:
        return f"{call.function}({', '.join(map(str, call.args))})"
    if call.function == "neg":
        return f"-{_inside(call.args[0], level)}"
    left, right = call.args
    if call.function == "^":  # groups to the right; its exponent may have a sign
        return f"{_inside(left, _ATOM)}^{_inside(right, _LEVELS['neg'])}"
    return f"{_inside(left, level)} {call.function} {_inside(right, level + 1)}"
