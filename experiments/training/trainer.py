"""Trains one model with one optimizer, in one folder."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import optax_heavytail as oht
from experiments import tasks
from experiments.common import distributed, progress, provenance
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.runs import folders, reading, records
from experiments.tasks import PyTree
from experiments.training import (
    aggregate,
    checkpoint_files,
    checkpoints,
    loop,
    optimizers,
    parallel,
    plan,
    program,
)
from experiments.training.checkpoint_files import Resumed
from experiments.training.program import Program

PACKAGES = ("jax", "jaxlib", "optax", "flax", "grain", "tokenizers", "numpy")
MOST_STEPS = 10**7  # a plan has some bytes for each


def resolve(config: Config, source: tasks.Source) -> Config:
    """The config of one run: its optimizer alone, and the hash of its data.

    Where gradients are not summed, it also has how many of them a step has, which
    depends on the devices and changes the result.
    """
    resolved = config.copy_and_resolve_references()
    chosen = optimizers.settings(config).copy_and_resolve_references()
    with resolved.unlocked():
        resolved.optimizer.update(chosen)
        for key in ("optimizers", "compare", "sweep"):
            del resolved[key]
        resolved.data.sha256 = source.sha256
        if resolved.aggregation.name != "mean":
            numbers = parallel.layout(config).gradients(plan.make(config))
            resolved.aggregation.num_gradients = sorted(numbers)
    return resolved


def load(configs: Sequence[Config]) -> tasks.Source:
    """Checks all configs, then reads the data that they share."""

    def prepare() -> tasks.Source:
        for config in configs:
            check(config)
        return tasks.load(configs[0])

    return distributed.by_all(prepare)


def check(config: Config) -> None:
    """Refuses what no run can have, before its data are read."""
    for name in ("steps", "batch_size", "log_every", "eval_every"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]}: must be 1 or more")
    for name in ("every", "keep"):
        if config.checkpoint[name] < 1:
            raise UserError(
                f"config.checkpoint.{name}={config.checkpoint[name]}: must be 1 or more"
            )
    if config.steps > MOST_STEPS:
        raise UserError(f"config.steps={config.steps}: must be at most {MOST_STEPS}")
    if config.seed < 0:
        raise UserError(f"config.seed={config.seed}: must be 0 or more")
    if not 0 <= config.warmup_fraction <= 1:
        raise UserError(
            f"config.warmup_fraction={config.warmup_fraction}: must be in [0, 1]"
        )
    optimizers.settings(config)
    layout = parallel.layout(config)
    aggregate.build(config, layout.gradients(plan.make(config)))


def run(
    config: Config,
    workdir: Path,
    source: tasks.Source,
    built: Program | None,
    with_changes: bool = False,
) -> tuple[reading.Record, Program | None]:
    """Trains in ``workdir``, or reads what a finished run left there.

    An interrupted run goes on from its newest checkpoint.

    Args:
      config: with ``config.optimizer.name`` set.
      workdir: folder of this run.
      source: the data of ``config``.
      built: of a config that differs in nothing but the learning rate, if at hand.
      with_changes: go on with a run of another config.

    Returns:
      The final record, and the program if there is one.
    """
    check(config)
    resolved = resolve(config, source)
    folders.check_agreement(resolved)
    final = distributed.by_main(
        lambda: folders.finished(workdir, resolved, with_changes)
    )
    if final is not None:
        distributed.say(f"{workdir}: already {final['status']}")
        return final, built
    if built is None:
        task = distributed.by_all(lambda: source.build(workdir))
    else:
        task = built.task
    with folders.locked(workdir):
        # What cannot be built leaves no folder behind that is taken.
        built = built or program.build(resolved, task)
        distributed.by_main(lambda: folders.claim(workdir, resolved))
        return _run(built, resolved, workdir, with_changes), built


def _run(
    built: Program, config: Config, workdir: Path, with_changes: bool
) -> reading.Record:
    keeper = checkpoints.Keeper(built, config, workdir)
    resumed = keeper.resume(with_changes)
    changes = distributed.by_main(
        lambda: folders.changes(workdir, config, with_changes)
    )
    check_goes_on(workdir, built.plan.num_steps, resumed, changes)
    step = resumed.progress.step if resumed else None
    distributed.by_main(lambda: folders.start(workdir, config, step))
    distributed.by_main(lambda: built.task.save_assets(workdir))
    distributed.say(describe(built, config))
    label = f"{config.optimizer.name} {config.optimizer.learning_rate:g}"
    with (
        records.recorder(workdir, step or 0) as recorder,
        progress.run_bar(label, built.plan.num_steps, distributed.console()) as bar,
        keeper.opened(),
    ):
        outcome = loop.Loop(built, config, recorder, bar, keeper, resumed).fit()
        final = finish(built, config, workdir, recorder, outcome)
    if outcome.stop:
        raise UserError(
            f"stopped by SIGTERM; {workdir} is {final['status']}, and the same command "
            "does what is left"
        )
    return final


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


def finish(
    built: Program,
    config: Config,
    workdir: Path,
    recorder: records.Recorder,
    outcome: loop.Outcome,
) -> reading.Record:
    """Saves the parameters and writes the final record."""
    state, at = outcome.state, outcome.progress
    if outcome.lost_step:
        ending = {"status": "diverged", "loss": None}
    else:
        save_params(workdir / folders.PARAMS_FOLDER, built.eval_params(state))
        if state.model_state:
            save_params(workdir / folders.MODEL_STATE_FOLDER, state.model_state)
        ending = {"status": "complete", **at.metrics}
    return recorder.write(
        "final",
        outcome.lost_step or built.plan.num_steps,
        **ending,
        **optimizers.skipped(state.opt_state),
        optimizer=config.optimizer.name,
        learning_rate=config.optimizer.learning_rate,
        train_seconds=at.seconds,
        compile_seconds=built.compile_seconds,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        baselines=built.task.baselines,
        data=built.task.description,
        versions=versions(),
        hardware=provenance.hardware(),
        command=provenance.command(),
    )


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


def describe(built: Program, config: Config) -> str:
    """What is trained on what, where, and what decays."""
    params = jax.eval_shape(built.init_state).params
    facts = ", ".join(f"{k} {v}" for k, v in built.task.description.items())
    lines = [f"data: {facts}"]
    if built.layout.mesh.size > 1:
        lines.append(
            f"devices: {built.layout.mesh.size} of {jax.process_count()} process(es), "
            f"config.parallel={config.parallel}, config.fsdp={config.fsdp}"
        )
    if "weight_decay" in config.optimizer:
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
