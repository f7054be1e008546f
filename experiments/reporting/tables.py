"""The results of several runs as rows, as an aligned table and in words."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.runs.reading import Run

CONSOLE_WIDTH = 100
Row = dict[str, Any]


class Column(NamedTuple):
    """A column of the final table."""

    heading: str
    value: Callable[[Row], Any]
    spec: str = ""  # how a number is written; empty: a column of words

    def cell(self, row: Row) -> str:
        """The value in ``row`` as text, a dash if the run did not come to it."""
        value = self.value(row)
        return "-" if value is None else format(value, self.spec)


def ranked_rows(runs: Sequence[Run], baselines: Mapping[str, float]) -> list[Row]:
    """One row per run, best first, unfinished runs last; numbers unrounded."""
    rows = [_row(run, baselines) for run in runs]
    return sorted(rows, key=lambda row: (row["loss"] is None, row["loss"] or 0.0))


def _row(run: Run, baselines: Mapping[str, float]) -> Row:
    final = run.final or {}
    loss, seconds = final.get("loss"), final.get("train_seconds")
    return {
        "optimizer": run.name,
        **{k: v for k, v in run.config["optimizer"].items() if k != "name"},
        "status": run.status,
        "step": run.outcome.step,
        "loss": loss,
        "differences": {
            name: None if loss is None else loss - value
            for name, value in baselines.items()
        },
        "accuracy": final.get("accuracy"),
        "train_seconds": seconds,
        "compile_seconds": final.get("compile_seconds"),
        "steps_per_second": run.outcome.step / seconds if seconds else None,
    }


def columns(baselines: Mapping[str, float], accuracy_name: str) -> list[Column]:
    """The columns of the final table."""
    return [
        Column("optimizer", lambda row: row["optimizer"]),
        Column("peak learning rate", lambda row: row["learning_rate"], "g"),
        Column("final validation loss", lambda row: row["loss"], ".3f"),
        *(
            Column(f"against {name}", lambda row, n=name: row["differences"][n], "+.3f")
            for name in baselines
        ),
        Column(accuracy_name, lambda row: row["accuracy"], ".1%"),
        Column("training seconds", lambda row: row["train_seconds"], ",.1f"),
        Column("steps/s", lambda row: row["steps_per_second"], ",.1f"),
        Column("status", lambda row: row["status"]),
        Column("transform", _transform),
    ]


def _transform(row: Row) -> str:
    """The call that makes the transform, without its learning rate."""
    decay = {k: row[k] for k in ("weight_decay",) if k in row}
    arguments = {**decay, **row["kwargs"]}
    return f"{row['transform']}({', '.join(f'{k}={v}' for k, v in arguments.items())})"


def text(
    rows: Sequence[Row], baselines: Mapping[str, float], accuracy_name: str
) -> str:
    """The table in at most 100 columns; without the transforms, which need more."""
    shown = [c for c in columns(baselines, accuracy_name) if c.heading != "transform"]
    table = Table(box=box.ASCII2, show_edge=False, pad_edge=False)
    for column in shown:
        heading = "\n".join(column.heading.split())
        side = "right" if column.spec else "left"
        is_status = column.heading == "status"  # the one that may be long
        table.add_column(heading, justify=side, no_wrap=not is_status)
    for row in rows:
        table.add_row(*(column.cell(row) for column in shown))
    stream = io.StringIO()
    console = Console(file=stream, width=CONSOLE_WIDTH, color_system=None, markup=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def summary(rows: Sequence[Row], baselines: Mapping[str, float], loss_unit: str) -> str:
    """Says which optimizer is best and by how much, and what did not finish."""
    done = [row for row in rows if row["loss"] is not None]
    failed = [f"{r['optimizer']} {r['status']}" for r in rows if r["loss"] is None]
    sentences = (
        [_best(done, baselines, loss_unit)]
        if done
        else ["No run reached its last step."]
    )
    if failed:
        sentences.append(f"Not finished: {'; '.join(failed)}.")
    return " ".join(sentences)


def _best(done: Sequence[Row], baselines: Mapping[str, float], loss_unit: str) -> str:
    best, *others = done
    text = (
        f"{best['optimizer']} ends with the lowest validation loss, "
        f"{best['loss']:.3f} {loss_unit}"
    )
    for name, difference in best["differences"].items():
        side = "below" if difference < 0 else "above"
        text += (
            f", {abs(difference):.3f} {side} what always predicting the {name} gives "
            f"({baselines[name]:.3f})"
        )
    if others:
        text += f"; next is {others[0]['optimizer']} at {others[0]['loss']:.3f}"
    return f"{text}."
