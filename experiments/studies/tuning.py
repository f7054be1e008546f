"""Equal tuning: grids of one size for every optimizer, and fresh seeds at the best."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.studies import study, training
from experiments.studies.training import Contestant, Point, Problem, Run

MOVES = 4  # of a grid whose best point is on its edge


class Protocol(NamedTuple):
    """How thoroughly optimizers are tuned and compared."""

    points: int  # of every grid: rates alone, or as many rates as thresholds
    rate_factor: float  # from one rate to the next where there is no threshold
    tuning_seeds: tuple[int, ...]
    fresh_seeds: tuple[int, ...]


class Tuned(NamedTuple):
    """What a search has found."""

    rates: tuple[float, ...]
    thresholds: tuple[float, ...]
    losses: np.ndarray  # of all points, the mean over the seeds
    best: Point
    is_inside: bool  # of the grid
    moves: int = 0  # of the grid, until its best point was inside


def around(middle: float, number: int, factor: float) -> tuple[float, ...]:
    """An odd number of values, each ``factor`` times the one before."""
    half = number // 2
    return tuple(middle * factor**i for i in range(-half, half + 1))


def grid(
    contestant: Contestant, protocol: Protocol
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rates and thresholds around the middle: equally many points for all."""
    factor = protocol.rate_factor
    if contestant.threshold is None:
        return around(contestant.rate, protocol.points, factor), ()
    side = round(protocol.points**0.5)
    # As wide as the others' line where that is longer than the side by the square root.
    rates = around(contestant.rate, side, factor**3 if side > 3 else factor**2)
    return rates, around(contestant.threshold, side, 4.0)


def points(rates: Sequence[float], thresholds: Sequence[float]) -> list[Point]:
    """All points of a grid."""
    return [Point(*p) for p in itertools.product(rates, thresholds or (None,))]


def tune(contestant: Contestant, run: Run, protocol: Protocol) -> Tuned:
    """Finds the best point of the grid, which is moved if that is on an edge."""
    known: dict[str, float] = {}
    tuned, moved = _search(contestant, run, protocol, known)
    moves = 0
    while not tuned.is_inside and moves < MOVES:
        tuned, moved = _search(moved, run, protocol, known)
        moves += 1
    return tuned._replace(moves=moves)


def _search(
    contestant: Contestant, run: Run, protocol: Protocol, known: dict[str, float]
) -> tuple[Tuned, Contestant]:
    """One grid, whose new points are added to ``known``, and where the next one is."""
    rates, thresholds = grid(contestant, protocol)
    tried = points(rates, thresholds)
    new = [point for point in tried if _name(point) not in known]
    if new:
        last = run(new, protocol.tuning_seeds).losses[..., -1].mean(axis=1)
        known |= zip(map(_name, new), last, strict=True)
    losses = np.array([known[_name(point)] for point in tried])
    best = tried[int(np.argmin(losses))]
    moved = contestant._replace(
        rate=_moved(best.rate, rates),
        threshold=best.threshold and _moved(best.threshold, thresholds),
    )
    return Tuned(rates, thresholds, losses, best, moved == contestant), moved


def _name(point: Point) -> str:
    """The same for points that a moved grid has again, but for rounding."""
    return ", ".join(f"{x:.6g}" for x in point if x is not None)


def _moved(best: float, values: Sequence[float]) -> float:
    """The middle of a grid that has ``best`` inside."""
    return best if best in (values[0], values[-1]) else values[len(values) // 2]


def tune_and_run(
    contestant: Contestant, problem: Problem, protocol: Protocol
) -> dict[str, Any]:
    """The best point of the grid, and what fresh seeds give there, as JSON."""
    run = training.runner(contestant, problem)
    tuned = tune(contestant, run, protocol)
    best = tuned.best
    curves = run([best], protocol.fresh_seeds)
    losses, accuracies = curves.losses[0], curves.accuracies[0]
    return {
        "rates": study.rounded(tuned.rates),
        "thresholds": study.rounded(tuned.thresholds),
        "tuning_losses": study.rounded(tuned.losses),
        "rate": study.rounded([best.rate])[0],
        "threshold": best.threshold and study.rounded([best.threshold])[0],
        "is_inside": tuned.is_inside,
        "moves": tuned.moves,
        "losses": study.rounded(losses[:, -1]),
        "accuracies": study.rounded(accuracies[:, -1]),
        "loss_curves": [study.rounded(curve) for curve in losses],
        "accuracy_curves": [study.rounded(curve) for curve in accuracies],
        "seen": {k: study.rounded(v[0].mean(axis=0)) for k, v in curves.seen.items()},
        "evaluated_at": training.evaluation_steps(problem).tolist(),
    }
