"""W5: regression on targets with heavy tails, ten folds."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.common import markdown
from experiments.reporting import figures
from experiments.studies import comparison, study, training, tuning
from experiments.studies.heavy_tails import folds, methods, race, tables, verdicts
from experiments.studies.heavy_tails.folds import Setup, Table
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.verdicts import Pair, Verdict
from experiments.studies.study import Cell, Record
from experiments.studies.training import Contestant, Curves, Point, Problem
from experiments.studies.tuning import Protocol

NAME = "W5"
HUBER = "huber_loss(tuned), adamw"
METHODS = tuple(
    name
    for name in methods.CLIPS
    if name not in ("clip_by_zscore, adamw", "stable_adamw")
)
PROTOCOL = Protocol(9, 2.0, folds.SEEDS, folds.SEEDS)
RATE = 0.008
MARGIN = 0.01  # of the baseline's loss


class Dataset(NamedTuple):
    """A table, and how it is learnt."""

    load: Callable[[], Table]
    setup: Setup


DATASETS = {
    "votes": Dataset(lambda: tables.over(np.std, tables.movies()), Setup(400, 64)),
    "expenses": Dataset(lambda: tables.over(np.std, tables.expenses()), Setup(300, 32)),
    "votes, Poisson": Dataset(
        lambda: tables.over(np.mean, tables.movies()),
        Setup(400, 64, is_poisson=True),
    ),
}
ENDPOINT = ("votes", "acclip, normalize")


def contestants(dataset: str) -> dict[str, Contestant]:
    """Huber's loss takes the place of a clip where the loss is the squared one."""
    found = methods.contestants(RATE, METHODS)
    if not DATASETS[dataset].setup.is_poisson:
        found[HUBER] = Contestant(optax.adamw, RATE, 1.0)
    return found


def cells() -> list[Cell]:
    """Every optimizer on every table."""
    return [
        Cell(
            {"workload": NAME, "dataset": dataset, "optimizer": name}
            | DATASETS[dataset].setup._asdict(),
            functools.partial(measure, dataset, name),
        )
        for dataset in DATASETS
        for name in contestants(dataset)
    ]


def measure(dataset: str, name: str) -> dict[str, Any]:
    """Test losses of the folds, each at the point that its validation part chose."""
    contestant, seen = contestants(dataset)[name], {}
    run = _huber(dataset) if name == HUBER else _squared(dataset, contestant)

    def validation(points: Sequence[Point], seeds: Sequence[int]) -> Curves:
        curves = run(points, seeds)
        seen.update(zip(map(_key, points), curves.losses, strict=True))
        return curves._replace(losses=curves.losses[..., 0])

    tuned = tuning.tune(contestant, validation, PROTOCOL)
    grid = tuning.points(tuned.rates, tuned.thresholds)
    losses = np.stack([seen[_key(point)] for point in grid])
    found = folds.chosen(Curves(losses, losses, {}))
    return {
        "rates": study.rounded([grid[i].rate for i in found["best"]]),
        "thresholds": [grid[i].threshold for i in found["best"]],
        "rate": study.rounded([tuned.best.rate])[0],
        "threshold": tuned.best.threshold,
        "is_inside": tuned.is_inside,
        "moves": tuned.moves,
        **{kind: study.rounded(found[kind]) for kind in folds.KINDS},
    }


def _key(point: Point) -> str:
    return ", ".join(f"{x:.6g}" for x in point if x is not None)


def _squared(dataset: str, contestant: Contestant) -> training.Run:
    load, setup = DATASETS[dataset]
    run = training.runner(contestant, folds.problem(load(), setup))
    return race.in_groups(run, len(folds.SEEDS))


def _huber(dataset: str) -> training.Run:
    """The threshold is of the loss: an array of the batches, so it is run in turn."""
    load, setup = DATASETS[dataset]
    table, plain = load(), Contestant(optax.adamw, RATE)
    train = training.trainer(plain, folds.problem(table, setup))

    def run(points: Sequence[Point], seeds: Sequence[int]) -> Curves:
        found = []
        for point in points:
            problem = folds.problem(table, setup, point.threshold)
            at = training.runner(plain, problem, train)
            found.append(at([Point(point.rate, None)], seeds).losses[0])
        return Curves(np.stack(found), np.stack(found), {})

    return run


def _problem(dataset: str) -> Problem:
    return folds.problem(DATASETS[dataset].load(), DATASETS[dataset].setup)


LOOKS = {
    name: Look(functools.partial(_problem, name), RATE, dataset.setup.steps // 2)
    for name, dataset in DATASETS.items()
}


def _results(records: Sequence[Record], dataset: str) -> dict[str, dict[str, Any]]:
    return {
        record["settings"]["optimizer"]: record["result"]
        for record in records
        if record["settings"]["workload"] == NAME
        and record["settings"].get("dataset") == dataset
        and "optimizer" in record["settings"]
    }


def _judged(results: dict[str, Any], kind: str) -> dict[str, Verdict]:
    base = np.array(results[methods.BASELINE][kind])
    pairs = {
        name: Pair(np.array(result[kind]), base)
        for name, result in results.items()
        if name != methods.BASELINE
    }
    margin = MARGIN * abs(base.mean())
    return dict(zip(pairs, verdicts.judge(list(pairs.values()), margin), strict=True))


def made(records: Sequence[Record]) -> dict[str, str]:
    """A block for each table of numbers."""
    return {
        f"w5_{dataset.replace(', ', '_').lower()}": _table(_results(records, dataset))
        for dataset in DATASETS
    }


def _table(results: dict[str, Any]) -> str:
    plain, refitted = _judged(results, "test"), _judged(results, "refitted")
    rows = []
    for name, result in results.items():
        row = [
            comparison.named(name, result),
            f"{result['rate']:.2g}",
            "" if result["threshold"] is None else f"{result['threshold']:.2g}",
            result["moves"],
        ]
        for kind, words in (("test", plain), ("refitted", refitted)):
            verdict = words.get(name, Verdict("", "baseline"))
            losses = np.array(result[kind])
            lost = comparison.lost(losses)
            row += [lost or f"{losses.mean():.4f}", verdict.difference, verdict.word]
        rows.append([*row, f"{np.median(result['ratio']):.2f}"])
    headings = ["optimizer", "rate", "threshold", "moves"]
    for kind in ("test loss", "refitted"):
        headings += [kind, "minus the baseline's", "verdict"]
    return markdown.table([*headings, "factor"], rows)


def endpoint(records: Sequence[Record]) -> list[Any]:
    """The row of the table of primary endpoints."""
    dataset, method = ENDPOINT
    results = _results(records, dataset)
    verdict = _judged(results, "test")[method]
    means = [
        f"{np.mean(results[name]['test']):.4f}" for name in (method, methods.BASELINE)
    ]
    what = f"{method} against {methods.BASELINE}: {dataset}, tuned"
    return [NAME, what, *means, verdict.difference, verdict.word]


def words(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Verdicts by column of the overview and optimizer."""
    return {
        f"W5 {dataset}": {
            name: verdict.word
            for name, verdict in _judged(_results(records, dataset), "test").items()
        }
        for dataset in DATASETS
    }


def picture(records: Sequence[Record]) -> bytes:
    """Each fold's loss over the baseline's: a panel for each table."""
    names = list(contestants("votes"))
    figure = Figure(figsize=(11.5, 4.9), dpi=110, facecolor="white")
    panels = figure.subplots(1, len(DATASETS), sharey=True)
    for axes, dataset in zip(panels, DATASETS, strict=True):
        results = _results(records, dataset)
        base = np.array(results[methods.BASELINE]["test"])
        for row, name in enumerate(names):
            if name not in results:
                continue
            for i, kind in enumerate(("test", "refitted")):
                apart = np.array(results[name][kind]) - base
                apart = np.clip(apart / abs(base.mean()), -0.25, 0.25)
                y = np.full(len(apart), row + (i - 0.5) * 0.36)
                label = ("as trained", "one scalar refitted")[i] if not row else None
                axes.plot(
                    apart, y, ".", ms=5, alpha=0.7, color=figures.color(i), label=label
                )
        axes.axvline(0, color=figures.MUTED, linewidth=1.0)
        figures.style(axes, "minus the baseline's as trained, over its mean")
        axes.set_title(dataset, loc="left", color=figures.INK, fontsize=10)
        axes.grid(axis="x", color=figures.GRID, linewidth=0.8)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    figures.legend(panels[-1], loc="center left", bbox_to_anchor=(1, 0.5))
    return figures.png(figure)
