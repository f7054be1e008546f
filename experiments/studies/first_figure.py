"""The README's figure: one run with a spike and a NaN, under three optimizers."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import markdown
from experiments.reporting import figures
from experiments.studies import study, training
from experiments.studies.heavy_tails import corrupted, methods, race
from experiments.studies.study import Cell, Record, Study
from experiments.studies.training import LOST, Contestant, Point, Problem

SEED = 0
SPIKE_AT, NAN_AT = 120, 260  # steps
SPIKE = 1e4
TICKS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # nats
SHOWN = {
    "adamw": "optax.adamw(rate)",
    methods.BASELINE: "optax.clip_by_global_norm(1) before it",
    "guarded(adamw)": "oht.guarded(optax.adamw(rate))",
}


def problem() -> Problem:
    """The network of W2, with one spike and one NaN."""
    clean = corrupted.problem(race.CLEAN, "test")

    def batches(seed: int) -> dict[str, Any]:
        drawn = clean.batches(seed)
        factor = np.ones(clean.steps, np.float32)
        factor[SPIKE_AT], factor[NAN_AT] = SPIKE, np.nan
        return drawn | {"factor": factor}

    return clean._replace(batches=batches, evaluations=clean.steps // 2)


def measure(name: str) -> dict[str, Any]:
    """The loss on the way; that of a run that is lost is `training.LOST`."""
    made = methods.contestants(corrupted.RATE, [name])[name]
    run = training.runner(Contestant(made.make, corrupted.RATE), problem())
    curves = run([Point(corrupted.RATE, None)], [SEED])
    return {
        "steps": training.evaluation_steps(problem()).tolist(),
        "losses": study.rounded(curves.losses[0, 0]),
        "accuracy": study.rounded(curves.accuracies[0, 0, -1:])[0],
    }


def cells(scale: str, data: Path) -> list[Cell]:
    """The three runs; the same at each scale."""
    del scale, data
    about = {"rate": corrupted.RATE, "seed": SEED, "steps": corrupted.STEPS}
    return [
        Cell({"optimizer": name} | about, functools.partial(measure, name))
        for name in SHOWN
    ]


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The last losses."""
    rows = []
    for record in records:
        name, result = record["settings"]["optimizer"], record["result"]
        losses = np.array(result["losses"])
        before = losses[result["steps"].index(NAN_AT)]
        ends = [f"{x:.3f}" if x < LOST else "lost" for x in (before, losses[-1])]
        rows.append([f"`{SHOWN[name]}`", *ends, f"{result['accuracy']:.1%}"])
    headings = ["optimizer", "test loss before the NaN", "at the end", "accuracy"]
    return {"losses": markdown.table(headings, rows)}


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The three curves; a cross is where a run is lost."""
    figure = Figure(figsize=(8.6, 3.4), dpi=150, facecolor="white")
    axes = figure.subplots()
    for i, record in enumerate(records):
        result = record["result"]
        steps, losses = np.array(result["steps"]), np.array(result["losses"])
        kept = losses < LOST
        style = {"color": figures.color(i), "linewidth": (3.4, 2.4, 1.6)[i]}
        name = SHOWN[record["settings"]["optimizer"]]
        axes.plot(steps[kept], losses[kept], **style, label=name)
        if not kept.all():
            last = np.flatnonzero(kept)[-1]
            axes.plot(
                steps[last], losses[last], "X", color=figures.color(i), markersize=11
            )
    for at, what in ((SPIKE_AT, "gradient times 10,000"), (NAN_AT, "NaN")):
        axes.axvline(at, color=figures.MUTED, linestyle=(0, (4, 3)), linewidth=1.0)
        axes.text(
            at + 3,
            1.0,
            what,
            transform=axes.get_xaxis_transform(),
            color=figures.MUTED,
            va="top",
        )
    figures.style(axes, "step")
    axes.set(yscale="log", xlim=(0, corrupted.STEPS))
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_ylabel("test loss, nats per digit", color=figures.INK)
    figures.legend(axes, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3)
    return {"first_figure.png": figures.png(figure)}


STUDY = Study(cells, tables, pictures)
