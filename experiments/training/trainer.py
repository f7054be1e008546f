"""Trains one model with one optimizer, in one folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import optax_heavytail as oht
from experiments import tasks
from experiments.common import distributed, progress, provenance
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.runs import folders, records
from experiments.runs.outcome import Outcome
from experiments.tasks import PyTree
from experiments.training import checkpoint_files, checkpoints, loop, optimizers, room
from experiments.training.checkpoint_files import Resumed
from experiments.training.job import Job
from experiments.training.programs import Program, Programs, predict
from experiments.training.steps import TrainState

PACKAGES = ("jax", "jaxlib", "optax", "flax", "grain", "tokenizers", "numpy")


def prepare(configs: Sequence[Config]) -> tuple[list[Job], Programs]:
    """Checks all configs, and only then reads the data that they share.

    Raises:
      UserError: a config that no run can have, or data that are none.
    """

    def checked() -> list[Job]:
        jobs = [Job.of(config) for config in configs]
        for job in {job.program_key: job for job in jobs}.values():
            smallest = tasks.smallest(job.config)
            if smallest is not None:
                room.check(job, smallest)
        return jobs

    jobs = distributed.by_all(checked)
    source = distributed.by_all(lambda: tasks.load(jobs[0].config))
    return [job.on(source) for job in jobs], Programs(source)


def run(
    job: Job, workdir: Path, programs: Programs, with_changes: bool = False
) -> Outcome:
    """Trains in ``workdir``, or reads what a finished run left there.

    An interrupted run goes on from its newest checkpoint.

    Args:
      job: on the data of ``programs``.
      workdir: folder of this run.
      programs: the data, and the program of the last run, which may be that of this.
      with_changes: go on with a run of another config.

    Raises:
      UserError: what the config, the folder or the disk does not allow.
    """
    folders.check_agreement(job.config)
    final = distributed.by_main(
        lambda: folders.finished(workdir, job.config, with_changes)
    )
    damage = ""
    if final is not None:
        damage = distributed.by_main(lambda: folders.damage(workdir, final))
        if not damage:
            distributed.say(f"{workdir}: already {final['status']}")
            return Outcome.of(final)
    task = programs.task(job, workdir)
    with folders.locked(workdir):
        # What cannot be built leaves no folder behind that is taken.
        program = programs.compiled(job, task)
        distributed.by_main(lambda: folders.claim(workdir, job.config))
        return _train(job, program, workdir, with_changes, damage)


def _train(
    job: Job, program: Program, workdir: Path, with_changes: bool, damage: str
) -> Outcome:
    keeper = checkpoints.Keeper(program, job.config, workdir)
    resumed = keeper.resume(with_changes)
    changes = distributed.by_main(
        lambda: folders.changes(workdir, job.config, with_changes)
    )
    check_goes_on(workdir, job.plan.num_steps, resumed, changes)
    check_restored(workdir, resumed, damage)
    step = resumed.progress.step if resumed else None
    left = distributed.by_main(lambda: folders.start(workdir, job.config, step))
    if resumed is not None:
        count_records(workdir, resumed, left)
    distributed.by_main(lambda: program.task.save_assets(workdir))
    distributed.say(describe(job, program))
    label = f"{job.config.optimizer.name} {job.learning_rate:g}"
    with (
        records.recorder(workdir, step or 0) as recorder,
        progress.run_bar(label, job.plan.num_steps, distributed.console()) as bar,
        keeper.opened(),
    ):
        trained = loop.Loop(job, program, recorder, bar, keeper, resumed)
        outcome = trained.fit()
        if outcome.is_complete:
            save(program, trained.state, workdir)
        record = recorder.write(
            "final", outcome.step, **facts(job, program, trained.state, outcome)
        )
    if outcome.is_stopped:
        raise UserError(
            f"stopped by SIGTERM; {workdir} is {outcome.status}, and the same command "
            "does what is left"
        )
    return Outcome.of(record)


def check_goes_on(
    workdir: Path, num_steps: int, resumed: Resumed | None, changes: list[str]
) -> None:
    """Refuses a run that has no step left, or whose changes are to go on from nothing.

    Raises:
      UserError: it says why.
    """
    lines = "; ".join(changes)
    if resumed is None:
        if changes:
            raise UserError(
                f"--resume_with_changes: {workdir} has no checkpoint to go on from; "
                f"choose another folder for: {lines}"
            )
        return
    at = resumed.progress
    if not at.can_end_at(num_steps):
        raise UserError(
            f"config.steps: the run now ends at step {num_steps}, and the checkpoint "
            f"is of step {at.step}"
        )
    if changes and at.step == num_steps:
        raise UserError(
            f"--resume_with_changes: {workdir} has all its {num_steps} steps; none is "
            f"left to train with: {lines}"
        )


def check_restored(workdir: Path, resumed: Resumed | None, damage: str) -> None:
    """Says what a finished run has lost, and where it comes from now.

    Raises:
      UserError: there is no checkpoint that has it.
    """
    if not damage:
        return
    if resumed is None:
        raise UserError(
            f"{workdir}: {damage}, and no checkpoint is there to make it from; choose "
            "another folder"
        )
    distributed.warn(
        f"{workdir}: {damage}; it is made again from the checkpoint of step "
        f"{resumed.progress.step}"
    )


def count_records(workdir: Path, resumed: Resumed, left: int) -> None:
    """Says if records are gone that there were when the checkpoint was written."""
    at = resumed.progress
    if at.records is not None and left != at.records:
        distributed.warn(
            f"{workdir / folders.METRICS_FILE} has {left} of the {at.records} records "
            f"up to step {at.step}; the others cannot be made again"
        )
    at.records = left


def save(program: Program, state: TrainState, workdir: Path) -> None:
    """Saves the parameters to use, and statistics and predictions if there are any.

    Raises:
      UserError: not writable.
    """
    params, to_text = program.eval_params(state), program.task.answers
    save_params(workdir / folders.PARAMS_FOLDER, params)
    if state.model_state:
        save_params(workdir / folders.MODEL_STATE_FOLDER, state.model_state)
    if to_text is not None:
        answers = to_text(predict(program, params, state.model_state))
        distributed.by_main(lambda: folders.write_predictions(workdir, answers))


def facts(
    job: Job, program: Program, state: TrainState, outcome: Outcome
) -> dict[str, Any]:
    """What the final record of a run says."""
    return {
        "status": outcome.status,
        "loss": None,
        **outcome.metrics,
        **optimizers.skipped(state.opt_state),
        "optimizer": job.config.optimizer.name,
        "learning_rate": job.learning_rate,
        "train_seconds": outcome.seconds,
        "compile_seconds": program.compile_seconds,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "baselines": program.task.baselines,
        "data": program.task.description,
        "versions": versions(),
        "hardware": provenance.hardware(),
        "command": provenance.command(),
    }


def save_params(folder: Path, params: PyTree) -> None:
    """Saves arrays with orbax, whole: they can be restored on any devices.

    Raises:
      UserError: not writable.
    """
    whole = jax.tree.map(_on_host, params)
    with (
        checkpoint_files.one_line_failures(folder),
        ocp.StandardCheckpointer() as saver,
    ):
        # A run that was killed in between has left one.
        saver.save(folder.absolute(), whole, force=True)


def _on_host(x: jax.Array) -> np.ndarray:
    if x.is_fully_addressable:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def describe(job: Job, program: Program) -> str:
    """What is trained on what, where, and what decays."""
    config, devices = job.config, job.layout.mesh.size
    facts = ", ".join(f"{k} {v}" for k, v in program.task.description.items())
    lines = [f"data: {facts}"]
    if devices > 1:
        lines.append(
            f"devices: {devices} of {jax.process_count()} process(es), "
            f"config.parallel={config.parallel}, config.fsdp={config.fsdp}"
        )
    if "weight_decay" in config.optimizer:
        params = jax.eval_shape(program.init_state).params
        coverage = oht.mask_coverage(oht.decay_mask(params), params)
        lines.append(f"weight decay: {coverage}")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        **provenance.versions(PACKAGES),
        "optax_heavytail": oht.__version__,
        "commit": provenance.commit(),
    }
