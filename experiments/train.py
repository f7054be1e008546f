"""Trains one model with one optimizer.

python -m experiments.train --config=experiments/configs/bert_tiny.py \
    --workdir=runs/adamw --config.optimizer.name=adamw
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import optax_heavytail as oht
from experiments import (
    aggregate,
    cli,
    distributed,
    folders,
    optimizers,
    parallel,
    plan,
    program,
    progress,
    provenance,
    runs,
    tasks,
)
from experiments.errors import UserError
from experiments.program import Program
from experiments.steps import TrainState
from experiments.tasks import PyTree
from experiments.types import Config

PACKAGES = ("jax", "jaxlib", "optax", "flax", "grain", "tokenizers", "numpy")
MOST_STEPS = 10**7  # a plan has some bytes for each


def resolve(config: Config, source: tasks.Source) -> Config:
    """The config of one run: its optimizer alone, and the hash of its data."""
    resolved = config.copy_and_resolve_references()
    chosen = optimizers.settings(config).copy_and_resolve_references()
    with resolved.unlocked():
        resolved.optimizer.update(chosen)
        for key in ("optimizers", "compare", "sweep"):
            del resolved[key]
        resolved.data.sha256 = source.sha256
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


@dataclasses.dataclass
class Outcome:
    """How the loop ended."""

    state: TrainState
    metrics: dict[str, float]
    train_seconds: float
    lost_step: int = 0  # the step that ended the run early, or 0


def fit(
    built: Program,
    config: Config,
    recorder: folders.Recorder,
    bar: progress.RunBar,
) -> Outcome:
    """Runs the steps, with records and evaluations where the config wants them.

    The device keeps the losses, so that no step waits for the host: one that ends the
    run is noticed at the next record, at most ``config.log_every`` steps later.
    """
    rate, its_plan, layout = config.optimizer.learning_rate, built.plan, built.layout
    state = layout.enter(built.init_state())
    window = layout.enter(built.new_window())
    metrics: dict[str, float] = {}
    microbatches = built.task.train_batches(0)
    recorded, total_seconds = 0, 0.0
    started = time.perf_counter()
    for step in range(1, its_plan.num_steps + 1):
        count = int(its_plan.microbatches[step - 1])
        batch = program.stack([next(microbatches) for _ in range(count)])
        state, window = layout.settle(
            built.train_step(count)(
                state, window, layout.place(batch), np.float32(rate)
            )
        )
        is_last = step == its_plan.num_steps
        wants_eval = is_last or step % config.eval_every == 0
        if not (wants_eval or step % config.log_every == 0):
            continue
        seen = layout.leave(window)
        num_losses, lost_step = int(seen.num_losses), int(seen.lost_step)
        seconds = time.perf_counter() - started
        total_seconds += seconds
        if lost_step:
            return Outcome(layout.leave(state), metrics, total_seconds, lost_step)
        if num_losses:  # none: all were skipped, and the limit is further on
            loss = float(seen.loss_sum) / num_losses
            recorder.write(
                "train",
                step,
                loss=loss,
                learning_rate=rate * float(np.asarray(its_plan.factor(step - 1))),
                steps_per_second=(step - recorded) / seconds,
                **optimizers.skipped(layout.leave(state.opt_state)),
            )
            bar.update(step, loss)
        if wants_eval:
            metrics = evaluate(built, layout.leave(state))
            if not math.isfinite(metrics["loss"]):
                return Outcome(layout.leave(state), metrics, total_seconds, step)
            recorder.write("eval", step, **metrics)
        window = layout.enter(built.new_window())
        recorded, started = step, time.perf_counter()
    return Outcome(layout.leave(state), metrics, total_seconds)


def evaluate(built: Program, state: TrainState) -> dict[str, float]:
    """Metrics of what the optimizer has found so far."""
    return program.evaluate(built, built.eval_params(state), state.model_state)


def run(
    config: Config, workdir: Path, source: tasks.Source, built: Program | None
) -> tuple[runs.Record, Program | None]:
    """Trains in ``workdir``, or reads what a finished run left there.

    Args:
      config: with ``config.optimizer.name`` set.
      workdir: folder of this run.
      source: the data of ``config``.
      built: of a config that differs in nothing but the learning rate, if at hand.

    Returns:
      The final record, and the program if there is one.
    """
    check(config)
    resolved = resolve(config, source)
    folders.check_same(resolved)
    final = distributed.by_main(lambda: folders.finished(workdir, resolved))
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
        return _run(built, resolved, workdir), built


def _run(built: Program, config: Config, workdir: Path) -> runs.Record:
    if distributed.is_main():
        built.task.save_assets(workdir)
    distributed.say(describe(built, config))
    label = f"{config.optimizer.name} {config.optimizer.learning_rate:g}"
    with (
        folders.recorder(workdir) as recorder,
        progress.run_bar(label, built.plan.num_steps, distributed.console()) as bar,
    ):
        outcome = fit(built, config, recorder, bar)
        return finish(built, config, workdir, recorder, outcome)


def finish(
    built: Program,
    config: Config,
    workdir: Path,
    recorder: folders.Recorder,
    outcome: Outcome,
) -> runs.Record:
    """Saves the parameters and writes the final record."""
    state = outcome.state
    if outcome.lost_step:
        ending = {"status": "diverged", "loss": None}
    else:
        save_params(workdir / folders.PARAMS_FOLDER, built.eval_params(state))
        if state.model_state:
            save_params(workdir / folders.MODEL_STATE_FOLDER, state.model_state)
        ending = {"status": "complete", **outcome.metrics}
    return recorder.write(
        "final",
        outcome.lost_step or built.plan.num_steps,
        **ending,
        **optimizers.skipped(state.opt_state),
        optimizer=config.optimizer.name,
        learning_rate=config.optimizer.learning_rate,
        train_seconds=outcome.train_seconds,
        compile_seconds=built.compile_seconds,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        baselines=built.task.baselines,
        data=built.task.description,
        versions=versions(),
        hardware=provenance.hardware(),
        command=provenance.command(),
    )


def save_params(folder: Path, params: PyTree) -> None:
    """Saves arrays with orbax, whole: they can be restored on any devices."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), jax.tree.map(_on_host, params))


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


def main() -> None:
    """Trains as the flags say."""
    config = cli.config()
    source = load([config])
    final, _ = run(config, cli.workdir(), source, None)
    if final["status"] == "diverged":
        raise UserError(
            f"non-finite loss at step {final['step']}; the metrics so far are in "
            f"{cli.workdir() / folders.METRICS_FILE}"
        )
    distributed.say(
        f"validation loss {final['loss']:.3f} {config.report.loss_unit}, "
        f"{config.report.accuracy_name} {final['accuracy']:.1%}, "
        f"trained {final['train_seconds']:.0f} s"
    )


if __name__ == "__main__":
    cli.run(main)
