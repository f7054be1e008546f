"""The suite as one study: its workloads, their blocks, and what they say together."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import markdown
from experiments.studies.heavy_tails import (
    corrupted,
    flights,
    forces,
    language,
    large_batches,
    methods,
    noise,
    policy,
    race,
    regression,
    shown,
    variational,
    verdicts,
    workers,
)
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.study import Cell, Record, Study


class Workload(NamedTuple):
    """One workload's part of the page."""

    cells: Callable[[Path], list[Cell]]  # folder of data sets -> all of them
    tables: Callable[[Sequence[Record]], dict[str, str]]
    picture: Callable[[Sequence[Record]], bytes]
    endpoints: Callable[[Sequence[Record]], list[list[Any]]]
    # column of the overview -> optimizer -> verdicts, one of each comparison
    words: Callable[[Sequence[Record]], dict[str, dict[str, list[str]]]]


def block(*names: str) -> str:
    """The name of a block, of letters, digits and underscores."""
    return re.sub(r"\W+", "_", "_".join(names)).strip("_").lower()


def _of_race(
    made: Race,
    looks: Mapping[str, Look],
    unit: str,
    endpoints: Mapping[str, Endpoint] | None = None,
) -> Workload:
    """A race; ``endpoints`` by workload, where its conditions are several workloads."""
    ends = endpoints or {made.name: made.endpoint}

    def tables(records: Sequence[Record]) -> dict[str, str]:
        found, own = shown.results(records, made), {}
        if made.conditions[0] == race.CLEAN and len(made.conditions) > 1:
            own[block(made.name, "own")] = shown.against_clean(found, made)
        return {
            block(made.name, "noise"): noise.table(records, made.name),
            **own,
            **{
                block(made.name, condition): shown.table(found, made, condition)
                for condition in made.conditions
            },
        }

    def words(records: Sequence[Record]) -> dict[str, dict[str, list[str]]]:
        columns: dict[str, dict[str, list[str]]] = {}
        found = shown.results(records, made)
        for condition in made.conditions:
            for place, verdict in shown.judged(found, made, condition).items():
                column = columns.setdefault(f"{made.name}, {place.track}", {})
                column.setdefault(place.method, []).append(verdict.word)
        return columns

    def endpoint_rows(records: Sequence[Record]) -> list[list[Any]]:
        found = shown.results(records, made)
        return [shown.endpoint(found, made, name, end) for name, end in ends.items()]

    return Workload(
        lambda data: noise.cells(made.name, looks) + race.cells(made),
        tables,
        lambda records: shown.picture(shown.results(records, made), made, unit),
        endpoint_rows,
        words,
    )


def _of_folds() -> Workload:
    def tables(records: Sequence[Record]) -> dict[str, str]:
        looked = noise.table(records, regression.NAME)
        return {"w5_noise": looked} | regression.made(records)

    def words(records: Sequence[Record]) -> dict[str, dict[str, list[str]]]:
        column: dict[str, list[str]] = {}
        for found in regression.words(records).values():
            for name, word in found.items():
                column.setdefault(name, []).append(word)
        return {f"{regression.NAME}, tuned": column}

    return Workload(
        lambda data: (
            noise.cells(regression.NAME, regression.LOOKS) + regression.cells()
        ),
        tables,
        regression.picture,
        lambda records: [regression.endpoint(records)],
        words,
    )


def _of_batches() -> Workload:
    races = [large_batches.of_size(size, Path()) for size in large_batches.RATES]

    def tables(records: Sequence[Record]) -> dict[str, str]:
        looked = noise.table(records, large_batches.NAME)
        found = [(made, shown.results(records, made)) for made in races]
        return {
            block(large_batches.NAME, "noise"): looked,
            **large_batches.tables(records),
            **{
                block(made.name, race.CLEAN): shown.table(results, made, race.CLEAN)
                for made, results in found
            },
        }

    def words(records: Sequence[Record]) -> dict[str, dict[str, list[str]]]:
        del records  # methods of its own, as W3
        return {}

    def endpoint_rows(records: Sequence[Record]) -> list[list[Any]]:
        return [
            shown.endpoint(shown.results(records, made), made, made.name, made.endpoint)
            for made in races
        ]

    return Workload(
        large_batches.cells, tables, large_batches.picture, endpoint_rows, words
    )


WORKLOADS: dict[str, Workload] = {
    "digits": _of_race(
        corrupted.RACE,
        corrupted.LOOKS,
        "test loss, nats",
        {
            "W1": Endpoint("guarded(adamw)", race.CLEAN, "tuned"),
            "W2": corrupted.RACE.endpoint,
        },
    ),
    "workers": _of_race(workers.RACE, workers.LOOKS, "test loss, nats"),
    "regression": _of_folds(),
    "flights": _of_race(flights.RACE, flights.LOOKS, "test error over the variance"),
    "variational": _of_race(
        variational.RACE, variational.LOOKS, "negative bound, nats"
    ),
    "lstm": _of_race(language.RACES["LSTM"], language.LOOKS["LSTM"], "test loss, nats"),
    "gpt": _of_race(language.RACES["GPT"], language.LOOKS["GPT"], "test loss, nats"),
    "forces": _of_race(forces.RACE, forces.LOOKS, "error over the variance"),
    **{
        f"policy_{epochs}": _of_race(
            policy.RACES[epochs], policy.LOOKS[epochs], "missing share of an episode"
        )
        for epochs in policy.EPOCHS
    },
    "batches": _of_batches(),  # last, as it needs data that may not be there
}


def cells(scale: str, data: Path) -> list[Cell]:
    """Those of all workloads; the same at each scale."""
    del scale
    return [cell for workload in WORKLOADS.values() for cell in workload.cells(data)]


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    made: dict[str, str] = {}
    ends: list[list[Any]] = []
    columns: dict[str, dict[str, list[str]]] = {}
    for workload in WORKLOADS.values():
        made |= workload.tables(records)
        ends += workload.endpoints(records)
        columns |= workload.words(records)
    headings = ["workload", "primary endpoint", "its loss", "the baseline's"]
    headings += ["minus the baseline's", "verdict"]
    made["endpoints"] = markdown.table(headings, ends)
    for track in shown.TRACKS:
        chosen = {
            name.removesuffix(f", {track}"): column
            for name, column in columns.items()
            if name.endswith(f", {track}") and not name.startswith("W3")
        }
        made[f"overview_{track}"] = _overview(chosen)
    return made


def _overview(columns: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """How often each optimizer won and lost, by workload."""
    names = [name for name in methods.NAMES if name != methods.BASELINE]
    rows = [
        [name, *(_counted(column.get(name, ())) for column in columns.values())]
        for name in names
    ]
    return markdown.table(["optimizer", *columns], rows)


def _counted(words: Sequence[str]) -> str:
    order = (verdicts.WIN, verdicts.LEVEL, verdicts.OPEN, verdicts.LOSS)
    order += (verdicts.BOTH_LOST,)
    counts = Counter(words)
    said = [f"{counts[word]} {word}" for word in order if counts[word]]
    return ", ".join(said) or verdicts.NOT_TESTED


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figures of the page."""
    return {
        f"heavy_tails_{name}.png": workload.picture(records)
        for name, workload in WORKLOADS.items()
    }


STUDY = Study(cells, tables, pictures)
