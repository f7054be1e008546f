"""Says whether the gradient noise of a model is heavy-tailed, and where to clip.

python -m experiments.diagnose --config=experiments/configs/bert_tiny.py \
    --config.optimizer.name=adamw --checkpoint=runs/adamw --workdir=runs/diagnosis
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import (
    cli,
    diagnosis_page,
    distributed,
    folders,
    page,
    points,
    program,
    progress,
    provenance,
    train,
)
from experiments.errors import UserError
from experiments.program import Program
from experiments.types import Config
from optax_heavytail import diagnostics
from optax_heavytail.diagnostics import Diagnosis

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run's folder, or one of its checkpoints/<step>; without it the model is new.",
)
STEPS = flags.DEFINE_list(
    "steps", [], "Steps of the run's checkpoints, 0 for the new model; or all."
)
BATCHES = flags.DEFINE_integer(
    "batches", 512, "How many gradients the noise is measured from.", lower_bound=2
)
PAGE, RESULTS = "diagnosis.html", "diagnosis.json"


def diagnose(
    config: Config,
    workdir: Path,
    checkpoint: str | None = None,
    steps: Sequence[str] = (),
    num_batches: int = 512,
) -> str:
    """Writes ``diagnosis.html`` and ``diagnosis.json``; returns the verdict.

    Args:
      config: of the run, with its optimizer.
      workdir: where to write.
      checkpoint: as in `points.places`.
      steps: likewise.
      num_batches: of which the noise is measured.

    Raises:
      UserError: bad input, a checkpoint of another config, or a damaged one.
    """
    if jax.process_count() > 1:
        raise UserError("a diagnosis is the work of one process; leave --distributed")
    config = _on_one_program(config)
    wanted = points.places(checkpoint, steps)
    source = train.load([config])
    resolved = train.resolve(config, source)
    for place in wanted:
        points.check(place, resolved)
    folders.make(workdir)
    task = source.build(points.run_folder(checkpoint) or workdir)
    built = program.build(resolved, task)
    found = _at_all(wanted, built, resolved, num_batches)
    _write(workdir, resolved, built, found)
    verdict, recommendation = found[-1][1].verdict, found[-1][1].recommendation
    return f"{verdict}\n\n{recommendation.text}\n\n{workdir / PAGE}"


def _on_one_program(config: Config) -> Config:
    """However a run spreads its steps, its gradients are those under ``jit``."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.parallel = "jit"
    return config


def _at_all(
    wanted: Sequence[points.Place], built: Program, config: Config, num_batches: int
) -> list[tuple[int, Diagnosis]]:
    batches, gradients = (
        points.Batches(built, num_batches),
        points.gradients(built, config.seed),
    )
    layers = len(jax.tree.leaves(jax.eval_shape(built.init_state).params))
    found, per_point = [], 2 * num_batches + layers + 1
    total = per_point * len(wanted)
    with progress.run_bar("diagnose", total, distributed.console()) as bar:
        for number, place in enumerate(wanted):
            state = points.read(place, built)

            def show(done: int, _: int, start=number * per_point, step=place.step):
                part = "gradients" if done <= 2 * num_batches else "layers"
                bar.update(start + done, note=f"of step {step:,}: {part}")

            diagnosis = diagnostics.diagnose(
                gradients(state),
                state.params,
                batches,
                seed=config.seed,
                progress=show,
            )
            found.append((place.step, diagnosis))
    return found


def _write(
    workdir: Path, config: Config, built: Program, found: list[tuple[int, Diagnosis]]
) -> None:
    facts = _facts(config, built, found)
    results: dict[str, Any] = {
        "points": [{"step": step, **diagnosis.to_json()} for step, diagnosis in found],
        "facts": facts,
        "config": folders.plain(config),
    }
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    html = diagnosis_page.render(folders.plain(config), found, facts)
    try:
        folders.write_atomically(workdir / RESULTS, text)
        folders.write_atomically(workdir / PAGE, html)
    except OSError as error:
        raise folders.not_writable(workdir, error) from None


def _facts(
    config: Config, built: Program, found: list[tuple[int, Diagnosis]]
) -> dict[str, str]:
    noise = found[-1][1].whole.noise
    versions = train.versions()
    return {
        "batches": f"{len(noise.norms):,} of {config.batch_size:,} rows, those that "
        "the run would see after its last step",
        "parameters": f"{noise.size:,}",
        "data": page.listing(built.task.description),
        "model": page.listing(folders.plain(config)["model"]),
        "hardware": provenance.hardware(),
        "versions": page.listing(versions),
        "command": provenance.command(),
    }


def main() -> None:
    """Diagnoses as the flags say."""
    distributed.say(
        diagnose(
            cli.config(), cli.workdir(), CHECKPOINT.value, STEPS.value, BATCHES.value
        )
    )


if __name__ == "__main__":
    cli.run(main)
