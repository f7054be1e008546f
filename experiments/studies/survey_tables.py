"""What the page of the survey's study shows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.reporting import figures
from experiments.studies import comparison, intervals, training
from experiments.studies.intervals import Difference
from experiments.studies.study import Record

# Ends of the first of 5 cycles, of the third of 4 growing ones, and of all.
LOOKS = (120, 280, 600)
RATE_DECAYS = "decaying rate"  # a use, and not a growing batch
HEADER = ["labels", "optimizer", "schedule"]
LINES = (
    ("cosine", RATE_DECAYS),
    ("cosine", "growing batch"),
    ("5 cycles", "last"),
    ("5 cycles", "ensemble"),
)

Result = dict[str, Any]
Uses = dict[str, Result]  # of one schedule, by what is done with it


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    signs = {
        f"{block}_{condition}": _signs(records, condition, use)
        for block, use in (("signs", RATE_DECAYS), ("larger", "larger batch"))
        for condition in _values(records, "condition")
    }
    return {
        "restarts": _restarts(records),
        "halfway": _halfway(records),
        "ensembles": _ensembles(records),
        "growing": _growing(records),
        **signs,
    }


def _values(records: Sequence[Record], key: str) -> list[str]:
    """What was measured in a setting, in the order of the records."""
    return list(dict.fromkeys(record["settings"][key] for record in records))


def _select(records: Sequence[Record], **wanted: str) -> list[Record]:
    return [
        record
        for record in records
        if all(record["settings"][key] == value for key, value in wanted.items())
    ]


def _baselines(
    records: Sequence[Record],
) -> Iterator[tuple[list[str], dict[str, Uses]]]:
    """First columns, and results by schedule and use, of each condition's baselines."""
    for condition in _values(records, "condition"):
        for name in comparison.BASELINES:
            schedules: dict[str, Uses] = {}
            for record in _select(records, condition=condition, optimizer=name):
                settings = record["settings"]
                uses = schedules.setdefault(settings["schedule"], {})
                uses[settings["use"]] = record["result"]
            yield [condition, name], schedules


def _has_cycles(uses: Uses) -> bool:
    return "ensemble" in uses


def _losses(result: Result) -> np.ndarray:
    return np.array(result["losses"])


def _minus(result: Result, other: Result) -> Difference | str:
    """The paired difference of losses."""
    return comparison.difference(_losses(result), _losses(other))


def _restarts(records: Sequence[Record]) -> str:
    """Losses on the way, of one cosine and of cycles."""
    rows = []
    for first, schedules in _baselines(records):
        last = {
            schedule: uses["last" if _has_cycles(uses) else RATE_DECAYS]
            for schedule, uses in schedules.items()
        }
        for schedule, result in last.items():
            places = [result["evaluated_at"].index(step) for step in LOOKS]
            curves = np.array(result["loss_curves"])
            losses = [comparison.spread(curves[:, place]) for place in places]
            difference = "" if schedule == "cosine" else _minus(result, last["cosine"])
            name = comparison.named(schedule, result)
            rows.append([*first, name, *losses, difference])
    header = [f"after {step}" for step in LOOKS]
    return intervals.table([*HEADER, *header, "last, minus cosine's"], rows)


def _halfway(records: Sequence[Record]) -> str:
    """The third end of growing cycles, against cosines that end there and later."""
    rows = []
    for first, runs in _baselines(records):
        cycles, cosine = (
            runs["4 growing cycles"]["last"],
            runs["cosine"]["short"],
        )
        place = cycles["evaluated_at"].index(cosine["updates"])
        losses = [np.array(cycles["loss_curves"])[:, place], _losses(cosine)]
        spreads = [comparison.spread(numbers) for numbers in losses]
        whole = comparison.difference(losses[0], _losses(runs["cosine"][RATE_DECAYS]))
        rows.append(
            [*first, *spreads, comparison.difference(losses[0], losses[1]), whole]
        )
    header = ["after three growing cycles", "after a cosine as long", "difference"]
    header.append("minus the whole cosine's")
    return intervals.table([*HEADER[:2], *header], rows)


def _ensembles(records: Sequence[Record]) -> str:
    """The mean of snapshots, against the last one and against one cosine."""
    rows = []
    for first, runs in _baselines(records):
        cosine = runs["cosine"][RATE_DECAYS]
        for schedule, uses in runs.items():
            if _has_cycles(uses):
                result, last = uses["ensemble"], uses["last"]
                name = comparison.named(schedule, result)
                losses = [_minus(result, other) for other in (last, cosine)]
                others = last, cosine, runs["cosine"]["short"]
                points = [comparison.points_above(result, other) for other in others]
                rows.append([*first, name, *losses, *points])
    others = ["the last one", "one cosine", "a cosine of 280 steps"]
    header = [f"loss minus {other}'s" for other in others[:2]]
    header += [f"points above {other}" for other in others]
    return intervals.table([*HEADER, *header], rows)


def _growing(records: Sequence[Record]) -> str:
    """A growing batch against a decaying rate."""
    rows = []
    for first, schedules in _baselines(records):
        for schedule, uses in schedules.items():
            if not _has_cycles(uses):
                pair = decaying, grown = uses[RATE_DECAYS], uses["growing batch"]
                updates = f"{decaying['updates']}, {grown['updates']}"
                losses = [
                    comparison.named(comparison.spread(_losses(r)), r) for r in pair
                ]
                difference = _minus(grown, decaying)
                rows.append([*first, schedule, updates, *losses, difference])
    header = ["updates", "loss, decaying rate", "loss, growing batch", "difference"]
    return intervals.table([*HEADER, *header], rows)


def _signs(records: Sequence[Record], condition: str, use: str) -> str:
    """PowerSign and AddSign beside the baselines, all with one cosine."""
    chosen = _select(records, condition=condition, schedule="cosine", use=use)
    results = {r["settings"]["optimizer"]: r["result"] for r in chosen}
    return comparison.training_table(results, comparison.best_baseline(results))


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figure of the page: losses on the way with wrong labels."""
    figure = Figure(figsize=(9.6, 4.4), dpi=150, facecolor="white")
    condition = _values(records, "condition")[-1]
    for axes, name in zip(
        figure.subplots(1, 2, sharey=True), comparison.BASELINES, strict=True
    ):
        for i, (schedule, use) in enumerate(LINES):
            of_line = {"condition": condition, "optimizer": name, "schedule": schedule}
            (record,) = _select(records, use=use, **of_line)
            curve = np.mean(record["result"]["loss_curves"], axis=0)
            # Before its first snapshot an ensemble has no loss.
            curve = np.where(curve < training.LOST, curve, np.nan)
            axes.plot(
                record["result"]["evaluated_at"],
                curve,
                color=figures.color(i),
                linewidth=1.6,
                label=f"{schedule}, {use}",
            )
        figures.style(axes, "updates")
        axes.set(ylim=(0.5, 1.3))
        axes.set_title(f"{name}, {condition} labels", loc="left", color=figures.INK)
    figure.axes[0].set_ylabel("validation loss, nats per image", color=figures.INK)
    figures.legend(figure.axes[1])
    return {"survey_curves.png": figures.png(figure)}
