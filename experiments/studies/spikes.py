"""One bad gradient: how far each optimizer drifts, and how long it stands still."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import markdown
from experiments.reporting import figures
from experiments.studies import spike_runs
from experiments.studies.spike_runs import AFTER, CURVE
from experiments.studies.spike_subjects import SUBJECTS, WITHOUT_ROW
from experiments.studies.study import Cell, Record, Study

FINITE = ("10", "100", "1e4", "1e38")
BAD = ("inf", "NaN")
RECOVERY = {"1e38": "huge, 1e38", "1e-30": "tiny, 1e-30", "inf": "inf", "NaN": "NaN"}
SHOWN = "1e4"  # the factor of the curves
CURVES = (
    "optax.adamw",
    "acclip, normalize",
    "acclip, normalize, winsorise=8",
    "stable_adamw",
    "spam",
    "clip_by_history, adamw",
)
FARTHEST = 1e5  # usual steps, the end of the figure's axis


def cells(scale: str, data: Path) -> list[Cell]:
    """Every optimizer; the same at each scale."""
    del scale, data
    return [
        Cell(
            {"optimizer": name, **spike_runs.SETTINGS},
            functools.partial(spike_runs.measure, subject.make),
        )
        for name, subject in SUBJECTS.items()
    ]


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    headings = ["optimizer", *(f"x {x}" for x in FINITE), *(f"x {x}" for x in BAD)]
    rows = []
    for name, effects in _by_name(records).items():
        finite = [_finite(effects[factor]) for factor in FINITE]
        rows.append([name, *finite, *(_bad(effects[factor]) for factor in BAD)])
    without = [[f"`{name}`", reason] for name, reason in WITHOUT_ROW.items()]
    return {
        "spikes": markdown.table(headings, rows),
        "without": markdown.table(["transform", "why it has no row"], without),
    }


def recovery(records: Sequence[Record]) -> dict[str, str]:
    """The block of the page on numerics."""
    rows = [
        [name, *(_recovery(effects[factor]) for factor in RECOVERY)]
        for name, effects in _by_name(records).items()
    ]
    return {"recovery": markdown.table(["optimizer", *RECOVERY.values()], rows)}


def _by_name(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    return {r["settings"]["optimizer"]: r["result"] for r in records}


def _finite(effect: dict[str, Any]) -> str:
    """Drift and stalled steps of a gradient that is finite."""
    if effect["nonfinite"]:
        return "dead"
    return f"{_compact(effect['drift'])} / {effect['stalled']:,}"


def _bad(effect: dict[str, Any]) -> str:
    """Steps lost to a gradient that is not finite."""
    if effect["nonfinite"]:
        return "dead"
    return f"{_compact(max(effect['lost'], 0))} lost"


def _recovery(effect: dict[str, Any]) -> str:
    steps = "never" if effect["recovery"] is None else f"{effect['recovery']:,}"
    return f"{steps} *" if effect["nonfinite"] else steps


def _compact(number: float) -> str:
    if number >= FARTHEST:
        return f"{number:.0e}".replace("e+", "e")
    return f"{number:.1f}" if number < 10 else f"{number:,.0f}"


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """All optimizers, and some of them in time."""
    found = _by_name(records)
    return {"spikes.png": _all(found), "spikes_in_time.png": _in_time(found)}


def _all(found: dict[str, dict[str, Any]]) -> bytes:
    """Drift and stalled steps of every optimizer, the best above."""

    def badness(name: str) -> tuple[bool, float]:
        effect = found[name][SHOWN]
        return effect["nonfinite"] > 0, effect["drift"] + effect["stalled"]

    names = sorted(found, key=badness)
    height = 0.2 * len(names) + 1.2
    figure = Figure(figsize=(9.6, height), dpi=130, facecolor="white", layout="tight")
    drift, stalled = figure.subplots(1, 2, sharey=True)
    for i, factor in enumerate(FINITE):
        effects = [found[name][factor] for name in names]
        drifts = np.array([effect["drift"] for effect in effects])
        _dots(drift, np.clip(drifts, 0.1, FARTHEST), i, factor)
        _dots(stalled, [effect["stalled"] for effect in effects], i, factor)
    drift.set_xscale("log")
    drift.set_xlim(0.08, 1.3 * FARTHEST)
    stalled.set_xscale("symlog", linthresh=1)
    stalled.set_xlim(-0.3, 1.3 * AFTER)
    figures.style(drift, "largest drift, usual steps")
    figures.style(stalled, f"steps below half the usual, of {AFTER:,}")
    for axes in (drift, stalled):
        axes.grid(axis="x", color=figures.GRID, linewidth=0.8)
        axes.set_ylim(len(names) - 0.4, -0.6)
    drift.set_yticks(range(len(names)), names)
    figures.legend(stalled, loc="upper right", title="gradient times")
    return figures.png(figure)


def _dots(axes: Axes, values: Any, index: int, label: str) -> None:
    """A row's dots lie beside each other, so that equal ones show."""
    rows = np.arange(len(values)) + (index - (len(FINITE) - 1) / 2) * 0.16
    axes.plot(values, rows, ".", color=figures.color(index), markersize=6, label=label)


def _in_time(found: dict[str, dict[str, Any]]) -> bytes:
    """The lengths of the steps of some, in one run."""
    figure = Figure(figsize=(9.0, 4.4), dpi=150, facecolor="white", layout="tight")
    axes = figure.subplots()
    for i, name in enumerate(CURVES):
        lengths = np.maximum(found[name][SHOWN]["lengths"], 1e-4)
        is_guard = name == CURVES[-1]
        axes.plot(
            CURVE,
            lengths,
            label=name,
            color=figures.INK if is_guard else figures.color(i),
            linewidth=2.6 if is_guard else 1.6,
        )
    figures.style(axes, "steps from the bad gradient on")
    axes.set(xscale="log", yscale="log", xlim=(1, AFTER))
    axes.set_ylabel("length of the step over the usual", color=figures.INK)
    figures.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figures.png(figure)


STUDY = Study(cells, tables, pictures, {"numerics.md": recovery})
