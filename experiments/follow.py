"""How the curvature of the loss changes while a model trains.

python -m experiments.follow --config=experiments/configs/bert_tiny.py \
    --workdir=runs/followed

It trains as `experiments.train` does, and on the way takes the spectrum of the Hessian
at some steps, and the smoothness along some updates. All of it is of the mean loss over
the same few batches, which the training does not come to. Writes ``curvature.jsonl``, a
line for each measurement, and ``curvature.png``. Given again after an interruption, it
trains again, and measures what is missing.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.common import cli, distributed, files, progress, provenance
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.diagnosis import trajectory, trajectory_figures
from experiments.diagnosis.trajectory import Record
from experiments.runs import folders
from experiments.training import plan, program, trainer
from experiments.training.program import Program

SPECTRA = flags.DEFINE_integer(
    "spectra",
    6,
    "Steps whose spectrum is taken, the first and the last with them.",
    lower_bound=2,
)
POINTS = flags.DEFINE_integer(
    "points", 80, "Updates whose smoothness is taken.", lower_bound=2
)
LOSS_BATCHES = flags.DEFINE_integer(
    "loss_batches", 4, "Batches over which the loss is averaged.", lower_bound=1
)
LANCZOS_STEPS = flags.DEFINE_integer(
    "lanczos_steps", 64, "Hessian-vector products for a spectrum.", lower_bound=1
)
RECORDS_FILE, FIGURE_FILE = "curvature.jsonl", "curvature.png"


class Settings(NamedTuple):
    """What is measured."""

    spectra: int
    points: int
    loss_batches: int
    lanczos_steps: int

    def spectrum_steps(self, num_steps: int) -> list[int]:
        """Steps of the spectra: more of them early, where more changes."""
        return _early(0, num_steps, self.spectra)

    def smoothness_steps(self, num_steps: int) -> list[int]:
        """Steps after which an update is measured; the first has no learning rate."""
        return _early(1, num_steps - 1, self.points)


def _early(first: int, last: int, count: int) -> list[int]:
    fractions = np.linspace(0, 1, count) ** 2 if first <= last else ()
    return sorted({first + round(x * (last - first)) for x in fractions})


class File:
    """The records in a folder, whole on the disk whenever one has been added.

    Args:
      path: of the file.
      settings: a file of other settings is refused.

    Raises:
      UserError: the file is of other settings, or not one of this program.
    """

    def __init__(self, path: Path, settings: Settings):
        self._path, wanted = path, settings._asdict()
        header = {"kind": "header", "settings": wanted, **_origin()}
        self.records = self._read() if path.exists() else [header]
        found = self.records[0].get("settings")
        if found != wanted:
            raise UserError(
                f"{path}: has measurements with {found}, not {wanted}; choose another "
                "folder, or delete the file"
            )

    def _read(self) -> list[Record]:
        lines = self._path.read_text(encoding="utf-8").splitlines()
        try:
            first, *others = [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError):
            raise UserError(f"{self._path}: has lines that are no records") from None
        return [first, *others]

    def missing(self, kind: str, steps: Sequence[int]) -> list[int]:
        """Those of the steps of which there is no record."""
        found = {r["step"] for r in self.records if r["kind"] == kind}
        return [step for step in steps if step not in found]

    def add(self, kind: str, step: int, values: Record) -> None:
        """Writes a record; a number that is not finite becomes ``None``."""
        self.records.append({"kind": kind, "step": step, **trajectory.finite(values)})
        lines = [json.dumps(record, allow_nan=False) for record in self.records]
        files.write_atomically(self._path, "\n".join(lines) + "\n")


def _origin() -> Record:
    return {
        "command": provenance.command(),
        "hardware": provenance.hardware(),
        "versions": trainer.versions(),
    }


def measure(config: Config, workdir: Path, settings: Settings) -> list[Record]:
    """Trains, and writes what it measures; returns all records.

    Raises:
      UserError: bad input, or the training diverges; what was measured stays.
    """
    if jax.process_count() > 1:
        raise UserError("the curvature is measured by one process")
    source = trainer.load([config])
    resolved = trainer.resolve(config, source)
    folders.finished(workdir, resolved)  # refuses the folder of another config
    with folders.locked(workdir):
        file = File(workdir / RECORDS_FILE, settings)
        end = plan.make(resolved).num_steps
        spectra = file.missing("spectrum", settings.spectrum_steps(end))
        updates = file.missing("smoothness", settings.smoothness_steps(end))
        if spectra or updates:
            built = program.build(resolved, source.build(workdir))
            _check_size(built, settings)
            folders.claim(workdir, resolved)
            built.task.save_assets(workdir)
            tools = trajectory.Instruments(
                built, settings.loss_batches, settings.lanczos_steps, config.seed
            )
            state = built.init_state()
            points = trajectory.follow(built, resolved, state, spectra, updates)
            _add(file, points, len(spectra) + len(updates), tools)
        return file.records


def _check_size(built: Program, settings: Settings) -> None:
    shapes = jax.eval_shape(built.init_state).params
    size = sum(x.size for x in jax.tree.leaves(shapes))
    if settings.lanczos_steps > size:
        raise UserError(
            f"--lanczos_steps={settings.lanczos_steps}: must be at most {size}, the "
            "number of parameters"
        )


def _add(
    file: File,
    points: Iterable[trajectory.Point],
    number: int,
    tools: trajectory.Instruments,
) -> None:
    with progress.run_bar("curvature", number, distributed.console()) as bar:
        for count, (step, params, model_state, update) in enumerate(points, 1):
            if update is None:
                file.add("spectrum", step, tools.spectrum(params, model_state))
            else:
                values = tools.smoothness(params, model_state, update)
                file.add("smoothness", step, values)
            bar.update(count, note=f"at step {step:,}")


def describe(records: Sequence[Record]) -> str:
    """The ends of the spectra as a table, and the line in words."""
    lines = [f"{'step':>8}  {'smallest eigenvalue':>26}  {'largest':>26}"]
    for record in records:
        if record["kind"] == "spectrum":
            ends = (_number(record, "smallest"), _number(record, "largest"))
            lines.append(f"{record['step']:>8,}  {ends[0]:>26}  {ends[1]:>26}")
    return "\n".join([*lines, "", trajectory.in_words(trajectory.fit(records))])


def _number(record: Record, name: str) -> str:
    value, error = record[name], record[f"{name}_error"]
    if value is None:
        return "not finite"
    is_rounding = error < 1e-5 * abs(value)  # as the products have it too
    return f"{value:.4g}" if is_rounding else f"{value:.4g} +- {error:.1g}"


def main() -> None:
    """Measures as the flags say."""
    values = SPECTRA.value, POINTS.value, LOSS_BATCHES.value, LANCZOS_STEPS.value
    workdir = cli.workdir()
    records = measure(cli.config(), workdir, Settings(*values))
    picture = trajectory_figures.png(records, trajectory.fit(records))
    files.write_atomically(workdir / FIGURE_FILE, picture)
    distributed.say(f"{describe(records)}\n\npicture: {workdir / FIGURE_FILE}")


if __name__ == "__main__":
    cli.run(main)
