"""Tables and figures of the study of learned optimizers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import markdown
from experiments.reporting import figures
from experiments.studies import intervals, learned_gate
from experiments.studies.study import Record
from optax_heavytail import learned

BOUND = 0.1  # of a task's mean difference, that no other may make up for
WORDS = {"train": "training", "validation": "validation"}
LSTM_SHOWN = {  # trained on, tested on
    "quadratics": ("quadratics", "digits_sigmoid"),
    "digits_sigmoid": ("digits_sigmoid", "digits_relu"),
}


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    return {
        "figure": _lstm_table(records, "quadratics", "quadratics"),
        "limits": _limits(records),
        "gate": gate_table(records),
        "verdict": verdict(records),
        "tasks": _tasks(records),
        "stability": _stability(records),
        "price": _price(records),
        "weights": _weights(),
    }


def _of(records: Sequence[Record], part: str, **settings: Any) -> list[Record]:
    wanted = {"part": part, **settings}
    return [r for r in records if wanted.items() <= r["settings"].items()]


# The LSTM


def lstm_curves(records: Sequence[Record], trained: str, tested: str) -> np.ndarray:
    """(seeds, steps + 1)"""
    found = _of(records, "lstm", trained=trained)
    return np.array([r["result"]["curves"][tested] for r in found])


def rival_ends(records: Sequence[Record], tested: str, horizon: int) -> dict[str, Any]:
    """Of each rival the last losses (seeds,) at its best rate, and the rate."""
    return {
        r["settings"]["optimizer"]: (
            np.array(r["result"][str(horizon)]["curves"])[:, -1],
            r["result"][str(horizon)],
        )
        for r in _of(records, "rivals", tested=tested)
    }


def _lstm_table(records: Sequence[Record], trained: str, tested: str) -> str:
    curves, rows = lstm_curves(records, trained, tested), []
    for horizon in (100, 200):
        own = curves[:, horizon]
        rows.append([horizon, "LSTM", "", f"{own.mean():.4g}", ""])
        for name, (ends, found) in rival_ends(records, tested, horizon).items():
            rate = f"{found['rate']:.3g}{'' if found['is_inside'] else ' (edge)'}"
            difference = intervals.Difference(
                np.log(own) - np.log(ends), ".3f", lambda x: float(np.exp(x))
            )
            rows.append([horizon, name, rate, f"{ends.mean():.4g}", difference])
    headings = ["steps", "optimizer", "rate", "loss", "LSTM's over it"]
    return intervals.table(headings, rows)


def _limits(records: Sequence[Record]) -> str:
    """The LSTM by the best of its rivals, where it was trained and elsewhere."""
    rows = []
    for trained, all_tested in LSTM_SHOWN.items():
        for tested in all_tested:
            curves = lstm_curves(records, trained, tested)
            for horizon in (100, 200):
                ends = rival_ends(records, tested, horizon)
                best = min(ends, key=lambda name: ends[name][0].mean())
                own = curves[:, horizon]
                other = ends[best][0][: len(own)]  # of the same functions
                rows.append(
                    [
                        trained,
                        tested,
                        horizon,
                        f"{own.mean():.4g}",
                        f"{best} {other.mean():.4g}",
                        intervals.Difference(
                            np.log(own) - np.log(other),
                            ".3f",
                            lambda x: float(np.exp(x)),
                        ),
                    ]
                )
    headings = ["trained on", "tested on", "steps", "LSTM", "best rival", "ratio"]
    return intervals.table(headings, rows)


# The gate


def differences(
    records: Sequence[Record], rival: str, steps: int, what: str
) -> dict[str, np.ndarray]:
    """The MLP's logarithm of a loss minus a rival's, of each seed, by task."""
    results = {
        (r["settings"]["task"], r["settings"]["optimizer"]): np.array(r["result"][what])
        for r in _of(records, "gate", steps=steps)
    }
    return {
        task: results[task, learned_gate.WEIGHTS] - results[task, rival]
        for task in learned_gate.TASKS
    }


def rivals_of_mlp() -> list[str]:
    """What the weights are to beat."""
    return [name for name in learned_gate.CONTESTANTS if name != learned_gate.WEIGHTS]


def _cells(records: Sequence[Record]):
    for what in ("train", "validation"):
        for rival in rivals_of_mlp():
            for length, steps in learned_gate.STEPS.items():
                by_task = differences(records, rival, steps, what)
                each = learned_gate.iqm(np.stack(list(by_task.values()), axis=-1))
                worst = max(by_task, key=lambda task: by_task[task].mean())
                yield what, rival, length, each, worst, by_task[worst].mean()


def gate_table(records: Sequence[Record]) -> str:
    """The interquartile mean over tasks, with an interval over seeds."""
    rows = [
        [
            WORDS[what],
            rival,
            learned_gate.STEPS[length],
            intervals.Difference(each, "+.3f"),
            f"{worst} {mean:+.3f}",
        ]
        for what, rival, length, each, worst, mean in _cells(records)
    ]
    headings = ["log loss", "minus that of", "steps", "over all tasks", "worst task"]
    return intervals.table(headings, rows)


def failures(records: Sequence[Record]) -> list[str]:
    """Every condition of the gate that is not met."""
    found = []
    for what, rival, length, each, worst, mean in _cells(records):
        _, low, high = intervals.mean_interval(each)
        where = (
            f"{WORDS[what]} loss against {rival} at {learned_gate.STEPS[length]} steps"
        )
        if length == "x1" and not high < 0:
            found.append(f"{where}: the interval is not below 0")
        if length == "x5" and not low <= 0:
            found.append(f"{where}: the interval is above 0")
        if mean > BOUND:
            found.append(f"{where}: {worst} is worse by more than {BOUND}")
    return found


def verdict(records: Sequence[Record]) -> str:
    """Whether the weights pass, and what keeps them from it."""
    found = failures(records)
    if not found:
        return "All conditions are met: `mlp_v1` passes the gate."
    lines = "\n".join(f"- {line}" for line in found)
    total = 2 * len(rivals_of_mlp()) * len(learned_gate.STEPS) * 2
    return (
        f"`mlp_v1` does not pass the gate, {len(found)} of {total} conditions are not "
        f"met. They are research weights:\n\n{lines}"
    )


def _tasks(records: Sequence[Record]) -> str:
    """Mean training scores of each task at the best rates."""
    names = list(learned_gate.CONTESTANTS)
    rows = []
    for task in learned_gate.TASKS:
        for steps in learned_gate.STEPS.values():
            row: list[Any] = [task, steps]
            for name in names:
                (record,) = _of(records, "gate", task=task, steps=steps, optimizer=name)
                result = record["result"]
                edge = "" if result["is_inside"] else " (edge)"
                train = np.mean(result["train"])
                held = np.mean(result["validation"])
                row.append(f"{train:.2f} / {held:.2f} at {result['rate']:.2g}{edge}")
            rows.append(row)
    return markdown.table(["task", "steps", *names], rows)


def _stability(records: Sequence[Record]) -> str:
    rows = []
    for record in _of(records, "stability"):
        result = record["result"]
        median = "" if result["median"] is None else f"{result['median']:.3f}"
        name = record["settings"]["optimizer"]
        rows.append([name, f"{result['rate']:.3g}", result["diverged"], median])
    headings = ["optimizer", "rate", "diverged of 100", "median last loss"]
    return markdown.table(headings, rows)


def _price(records: Sequence[Record]) -> str:
    rows = []
    for record in _of(records, "price"):
        result = record["result"]
        ratios = np.array(result["seconds"]) / np.array(result["adamw_seconds"])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        rows.append(
            [
                record["settings"]["model"],
                f"{result['parameters']:,}",
                f"{np.median(result['seconds']) * 1e3:.3g} ms",
                f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                result["bytes_per_parameter"],
            ]
        )
    headings = ["optimizer", "parameters", "step", "over optax.adamw", "bytes each"]
    return markdown.table(headings, rows)


def _weights() -> str:
    """The weights of the package, as they tell it themselves."""
    rows = []
    for name in learned.names():
        about = learned.about(name)
        facts = "; ".join(f"{k} {v}" for k, v in about["training"].items())
        rows.append([f"`{name}`", facts, f"`{about['command']}`", about["commit"]])
    return markdown.table(["weights", "training", "command", "commit"], rows)


# Figures


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figure of 2016, and where it ends."""
    figure = Figure(figsize=(12.0, 4.4), dpi=150, facecolor="white", layout="tight")
    panels = figure.subplots(1, 3)
    shown = [("quadratics", "quadratics", "quadratics, as in training")]
    shown.append(("digits_sigmoid", "digits_sigmoid", "sigmoids, as in training"))
    shown.append(("digits_sigmoid", "digits_relu", "ReLU in place of sigmoids"))
    for axes, (trained, tested, title) in zip(panels, shown, strict=True):
        _draw(axes, records, trained, tested)
        axes.set_title(title, loc="left", color=figures.INK, fontsize=10)
    panels[0].set_ylabel("mean loss of fresh functions", color=figures.INK)
    figures.legend(panels[0])
    return {"learned.png": figures.png(figure)}


def _draw(axes: Any, records: Sequence[Record], trained: str, tested: str) -> None:
    curves = {"LSTM": lstm_curves(records, trained, tested)}
    for record in _of(records, "rivals", tested=tested):
        found = np.array(record["result"]["200"]["curves"])
        curves[record["settings"]["optimizer"]] = found
    start = curves["LSTM"][:, 0].mean()
    for i, (name, own) in enumerate(curves.items()):
        own = np.minimum(own, 10 * start)
        steps, color = np.arange(own.shape[1]), figures.color(i)
        axes.plot(steps, own.mean(axis=0), color=color, label=name)
        axes.fill_between(
            steps, own.min(axis=0), own.max(axis=0), color=color, alpha=0.2, lw=0
        )
    axes.axvline(100, color=figures.MUTED, linestyle=":")
    axes.set_yscale("log")
    figures.style(axes, "step")
