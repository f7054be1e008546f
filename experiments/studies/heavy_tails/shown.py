"""Tables and figures of a race."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common import markdown
from experiments.reporting import figures
from experiments.studies import comparison, intervals
from experiments.studies.heavy_tails import verdicts
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.heavy_tails.verdicts import Pair, Verdict
from experiments.studies.study import Record
from experiments.studies.training import LOST

TRACKS = ("tuned", "default")
FLOOR = 1e-3  # of figures, whose axes are logarithmic
# condition -> optimizer -> track -> what was measured
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]


class Place(NamedTuple):
    """Where in a table a pair is."""

    condition: str
    method: str
    track: str


def results(records: Sequence[Record], race: Race) -> Results:
    """The measurements of a race, among those of others."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        settings = record["settings"]
        if settings["workload"] == race.name and "optimizer" in settings:
            of_condition = found.setdefault(settings["condition"], {})
            of_condition[settings["optimizer"]] = record["result"]
    return found


def judged(found: Results, race: Race, condition: str) -> dict[Place, Verdict]:
    """Every comparison of a condition with the baseline: one family of tests."""
    of_condition = found[condition]
    baseline = race.baseline_in(condition)
    base = of_condition[baseline]
    pairs = {
        Place(condition, name, track): Pair(
            np.array(result[track]["losses"]), np.array(base[track]["losses"])
        )
        for name, result in of_condition.items()
        for track in result
        if name != baseline
    }
    words = verdicts.judge(list(pairs.values()), race.margin)
    return dict(zip(pairs, words, strict=True))


def table(found: Results, race: Race, condition: str) -> str:
    """Both tracks of a condition, beside the baseline."""
    words = judged(found, race, condition)
    tracks = TRACKS[: 1 if condition == race.conditions[0] else 2]
    rows = []
    for name, result in found[condition].items():
        tuned = result["tuned"]
        threshold = tuned["threshold"]
        row = [
            comparison.named(name, tuned),
            f"{tuned['rate']:.2g}",
            "" if threshold is None else f"{threshold:.2g}",
            tuned["moves"],
        ]
        for track in tracks:
            verdict = words.get(Place(condition, name, track), Verdict("", "baseline"))
            row += [spread(result[track]["losses"]), verdict.difference, verdict.word]
        rows.append(row)
    headings = ["optimizer", "rate", "threshold", "moves"]
    for track in tracks:
        headings += [f"{track}: loss", "minus the baseline's", "verdict"]
    return markdown.table(headings, rows)


def against_clean(found: Results, race: Race) -> str:
    """What a corruption adds to the loss of each optimizer, in the default track.

    Rates, weights and batches are those of the clean runs: all that differs is the
    corruption.
    """
    first, *others = race.conditions
    rows = []
    for name, clean in found[first].items():
        row: list[Any] = [name]
        for condition in others:
            losses = np.array(found[condition][name]["default"]["losses"])
            # Clean runs may be more, of which the first have the same seeds.
            same = np.array(clean["tuned"]["losses"])[: len(losses)]
            row.append(comparison.difference(losses, same, "+.4f"))
        rows.append(row)
    return intervals.table(["optimizer", *others], rows)


def spread(losses: Sequence[float]) -> str:
    """Mean and standard deviation of the runs that are not lost, and how many are."""
    whole = np.array(losses)
    kept = whole[whole < LOST]
    lost = comparison.lost(whole)
    if len(kept) < 2:
        return lost
    shown = f"{kept.mean():.4f} ± {kept.std(ddof=1):.4f}"
    return f"{lost}, others {shown}" if lost else shown


def endpoint(found: Results, race: Race, name: str, chosen: Endpoint) -> list[Any]:
    """The row of a workload in the table of primary endpoints."""
    method, condition, track = chosen
    verdict = judged(found, race, condition)[Place(condition, method, track)]
    baseline = race.baseline_in(condition)
    own, base = (found[condition][each][track]["losses"] for each in (method, baseline))
    what = f"{method} against {baseline}: {condition}, {track}"
    return [
        name,
        what,
        spread(own),
        spread(base),
        verdict.difference,
        verdict.word,
    ]


def picture(found: Results, race: Race, name: str) -> bytes:
    """Every run's loss: a panel for each condition, a row for each optimizer."""
    methods = list(race.contestants)
    height = 0.27 * len(methods) + 1.3
    width = 3.4 + 2.6 * len(race.conditions)
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    panels = figure.subplots(1, len(race.conditions), sharey=True, squeeze=False)[0]
    for axes, condition in zip(panels, race.conditions, strict=True):
        _draw(axes, found[condition], methods, name if axes is panels[0] else "")
        axes.set_title(condition, loc="left", color=figures.INK, fontsize=10)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    figures.legend(panels[-1], loc="center left", bbox_to_anchor=(1, 0.5))
    return figures.png(figure)


def _draw(
    axes: Axes, of_condition: Mapping[str, Any], methods: Sequence[str], name: str
) -> None:
    """One condition; what is lost, or far off, is a cross at the right edge."""
    kept = [
        max(loss, FLOOR)
        for tracks in of_condition.values()
        for result in tracks.values()
        for loss in result["losses"]
        if loss < LOST
    ]
    low, high = min(kept), min(max(kept), max(30 * float(np.median(kept)), 1.0))
    edge = high * (high / low) ** 0.12
    for i, track in enumerate(TRACKS):
        color = figures.color(i)
        for row, method in enumerate(methods):
            result = of_condition[method]
            losses = np.maximum(result.get(track, {}).get("losses", []), FLOOR)
            y = row + (i - 0.5) * 0.36 + np.linspace(-0.13, 0.13, len(losses))
            inside = losses <= high
            label = track if row == 0 and len(losses) else None
            axes.plot(losses[inside], y[inside], ".", ms=4, color=color)
            axes.plot([], [], ".", ms=8, color=color, label=label)
            axes.plot(
                np.full(np.sum(~inside), edge), y[~inside], "x", ms=4, color=color
            )
    axes.plot([], [], "x", color=figures.MUTED, label="lost, or beyond")
    figures.style(axes, name)
    axes.set_xscale("log")
    ends = low * (low / high) ** 0.06, edge * 1.04
    axes.set_xlim(*ends)
    ticks = _ticks(*ends)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color=figures.GRID, linewidth=0.8)


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers of a logarithmic axis."""
    if high < 3 * low:
        values = MaxNLocator(3).tick_values(low, high)
        return [float(x) for x in values if low <= x <= high]
    powers = [10.0**k for k in range(-4, 4)]
    for digits in ((1, 1.5, 2, 3, 5), (1, 2, 5), (1,)):
        found = [d * power for power in powers for d in digits]
        inside = [float(f"{x:.3g}") for x in found if low <= x <= high]
        if len(inside) <= 4:
            break
    return inside
