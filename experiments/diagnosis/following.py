"""How the curvature of the loss changes while a model trains."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.common import distributed, fields, json_files, progress, provenance
from experiments.common.errors import UserError
from experiments.common.measurements import Measurements
from experiments.common.types import Config
from experiments.diagnosis import trajectory
from experiments.diagnosis.trajectory import Record
from experiments.runs import folders
from experiments.training import room, trainer
from experiments.training.programs import Program

RECORDS_FILE, FIGURE_FILE = "curvature.jsonl", "curvature.png"
HEADER = ("header", None)
FEWEST_STEPS = 2
NUMBER = fields.number(-math.inf).or_none()  # None: was not finite
NUMBERS = fields.several(fields.several(NUMBER))  # of each probe
STEP = {"step": fields.integer(0)}
ENDS = ("smallest", "smallest_error", "largest", "largest_error")
RECORDS = {
    "header": {"settings": fields.mapping()},
    "spectrum": {
        **STEP,
        **dict.fromkeys(ENDS, NUMBER),
        **dict.fromkeys(("nodes", "weights", "errors"), NUMBERS),
    },
    "smoothness": {**STEP, **dict.fromkeys(("gradient_norm", "smoothness"), NUMBER)},
}


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


def measurements(path: Path, settings: Settings) -> Measurements:
    """The measurements in a file, if they were made with these settings.

    Raises:
      UserError: the file is of other settings, or not one of this program.
    """
    made = Measurements(
        path, lambda record: (record["kind"], record.get("step")), _check
    )
    wanted = settings._asdict()
    there = made[HEADER].get("settings") if HEADER in made else None
    if made.records and there != wanted:
        raise UserError(
            f"{path}: has measurements with {there}, not {wanted}; choose another "
            "folder, or delete the file"
        )
    return made


def _check(record: Record, where: str) -> None:
    fields.check(record, {"kind": fields.choice(*RECORDS)}, where)
    fields.check(record, RECORDS[record["kind"]], where)


def _missing(made: Measurements, kind: str, steps: Sequence[int]) -> list[int]:
    return [step for step in steps if (kind, step) not in made]


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
    (job,), compiler = trainer.prepare([config])
    if job.plan.num_steps < FEWEST_STEPS:
        raise UserError(
            f"config.steps={config.steps}: must be {FEWEST_STEPS} or more; the first "
            "update has the rate 0, and is not measured"
        )
    # Refuses the folder of another config.
    folders.finished(workdir, job.config, with_changes=None)
    with folders.locked(workdir):
        made = measurements(workdir / RECORDS_FILE, settings)
        end = job.plan.num_steps
        spectra = _missing(made, "spectrum", settings.spectrum_steps(end))
        updates = _missing(made, "smoothness", settings.smoothness_steps(end))
        if spectra or updates:
            program = compiler.compiled(job, compiler.task(job, workdir))
            _check_size(program, settings)
            folders.claim(workdir, job.config)
            program.task.save_assets(workdir)
            if not made.records:
                header = {"kind": HEADER[0], "settings": settings._asdict()}
                made.add({**header, **_origin()})
            tools = trajectory.Instruments(
                program, settings.loss_batches, settings.lanczos_steps, config.seed
            )
            state = program.init_state()
            points = trajectory.follow(job, program, state, spectra, updates)
            _add(made, points, len(spectra) + len(updates), tools)
        return made.records


def _check_size(program: Program, settings: Settings) -> None:
    shapes = jax.eval_shape(program.init_state).params
    size = sum(x.size for x in jax.tree.leaves(shapes))
    batch = next(program.task.train_batches(0))
    room.check_bytes(
        f"--loss_batches={settings.loss_batches}",
        settings.loss_batches * sum(x.nbytes for x in jax.tree.leaves(batch)),
        program.layout,
    )
    if settings.lanczos_steps > size:
        raise UserError(
            f"--lanczos_steps={settings.lanczos_steps}: must be at most {size}, the "
            "number of parameters"
        )
    room.check_bytes(
        f"--lanczos_steps={settings.lanczos_steps}",
        4 * size * settings.lanczos_steps,  # all directions are kept
        program.layout,
    )


def _add(
    made: Measurements,
    points: Iterable[trajectory.Point],
    number: int,
    tools: trajectory.Instruments,
) -> None:
    with progress.run_bar("curvature", number, distributed.console()) as bar:
        for count, (step, params, model_state, update) in enumerate(points, 1):
            if update is None:
                kind, values = "spectrum", tools.spectrum(params, model_state)
            else:
                kind = "smoothness"
                values = tools.smoothness(params, model_state, update)
            made.add({"kind": kind, "step": step, **json_files.finite(values)})
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
