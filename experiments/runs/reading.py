"""Reads back what runs wrote to their work directories."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from experiments.common import fields, json_files
from experiments.common.errors import UserError
from experiments.common.json_files import Record
from experiments.runs.outcome import Outcome

NUMBER = fields.number(-math.inf)
SECONDS = fields.number(0)
RECORD = {
    "kind": fields.choice("train", "eval", "final"),
    "step": fields.integer(0),
    "loss": NUMBER.or_none(),
}
FINAL = {
    "status": fields.choice("complete", "diverged"),
    "accuracy": NUMBER.or_missing(),
    "train_seconds": SECONDS.or_missing(),
    "compile_seconds": SECONDS.or_missing(),
    "parameters": fields.integer(1, 2**63),
    "baselines": fields.mapping(),
    "data": fields.mapping(),
    "versions": fields.mapping(),
    "hardware": fields.text(),
    "command": fields.text(),
    "seal": fields.mapping().or_missing(),
}
OF_KIND = {
    "train": {"loss": NUMBER},
    "eval": {"loss": NUMBER, "accuracy": NUMBER.or_missing()},
    "final": FINAL,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's records, in the order of their steps."""

    name: str
    config: dict[str, Any]
    train: list[Record]
    eval: list[Record]
    final: Record | None  # None: the run was interrupted
    is_cut: bool  # the last line was written in part only, and is left out

    @property
    def loss_unit(self) -> str:
        """What one unit of the loss is."""
        return self.config["report"]["loss_unit"]

    @property
    def loss_scale(self) -> Literal["linear", "log"]:
        """The scale of the loss in figures."""
        return self.config["report"]["loss_scale"]

    @property
    def accuracy_name(self) -> str:
        """What the accuracy is called."""
        return self.config["report"]["accuracy_name"]

    @property
    def outcome(self) -> Outcome:
        """How the run ended, or how far it came."""
        if self.final is not None:
            return Outcome.of(self.final)
        steps = [record["step"] for record in self.train + self.eval]
        return Outcome("interrupted", max(steps, default=0))

    @property
    def status(self) -> str:
        """How and where the run ended, in words."""
        is_noted = self.is_cut and not self.outcome.is_complete
        return f"{self.outcome}{' (last record cut short)' if is_noted else ''}"


def read_run(run_dir: Path) -> Run:
    """Reads ``config.json`` and ``metrics.jsonl`` of one run.

    A last line without its end, as a killed run leaves it, is skipped and noted.

    Raises:
      UserError: a file is missing, or holds anything else.
    """
    metrics = run_dir / "metrics.jsonl"
    if not metrics.exists():
        raise UserError(f"{metrics}: No such file; a finished run has it")
    records, is_cut = read_records(metrics)
    by_kind: dict[str, list[Record]] = {"train": [], "eval": [], "final": []}
    for record in records:
        by_kind[record["kind"]].append(record)
    final = by_kind["final"][-1] if by_kind["final"] else None
    return Run(
        name=run_dir.name,
        config=read_config(run_dir),
        train=by_kind["train"],
        eval=by_kind["eval"],
        final=final,
        is_cut=is_cut,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Reads ``config.json``, the resolved config of a run or a comparison."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{path}: No such file; a finished run has it")
    return json_files.read_object(path)


def read_records(metrics: Path) -> json_files.Lines:
    """Reads the records of a run; none of a file that is not there.

    Raises:
      UserError: naming the line that is no record of a run, and its field.
    """
    lines = json_files.read_lines(metrics)
    for number, record in enumerate(lines.records, 1):
        where = f"{metrics}:{number}: record"
        fields.check(record, RECORD, where)
        fields.check(record, OF_KIND[record["kind"]], where)
        for name, value in record.get("baselines", {}).items():
            fields.check({name: value}, {name: NUMBER}, f"{where}.baselines")
    return lines
