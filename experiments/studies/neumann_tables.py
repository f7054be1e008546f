"""What the page of the Neumann study shows."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting import figures
from experiments.studies import comparison, intervals
from experiments.studies.intervals import Difference
from experiments.studies.study import Record

Results = dict[str, dict[str, Any]]  # by optimizer


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    finals = {f"final_{size}": _finals(records, size) for size in _sizes(records)}
    blocks = {name: _against_best(_main(results)) for name, results in finals.items()}
    middle, whole = finals["final_64"], list(finals.values())[-1]
    constant = _select(records, "final", schedule="constant")
    return {
        "points": _points(finals),
        **blocks,
        "steps": _steps(records),
        "scaling": _scaling(records),
        "parts_64": _parts(middle),
        "parts_full": _parts(whole),
        "constant": _against_best(constant),
        "longer": _against_best(_longer(records)),
        "two_loop": _against_best(_loops(records)),
    }


def _select(records: Sequence[Record], question: str, **wanted: Any) -> Results:
    """Results by optimizer, of the records with these settings."""
    return {
        record["settings"]["optimizer"]: record["result"]
        for record in records
        if record["settings"]["question"] == question
        and all(record["settings"][key] == value for key, value in wanted.items())
    }


def _epochs(records: Sequence[Record]) -> list[int]:
    """Lengths of trainings, the usual one first."""
    settings = [record["settings"] for record in records]
    return sorted({s["epochs"] for s in settings if s["question"] == "final"})


def _sizes(records: Sequence[Record]) -> list[int]:
    settings = [record["settings"] for record in records]
    return sorted({s["batch_size"] for s in settings if s["question"] == "speed"})


def _finals(records: Sequence[Record], batch_size: int) -> Results:
    epochs = _epochs(records)[0]
    return _select(
        records, "final", batch_size=batch_size, epochs=epochs, schedule="cosine"
    )


def _longer(records: Sequence[Record]) -> Results:
    return _select(records, "final", epochs=_epochs(records)[-1])


def _is_variant(name: str) -> bool:
    return name == "nesterov" or (name.startswith("neumann") and name != "neumann")


def _main(results: Results) -> Results:
    return {k: result for k, result in results.items() if not _is_variant(k)}


def _points(finals: dict[str, Results]) -> str:
    """How many more of the images Neumann has right, in percentage points."""
    baselines = [name for name in _main(finals["final_64"]) if name != "neumann"]
    rows = []
    for block, results in finals.items():
        neumann = results["neumann"]
        above = [comparison.points_above(neumann, results[name]) for name in baselines]
        rows.append([f"{int(block.split('_')[1]):,}", *above])
    header = [f"points above {name}" for name in baselines]
    return intervals.table(["images a step", *header], rows)


def _parts(results: Results) -> str:
    kept = {
        name: result
        for name, result in results.items()
        if _is_variant(name) or name in ("neumann", *comparison.BASELINES)
    }
    return comparison.training_table(kept, "neumann")


def _against_best(results: Results) -> str:
    return comparison.training_table(results, comparison.best_baseline(results))


def _loops(records: Sequence[Record]) -> Results:
    """The two-loop form by its inner steps, beside those of one gradient a step."""
    loops = [r for r in records if r["settings"]["question"] == "two_loop"]
    beside = _finals(records, loops[0]["settings"]["batch_size"])
    by_number = {
        f"two loops, K = {r['settings']['inner_steps']}, "
        f"{r['settings']['steps']} steps": r["result"]
        for r in loops
    }
    return {k: beside[k] for k in (*comparison.BASELINES, "neumann")} | by_number


def reached(result: dict[str, Any]) -> np.ndarray:
    """Steps to the target of each seed; not a number where it was never reached."""
    return np.array(result["steps"], float)


def ratio(steps: np.ndarray, others: np.ndarray, form: str = ".2f") -> Difference | str:
    """The geometric mean of the ratios of pairs, with its interval."""
    logs = np.log(steps / others)
    if not np.isfinite(logs).all():
        return ""
    return Difference(logs, form, math.exp)


def _written(steps: np.ndarray, budget: int) -> str:
    number = np.isfinite(steps).sum()
    if number < len(steps):
        return f"{number} of {len(steps)} seeds within {budget:,}"
    return f"{steps.mean():.0f} ± {steps.std(ddof=1):.0f}"


def _steps(records: Sequence[Record]) -> str:
    """Steps to the target at each batch size, and over the baselines'."""
    rows = []
    for record in (r for r in records if r["settings"]["question"] == "speed"):
        settings, result = record["settings"], record["result"]
        size, name = settings["batch_size"], settings["optimizer"]
        beside = _select(records, "speed", batch_size=size)
        steps = reached(result)
        over = [
            "" if name == baseline else ratio(steps, reached(beside[baseline]))
            for baseline in comparison.BASELINES
        ]
        shown = f"{size:,}", comparison.named(name, result), f"{result['rate']:.3g}"
        rows.append((size, [*shown, _written(steps, settings["budget"]), *over]))
    over = [f"over {baseline}'s" for baseline in comparison.BASELINES]
    rows.sort(key=lambda row: row[0])
    header = ["images a step", "optimizer", "rate", "steps", *over]
    return intervals.table(header, [row for _, row in rows])


def _scaling(records: Sequence[Record]) -> str:
    """How many times fewer steps each next batch size needs."""
    sizes = _sizes(records)
    pairs = list(itertools.pairwise(sizes))
    by_size = {size: _select(records, "speed", batch_size=size) for size in sizes}
    linear = [f"{large / small:.2g}" for small, large in pairs]
    rows: list[list[str | Difference]] = [["linear scaling", *linear]]
    for name in _main(by_size[sizes[0]]):
        steps = {size: reached(by_size[size][name]) for size in sizes}
        rows.append([name, *(ratio(steps[a], steps[b], ".1f") for a, b in pairs)])
    return intervals.table(["optimizer", *(f"{a:,} to {b:,}" for a, b in pairs)], rows)


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figure of the page: steps to the target, and final losses, by batch size."""
    figure = Figure(figsize=(9.6, 4.6), dpi=150, facecolor="white")
    left, right = figure.subplots(1, 2)
    sizes = _sizes(records)
    names = list(_main(_select(records, "speed", batch_size=sizes[0])))
    for i, name in enumerate(names):
        steps = [
            reached(_select(records, "speed", batch_size=size)[name]) for size in sizes
        ]
        losses = [np.array(_finals(records, size)[name]["losses"]) for size in sizes]
        _line(left, sizes, steps, i, name)
        _line(right, sizes, losses, i, name)
    start = np.mean(reached(_select(records, "speed", batch_size=sizes[0])["momentum"]))
    ideal = start * sizes[0] / np.array(sizes)
    left.plot(sizes, ideal, color=figures.MUTED, linewidth=1, label="linear scaling")
    steps, losses = (3, 10, 30, 100, 300), (0.03, 0.06, 0.12, 0.24, 0.48)
    for axes, title, ticks in (
        (left, "steps to the target, constant rate", steps),
        (right, "final validation loss, nats per image", losses),
    ):
        figures.style(axes, "images a step")
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_yticks(ticks, [f"{tick}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(title, loc="left", color=figures.INK, fontsize=10)
    figures.legend(left)
    return {"neumann_scaling.png": figures.png(figure)}


def _line(
    axes: Axes, sizes: Sequence[int], values: Sequence[np.ndarray], i: int, name: str
) -> None:
    """Means, with the range of the seeds; left out where one has no value."""
    means = np.array([value.mean() for value in values])
    ends = np.array([[v.mean() - v.min(), v.max() - v.mean()] for v in values]).T
    spread = 1 + 0.06 * (i - 2)  # side by side
    axes.errorbar(
        np.array(sizes) * spread,
        means,
        ends,
        color=figures.color(i),
        linewidth=1.6,
        capsize=2,
        label=name,
    )
