"""Whether the gradient noise of a model is heavy-tailed, and where to clip."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.common import distributed, fields, files, progress, provenance
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.configs import fields as tables
from experiments.diagnosis import curvature, curvature_figures, noise_page, points
from experiments.diagnosis.curvature import Curvature
from experiments.reporting import page
from experiments.runs import folders
from experiments.training import room, trainer
from experiments.training.job import Job
from experiments.training.programs import Program
from optax_heavytail import diagnostics
from optax_heavytail.diagnostics import Diagnosis

PAGE, RESULTS = "diagnosis.html", "diagnosis.json"
FEWEST_BATCHES = 100  # for `diagnostics.estimate_tail`
# Numbers of each layer and batch: `diagnostics.collect_noise` sketches.
MOST_KEPT = 2048


class AtStep(NamedTuple):
    """What there is to say of one point of training."""

    step: int
    diagnosis: Diagnosis
    curvature: Curvature | None


def diagnose(
    config: Config,
    workdir: Path,
    checkpoint: str | None = None,
    steps: Sequence[str] = (),
    num_batches: int = 512,
    with_curvature: bool = True,
) -> str:
    """Writes ``diagnosis.html`` and ``diagnosis.json``; returns the verdict.

    Args:
      config: of the run, with its optimizer.
      workdir: where to write.
      checkpoint: as in `points.places`.
      steps: likewise.
      num_batches: of which the noise is measured.
      with_curvature: whether to look at the Hessian too.

    Raises:
      UserError: bad input, a checkpoint of another config, or a damaged one.
    """
    if jax.process_count() > 1:
        raise UserError("a diagnosis is the work of one process; leave --distributed")
    fields.check(config, tables.RUN)
    config = _on_one_program(config)
    wanted = points.places(checkpoint, steps)
    (job,), compiler = trainer.prepare([config])
    newest = points.places(checkpoint, ()) if checkpoint else []
    for place in {*wanted, *newest}:
        points.check(place, job.config)
    for name in (RESULTS, PAGE):
        files.check_target(workdir / name)
    task = compiler.task(job, points.run_folder(checkpoint) or workdir)
    program = compiler.compiled(job, task)
    _check_batches(num_batches, program)
    at_steps = _at_all(wanted, job, program, num_batches, with_curvature)
    _write(workdir, job.config, program, at_steps)
    last = at_steps[-1].diagnosis
    return f"{last.verdict}\n\n{last.recommendation.text}\n\n{workdir / PAGE}"


def _check_batches(num_batches: int, program: Program) -> None:
    """Says before the work what comes of too few batches, or of too many.

    Raises:
      UserError: what is kept of so many does not fit into memory.
    """
    if num_batches < FEWEST_BATCHES:
        distributed.warn(
            f"--batches={num_batches}: too few to tell a tail index from; "
            f"{FEWEST_BATCHES} or more are needed"
        )
    leaves = jax.tree.leaves(jax.eval_shape(program.init_state).params)
    numbers = sum(min(leaf.size, MOST_KEPT) for leaf in leaves) + MOST_KEPT
    needed = 8 * numbers * num_batches
    room.check_bytes(f"--batches={num_batches}", needed, program.layout)


def _on_one_program(config: Config) -> Config:
    """However a run spreads its steps, its gradients are those under ``jit``."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.parallel = "jit"
    return config


def _at_all(
    wanted: Sequence[points.Place],
    job: Job,
    program: Program,
    num_batches: int,
    with_curvature: bool,
) -> list[AtStep]:
    batches = points.Batches(program, num_batches)
    gradients = points.gradients(program, job.config.seed)
    probe = curvature.Probe(job, program) if with_curvature else None
    layers = len(jax.tree.leaves(jax.eval_shape(program.init_state).params))
    of_noise = 2 * num_batches + layers + 1
    per_point = of_noise + (curvature.NUM_STEPS + 1 if with_curvature else 0)
    at_steps = []
    with progress.run_bar(
        "diagnose", per_point * len(wanted), distributed.console()
    ) as bar:
        for number, place in enumerate(wanted):
            state, start = points.read(place, program), number * per_point

            def show(done: int, _: int, start=start, step=place.step):
                part = "gradients" if done <= 2 * num_batches else "layers"
                bar.update(start + done, note=f"of step {step:,}: {part}")

            diagnosis = diagnostics.diagnose(
                gradients(state),
                state.params,
                batches,
                seed=job.config.seed,
                progress=show,
            )
            counted = itertools.count(start + of_noise + 1)

            def count(counted=counted, step=place.step):
                bar.update(next(counted), note=f"of step {step:,}: curvature")

            bent = probe.at(state, count) if probe is not None else None
            at_steps.append(AtStep(place.step, diagnosis, bent))
    return at_steps


def _write(
    workdir: Path, config: Config, program: Program, at_steps: Sequence[AtStep]
) -> None:
    """The results first: should a picture fail, nothing that was measured is lost."""
    facts = _facts(config, program, at_steps[-1].diagnosis)
    results: dict[str, Any] = {
        "points": [_point(one) for one in at_steps],
        "facts": facts,
        "config": folders.plain(config),
    }
    bent = [(one.step, one.curvature) for one in at_steps if one.curvature is not None]
    if bent:
        line = curvature.fit([here for _, here in bent])
        results["smoothness_fit"] = dataclasses.asdict(line)
    _write_file(workdir, RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    html = noise_page.render(
        folders.plain(config),
        [(one.step, one.diagnosis) for one in at_steps],
        facts,
        curvature_figures.pictures(bent) if bent else (),
        curvature.in_words([here for _, here in bent]) if bent else {},
    )
    _write_file(workdir, PAGE, html)


def _write_file(workdir: Path, name: str, text: str) -> None:
    try:
        files.write_atomically(workdir / name, text)
    except OSError as error:
        raise files.not_writable(workdir, error) from None


def _point(there: AtStep) -> dict[str, Any]:
    bent = there.curvature
    return {
        "step": there.step,
        **there.diagnosis.to_json(),
        "curvature": None if bent is None else bent.to_json(),
    }


def _facts(config: Config, program: Program, diagnosis: Diagnosis) -> dict[str, str]:
    noise = diagnosis.whole.noise
    return {
        "batches": f"{len(noise.norms):,} of {config.batch_size:,} rows, those that "
        "the run would see after its last step",
        "parameters": f"{noise.size:,}",
        "data": page.listing(program.task.description),
        "model": page.listing(folders.plain(config)["model"]),
        "hardware": provenance.hardware(),
        "versions": page.listing(trainer.versions()),
        "command": provenance.command(),
    }
