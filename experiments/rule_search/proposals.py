"""Where candidates come from: evolution, chance, all of them, or a list."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from experiments.common.errors import UserError
from optax_heavytail import rules

_OPERANDS = len(rules.PROGRAM_OPERANDS)
_FUNCTIONS = (len(rules.PROGRAM_UNARY), len(rules.PROGRAM_BINARY))
WARM_START = (
    "g",
    "m",
    "rmsprop",
    "adam",
    "g * exp(sign(g) * sign(m))",
    "(1 + sign(g) * sign(m)) * g",
)
_SLOT = np.arange(64)[:, None]
_DEAD = (
    0.2  # how often a row is changed that the update does not use, beside a live one
)


class Proposals(Protocol):
    """Makes candidates, and hears how good they were."""

    ends: bool  # whether there are so many and no more

    def propose(self, number: int) -> list[np.ndarray]:
        """So many programs; fewer, or none, when there are no more."""
        ...

    def hear(self, program: np.ndarray, fitness: float) -> None:
        """Takes the fitness of a program, in the order of the proposals."""
        ...


def random_program(rng: np.random.Generator, slots: int) -> np.ndarray:
    """Every field of every row uniform among what it may be."""
    return np.array([_random_row(rng, i) for i in range(slots)], np.int32)


def _limits(slot: int) -> tuple[int, int, int, int, int]:
    known = _OPERANDS + slot
    unary, binary = _FUNCTIONS
    return known, known, unary, unary, binary


def _random_row(rng, slot):
    return [int(rng.integers(limit)) for limit in _limits(slot)]


class Chance:
    """The control: programs that nobody chooses."""

    ends = False

    def __init__(self, rng: np.random.Generator, slots: int):
        self._rng, self._slots = rng, slots

    def propose(self, number: int) -> list[np.ndarray]:
        """Random programs."""
        return [random_program(self._rng, self._slots) for _ in range(number)]

    def hear(self, program: np.ndarray, fitness: float) -> None:
        """Nothing is learnt."""


class Evolution:
    """Regularised evolution: the best of a sample has a child, and the oldest dies.

    After Real et al. 2019, arXiv:1802.01548, algorithm 1. The population starts with
    known rules, and chance fills it.
    """

    ends = False

    def __init__(
        self, rng: np.random.Generator, slots: int, population: int, sample: int
    ):
        self._rng, self._slots = rng, slots
        self._sample = sample
        self._alive: deque[tuple[np.ndarray, float]] = deque(maxlen=population)
        self._first = [
            rules.encode(text, slots) for text in WARM_START if rows_of(text) <= slots
        ]

    def propose(self, number: int) -> list[np.ndarray]:
        """Children, or the first programs of the population."""
        return [self._next() for _ in range(number)]

    def _next(self) -> np.ndarray:
        if self._first:
            return self._first.pop(0)
        if len(self._alive) < (self._alive.maxlen or 0):
            return random_program(self._rng, self._slots)
        places = self._rng.integers(len(self._alive), size=self._sample)
        parent, _ = min((self._alive[i] for i in places), key=lambda pair: pair[1])
        return mutate(self._rng, parent)

    def hear(self, program: np.ndarray, fitness: float) -> None:
        """A newborn; where there is no room the oldest dies, however good it is."""
        self._alive.append((program, fitness))


def rows_of(text: str) -> int:
    """How many rows the program of a rule takes."""
    slots = 1
    while True:
        try:
            rules.encode(text, slots)
        except ValueError:
            slots += 1
        else:
            return slots


def mutate(rng: np.random.Generator, program: np.ndarray) -> np.ndarray:
    """A child that differs in a field, in the order of operands, or by a row."""
    child = program.copy()
    kind = rng.choice(4, p=[0.65, 0.05, 0.18, 0.12])
    slot = _some_row(rng, child)
    if kind == 0:
        field = int(rng.integers(5))
        child[slot, field] = rng.integers(_limits(slot)[field])
    elif kind == 1:
        child[slot] = child[slot, [1, 0, 3, 2, 4]]
    elif kind == 2:
        child[slot] = _random_row(rng, slot)
    else:
        child = _shifted(rng, child)
    return child


def _some_row(rng, program):
    weights = np.where(live_rows(program), 1.0, _DEAD)
    return int(rng.choice(len(program), p=weights / weights.sum()))


def live_rows(program: np.ndarray) -> np.ndarray:
    """Which rows the update depends on."""
    live = np.zeros(len(program), bool)
    live[-1] = True
    left = rules.PROGRAM_BINARY.index("left")
    for i in range(len(program) - 1, -1, -1):
        op1, op2, _, _, b = program[i]
        for op, is_used in ((op1, True), (op2, b != left)):
            if live[i] and is_used and op >= _OPERANDS:
                live[op - _OPERANDS] = True
    return live


def _shifted(rng, program):
    """All rows move up, and a new one goes on from the update; or down, without it."""
    by = int(rng.choice([-1, 1]))
    moved = np.roll(program, by, axis=0)
    refers = moved[:, :2] >= _OPERANDS
    # What a row that is gone had computed: drawn anew below.
    moved[:, :2] = np.where(refers, moved[:, :2] + by, moved[:, :2])
    lost = refers & (moved[:, :2] < _OPERANDS)
    new = 0 if by == 1 else len(program) - 1
    moved[new] = _random_row(rng, new)
    lost[new] = False
    if by == -1 and new:
        moved[new, 0] = _OPERANDS + new - 1
    for i, k in np.argwhere(lost | (moved[:, :2] >= _OPERANDS + _SLOT[: len(moved)])):
        moved[i, k] = rng.integers(_OPERANDS + i)
    return moved


class Everything:
    """All programs of one row, each once."""

    ends = True

    def __init__(self):
        self._left: Iterator[tuple[int, ...]] = np.ndindex(*_limits(0))

    def propose(self, number: int) -> list[np.ndarray]:
        """The next ones."""
        found = []
        for row in self._left:
            found.append(np.array([row], np.int32))
            if len(found) == number:
                break
        return found

    def hear(self, program: np.ndarray, fitness: float) -> None:
        """Nothing is learnt."""


class Given:
    """A list of rules, to rank one's own."""

    ends = True

    def __init__(self, texts: Iterable[str], slots: int, where: str):
        self._left = [_encoded(text, slots, where) for text in texts]
        if not self._left:
            raise UserError(f"{where}: has no rule")

    def propose(self, number: int) -> list[np.ndarray]:
        """The next ones."""
        found, self._left = self._left[:number], self._left[number:]
        return found

    def hear(self, program: np.ndarray, fitness: float) -> None:
        """Nothing is learnt."""


def _encoded(text, slots, where):
    try:
        return rules.encode(text, slots)
    except ValueError as error:
        raise UserError(f"{where}: {text!r}: {error}") from None
