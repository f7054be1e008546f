"""The search itself: proposals, an archive that it goes on from, and the tiers."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common import fields, inputs
from experiments.common.errors import UserError
from experiments.common.json_files import Record
from experiments.common.measurements import Measurements
from experiments.common.types import Config
from experiments.rule_search import fitness
from experiments.rule_search.proposals import (
    Chance,
    Everything,
    Evolution,
    Given,
    Proposals,
    rows_of,
)
from experiments.runs import folders
from experiments.tasks import problems
from optax_heavytail import rules

ARCHIVE = "archive.jsonl"
_RULES = "a text file with a rule in each line"
ANCHORS = ("sgd", "corrected_momentum", "rmsprop", "adam", "powersign", "addsign")
_PATIENCE = 400  # proposals in a row without a new rule: there are hardly any more
_TRAININGS = (1, 2, 3)  # tiers
_IN_FLOAT64 = 64  # in the place of a tier
# What the archive has of everything, and of trainings.
_RECORD = {
    "tier": fields.integer(1, _IN_FLOAT64),
    "fingerprint": fields.text(),
    "refused": fields.text().or_none(),
}
_TRAINING = {
    "rule": fields.text(),
    "fitness": fields.number(-math.inf),
    "losses": fields.several(fields.number(0)),
    "rates": fields.several(fields.number(0, above=True)),
}


class Candidate(NamedTuple):
    """A rule by its behaviour, and one program of it."""

    word: str
    program: np.ndarray

    @property
    def text(self) -> str:
        """The canonical text."""
        return str(rules.decode(self.program))


class Trace(NamedTuple):
    """How one run of one method went."""

    method: str
    seed: int
    words: list[str]  # distinct rules in the order of their evaluation
    fitness: list[float]  # of each of them
    proposals: int


class Search:
    """Evaluates rules once each. What is in the archive is not evaluated again.

    All that is proposed follows from the seeds and from what the archive says, so that
    a search that was killed proposes the same rules again, and goes on.
    """

    def __init__(self, config: Config, workdir: Path):
        self.config, self.workdir = config, workdir
        for method in config.methods:  # a bad file of rules is known before the work
            _proposals(method, 0, config)
        folders.claim_same(workdir, config, "search")
        self.archive = Measurements(
            workdir / ARCHIVE,
            lambda record: (record["tier"], record["fingerprint"]),
            _check_record,
        )
        self._evaluators: dict[int, fitness.Evaluator] = {}
        self._words: dict[bytes, str | None] = {}
        self.texts: dict[str, Candidate] = {}  # by fingerprint

    def budget(self, tier: int) -> fitness.Budget:
        """What a rule of a tier is trained on."""
        names = {1: problems.FIRST, 2: problems.SECOND, 3: problems.HOLDOUT}[tier]
        given = self.config[f"tier{tier}"]
        low, high, number = given.rates
        rates = tuple(np.logspace(low, high, number).tolist())
        return fitness.Budget(names, given.steps, rates, tuple(range(given.seeds)))

    def words_of(self, programs: Sequence[np.ndarray]) -> list[str | None]:
        """The fingerprint of each; ``None`` for what is no rule."""
        unknown = {p.tobytes(): p for p in programs if p.tobytes() not in self._words}
        if unknown:
            found = rules.fingerprints(np.stack(list(unknown.values())))
            self._words |= dict(zip(unknown, found, strict=True))
        return [self._words[p.tobytes()] for p in programs]

    def evaluate(self, tier: int, candidates: Sequence[Candidate]) -> None:
        """Puts those into the archive that are not there."""
        new = [c for c in candidates if (tier, c.word) not in self.archive]
        if not new:
            return
        budget = self.budget(tier)
        if tier not in self._evaluators:
            self._evaluators[tier] = fitness.Evaluator(budget, self.config.chunk)
        started = time.perf_counter()
        outcomes = self._evaluators[tier]([c.program for c in new])
        seconds = (time.perf_counter() - started) / len(new)
        for candidate, outcome in zip(new, outcomes, strict=True):
            nodes = rules.decode(candidate.program).nodes
            verdict = fitness.judge(outcome, budget, nodes)
            self.archive.add(
                {
                    "tier": tier,
                    "fingerprint": candidate.word,
                    "rule": candidate.text,
                    "program": candidate.program.tolist(),
                    "nodes": nodes,
                    **verdict._asdict(),
                    "seconds": round(seconds, 4),
                }
            )

    def fitness(self, tier: int, word: str) -> float:
        """Of a rule that has been evaluated."""
        return self.archive[(tier, word)]["fitness"]

    def run(self, method: str, seed: int, number: int) -> Iterator[Trace]:
        """One run of a method, up to a number of distinct rules.

        Yields:
          The trace so far, after each chunk.
        """
        proposals = _proposals(method, seed, self.config)
        trace = Trace(method, seed, [], [], 0)
        seen: set[str] = set()
        waiting: list[Candidate] = []
        idle = 0
        while len(seen) < number and (idle < _PATIENCE or proposals.ends):
            programs = proposals.propose(min(self.config.chunk, number - len(seen)))
            if not programs:
                break
            trace = trace._replace(proposals=trace.proposals + len(programs))
            idle += len(programs)
            for program, word in zip(programs, self.words_of(programs), strict=True):
                if word is None:
                    proposals.hear(program, fitness.WORST)
                elif word in seen:
                    self._hear_known(proposals, program, word)
                else:
                    seen.add(word)
                    idle = 0
                    waiting.append(Candidate(word, program))
            if len(waiting) >= self.config.chunk:  # whole chunks: the rest would idle
                self._settle(waiting[: self.config.chunk], proposals, trace)
                del waiting[: self.config.chunk]
                yield trace
        self._settle(waiting, proposals, trace)
        yield trace

    def _hear_known(self, proposals, program, word):
        """One that still waits is not known yet, also where the archive has it.

        The archive may be from a search that was killed, which had heard it later.
        """
        if word in self.texts:
            proposals.hear(program, self.fitness(1, word))

    def _settle(self, waiting, proposals, trace):
        self.evaluate(1, waiting)
        for candidate in waiting:
            self.texts.setdefault(candidate.word, candidate)
            value = self.fitness(1, candidate.word)
            proposals.hear(candidate.program, value)
            trace.words.append(candidate.word)
            trace.fitness.append(value)

    def best(self, tier: int, words: Sequence[str], number: int) -> list[Candidate]:
        """The best of some rules that are none of those that were refused."""
        allowed = [w for w in words if self.archive[(tier, w)]["refused"] is None]
        allowed.sort(key=lambda word: (self.fitness(tier, word), word))
        return [self.texts[word] for word in allowed[:number]]

    def check_in_float64(self, candidate: Candidate) -> str | None:
        """Why the losses of the second tier are rounding; ``None`` if they are not."""
        if (_IN_FLOAT64, candidate.word) not in self.archive:
            record = self.archive[(2, candidate.word)]
            names = ("fitness", "losses", "rates", "refused")
            verdict = fitness.Verdict(*(record[name] for name in names))
            found = fitness.in_float64(candidate.text, verdict, self.budget(2))
            self.archive.add(
                {"tier": _IN_FLOAT64, "fingerprint": candidate.word, "refused": found}
            )
        return self.archive[(_IN_FLOAT64, candidate.word)]["refused"]

    def anchors(self) -> dict[str, Candidate]:
        """Known rules, to compare with."""
        found = {}
        for name in ANCHORS:
            text = rules.KNOWN[name].text
            # Also where the search is of shorter ones.
            slots = max(self.config.slots, rows_of(text))
            program = rules.encode(text, slots)
            (word,) = self.words_of([program])
            found[name] = Candidate(str(word), program)
            self.texts.setdefault(str(word), found[name])
        return found


def _proposals(method: str, seed: int, config: Config) -> Proposals:
    rng = np.random.default_rng([seed, len(method)])
    if method == "evolution":
        chosen = config.evolution
        return Evolution(rng, config.slots, chosen.population, chosen.sample)
    if method == "random":
        return Chance(rng, config.slots)
    if method == "enumerate":
        return Everything()
    return Given(_given(config.given), config.slots, config.given)


def _given(path: str) -> list[str]:
    """The rules of a file, without empty lines and those of a `#`."""
    where = f"config.given={path}"
    if not path:
        raise UserError(f"{where}: must name {_RULES}")
    with inputs.needed(where, _RULES):
        lines = inputs.read_text(inputs.local("config.given", path)).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _check_record(record: Record, where: str) -> None:
    fields.check(record, _RECORD, where)
    if record["tier"] in _TRAININGS:
        fields.check(record, _TRAINING, where)
