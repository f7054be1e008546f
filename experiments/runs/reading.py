"""Reads back what runs wrote to their work directories."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, NoReturn

from experiments.common.errors import UserError

Record = dict[str, Any]


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
    def end(self) -> str:
        """How the run ended: "complete", "diverged" or "interrupted"."""
        return "interrupted" if self.final is None else self.final["status"]

    @property
    def is_complete(self) -> bool:
        """Whether the run got to its last step."""
        return self.end == "complete"

    @property
    def last_step(self) -> int:
        """The last step there is a record of."""
        final = [] if self.final is None else [self.final]
        steps = [record["step"] for record in self.train + self.eval + final]
        return max(steps, default=0)

    @property
    def status(self) -> str:
        """How and where the run ended, in words."""
        if self.is_complete:
            return "complete"
        cut = " (last record cut short)" if self.is_cut else ""
        return f"{self.end} at step {self.last_step:,}{cut}"


def read_run(run_dir: Path) -> Run:
    """Reads ``config.json`` and ``metrics.jsonl`` of one run.

    A last line without its end, as a killed run leaves it, is skipped and noted.

    Raises:
      UserError: a file is missing, or holds anything else.
    """
    metrics = run_dir / "metrics.jsonl"
    *lines, rest = _read(metrics).split(b"\n")
    records = [_record(line, f"{metrics}:{i}") for i, line in enumerate(lines, 1)]
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
        is_cut=bool(rest),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Reads ``config.json``, the resolved config of a run or a comparison."""
    path = folder / "config.json"
    try:
        config = json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: a JSON object is needed, found {config!r:.60}")
    return config


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a finished run has it") from None


def _record(line: bytes, place: str) -> Record:
    try:
        record = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise UserError(f"{place}: not a JSON record ({error})") from None
    needed = {"kind", "step", "loss"}
    if not isinstance(record, dict) or not needed <= record.keys():
        raise UserError(
            f"{place}: kind, step and loss are needed, found {record!r:.60}"
        )
    if record["kind"] not in ("train", "eval", "final"):
        raise UserError(
            f"{place}: kind is {record['kind']!r}, allowed: train, eval, final"
        )
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
