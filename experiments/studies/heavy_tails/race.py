"""Many optimizers on one workload, clean and corrupted, in two tracks.

*Tuned*: rate, and threshold where there is one, are chosen on the validation part under
the corruption itself. *Default*: they are those that were best on clean data, and all
else is the default: what happens to a run that was fine until its data were not. The
test part chooses nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.studies import study, training, tuning
from experiments.studies.heavy_tails.methods import BASELINE
from experiments.studies.study import Cell
from experiments.studies.training import Contestant, Curves, Point, Problem
from experiments.studies.tuning import Protocol, Tuned

CLEAN = "clean"
SEEDS = tuple(range(100, 120))
# 9 rates, a factor of 2 apart; or 3 rates and 3 thresholds, a factor of 4 apart.
PROTOCOL = Protocol(9, 2.0, tuning_seeds=(0, 1, 2, 3), fresh_seeds=SEEDS)


class Endpoint(NamedTuple):
    """The one comparison that a workload was made for, written down before it."""

    method: str
    condition: str
    track: str


@dataclasses.dataclass(frozen=True, eq=False)
class Race:
    """A workload; equal to itself alone, so that what is compiled can be kept."""

    name: str
    # (condition, part of the data) -> problem; those of one race differ in arrays alone
    problem: Callable[[str, str], Problem]
    steps: int
    conditions: tuple[str, ...]  # the first is clean
    contestants: Mapping[str, Contestant]
    endpoint: Endpoint
    margin: float  # a difference of the loss that is none
    protocol: Protocol = PROTOCOL
    seeds: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    baseline: str = BASELINE
    # where it is another one
    baselines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # (optimizer, problem) -> problem, where a method is a loss
    adapted: Callable[[str, Problem], Problem] = lambda name, problem: problem

    def baseline_in(self, condition: str) -> str:
        """The optimizer that all others of a condition are compared with."""
        return self.baselines.get(condition, self.baseline)


def cells(race: Race) -> list[Cell]:
    """Each optimizer in each condition."""
    about = {
        "steps": race.steps,
        "tuning_seeds": len(race.protocol.tuning_seeds),
    }
    return [
        Cell(
            {"workload": race.name, "condition": condition, "optimizer": name}
            | {"seeds": len(_seeds(race, condition))}
            | about,
            functools.partial(measure, race, name, condition),
        )
        for name in race.contestants
        for condition in race.conditions
    ]


def measure(race: Race, name: str, condition: str) -> dict[str, Any]:
    """The tuned track, and the default one where something is corrupted."""
    tuned = tune(race, name, condition)
    tracks = {"tuned": about(tuned) | at(race, name, condition, tuned.best)}
    clean = race.conditions[0]
    if condition != clean:
        tracks["default"] = at(race, name, condition, tune(race, name, clean).best)
    return tracks


def about(tuned: Tuned) -> dict[str, Any]:
    """What a search has found, as JSON."""
    threshold = tuned.best.threshold
    return {
        "rate": study.rounded([tuned.best.rate])[0],
        "threshold": threshold and study.rounded([threshold])[0],
        "is_inside": tuned.is_inside,
        "moves": tuned.moves,
        "tuning_losses": study.rounded(tuned.losses),
    }


@functools.cache
def tune(race: Race, name: str, condition: str) -> Tuned:
    """The best point in a condition, on the validation part."""
    run = _runner(race, name, condition, "validation")
    return tuning.tune(race.contestants[name], run, race.protocol)


def at(race: Race, name: str, condition: str, best: Point) -> dict[str, Any]:
    """What fresh seeds give at a point, on the test part."""
    run = _runner(race, name, condition, "test")
    curves = run([best], _seeds(race, condition))
    accuracies = curves.accuracies[0, :, -1]
    # A share of the variance may be anything below 1, and that of a lost run no number.
    accuracies = np.nan_to_num(accuracies, nan=-training.LOST).clip(-training.LOST)
    return {
        "losses": study.rounded(curves.losses[0, :, -1]),
        "accuracies": study.rounded(accuracies),
    }


def _seeds(race: Race, condition: str) -> Sequence[int]:
    return race.seeds.get(condition, race.protocol.fresh_seeds)


def _runner(race: Race, name: str, condition: str, part: str) -> training.Run:
    problem = race.adapted(name, race.problem(condition, part))
    run = training.runner(race.contestants[name], problem, _trainer(race, name))
    return in_groups(run, len(race.protocol.tuning_seeds))


def in_groups(run: training.Run, number: int) -> training.Run:
    """A point and so many seeds at a time: one program for every grid and its end.

    A run of these networks is shorter than the compilation of another program.
    """

    def grouped(points: Sequence[Point], seeds: Sequence[int]) -> Curves:
        groups = [seeds[i : i + number] for i in range(0, len(seeds), number)]
        lanes = [[run([point], group) for group in groups] for point in points]

        def joined(kind: Callable[[Curves], np.ndarray]) -> np.ndarray:
            rows = [np.concatenate([kind(x) for x in row], axis=1) for row in lanes]
            return np.concatenate(rows)

        losses = joined(lambda curves: curves.losses)
        accuracies = joined(lambda curves: curves.accuracies)
        return Curves(losses, accuracies, {})

    return grouped


@functools.cache
def _trainer(race: Race, name: str) -> training.Train:
    """Compiled once for all conditions and parts."""
    return training.trainer(
        race.contestants[name], race.problem(race.conditions[0], "test")
    )
