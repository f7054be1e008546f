"""Trains one model with one optimizer.

python -m experiments.train --config=experiments/configs/bert_tiny.py \
    --workdir=runs/adamw --config.optimizer.name=adamw
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import optax_heavytail as oht
from experiments import cli, folders, optimizers, progress, provenance, runs, tasks
from experiments.errors import UserError
from experiments.tasks import Batch, PyTree, Task
from experiments.types import Config

PACKAGES = ("jax", "jaxlib", "optax", "flax", "grain", "tokenizers", "numpy")


class TrainState(NamedTuple):
    """What training changes."""

    params: PyTree
    opt_state: PyTree
    step: jax.Array  # (), int32: finished steps


class Window(NamedTuple):
    """Losses since the last record; read on the host at records alone."""

    loss_sum: jax.Array  # (), float32, of the finite ones
    num_losses: jax.Array  # (), int32: how many these are
    lost_step: jax.Array  # (), int32: first step that ends the run, or 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A task and its compiled steps, usable for every peak learning rate."""

    task: Task
    init_state: Callable[[], TrainState]
    train_step: Callable[..., tuple[TrainState, Window]]
    eval_step: Callable[[PyTree, Batch], dict[str, jax.Array]]
    eval_params: Callable[[TrainState], PyTree]  # those to evaluate and to keep
    compile_seconds: float


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


def check(config: Config) -> None:
    """Refuses counts that no run can have."""
    for name in ("steps", "batch_size", "log_every", "eval_every"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]}: must be 1 or more")
    if config.seed < 0:
        raise UserError(f"config.seed={config.seed}: must be 0 or more")
    if not 0 <= config.warmup_fraction <= 1:
        raise UserError(
            f"config.warmup_fraction={config.warmup_fraction}: must be in [0, 1]"
        )


def schedule(steps: int, warmup_fraction: float) -> optax.Schedule:
    """Linear warm-up to 1, then a cosine to 0: a factor on the peak rate."""
    warmup = min(round(warmup_fraction * steps), steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    shape: optax.Schedule,
    step_key: jax.Array,
) -> Callable[..., tuple[TrainState, Window]]:
    """Returns the pure step (state, window, batch, peak rate) -> (state, window)."""

    def train_step(
        state: TrainState, window: Window, batch: Batch, peak: jax.Array
    ) -> tuple[TrainState, Window]:
        key = jax.random.fold_in(step_key, state.step)
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, batch, key
        )
        opt_state = optimizers.with_learning_rate(
            state.opt_state, peak * shape(state.step)
        )
        updates, opt_state = optimizer.update(
            grads,
            opt_state,
            state.params,
            grad_fn=lambda params: jax.grad(task.loss, has_aux=True)(
                params, batch, key
            )[0],
        )
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        is_finite = jnp.isfinite(loss)
        is_lost = optimizers.is_lost(opt_state, is_finite)
        window = Window(
            window.loss_sum + jnp.where(is_finite, loss, 0),
            window.num_losses + is_finite.astype(jnp.int32),
            jnp.where(is_lost & (window.lost_step == 0), step, window.lost_step),
        )
        return TrainState(params, opt_state, step), window

    return train_step


def build_program(config: Config, task: Task) -> Program:
    """Compiles the steps of a resolved config."""
    optimizer = optimizers.build(config.optimizer)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))

    @jax.jit
    def init_state() -> TrainState:
        params = task.init_params(init_key)
        return TrainState(params, optimizer.init(params), jnp.zeros([], jnp.int32))

    started = time.perf_counter()
    shapes = jax.eval_shape(init_state)
    batch = next(task.train_batches(0))
    shape = schedule(config.steps, config.warmup_fraction)
    step = make_train_step(task, optimizer, shape, step_key)
    train_step = (
        jax.jit(step, donate_argnums=(0, 1))
        .lower(shapes, new_window(), batch, jnp.float32(0))
        .compile()
    )
    eval_step = (
        jax.jit(task.eval_sums)
        .lower(shapes.params, next(iter(task.eval_batches())))
        .compile()
    )
    init_state()

    def eval_params(state: TrainState) -> PyTree:
        transform = config.optimizer.transform
        return optimizers.eval_params(transform, state.opt_state, state.params)

    seconds = time.perf_counter() - started
    return Program(task, init_state, train_step, eval_step, eval_params, seconds)


def new_window() -> Window:
    """An empty window."""
    zero = jnp.zeros([], jnp.int32)
    return Window(jnp.zeros([]), zero, jnp.copy(zero))


def evaluate(program: Program, params: PyTree) -> dict[str, float]:
    """Metrics over all validation batches."""
    sums = [program.eval_step(params, batch) for batch in program.task.eval_batches()]
    totals = jax.tree.map(lambda *values: float(np.sum(values)), *sums)
    weight = totals.pop("weight")
    return {name: total / weight for name, total in totals.items()}


@dataclasses.dataclass
class Outcome:
    """How the loop ended."""

    state: TrainState
    metrics: dict[str, float]
    train_seconds: float
    lost_step: int = 0  # the step that ended the run early, or 0


def fit(
    program: Program,
    config: Config,
    recorder: folders.Recorder,
    bar: progress.RunBar,
) -> Outcome:
    """Runs the steps, with records and evaluations where the config wants them.

    The device keeps the losses, so that no step waits for the host: one that ends the
    run is noticed at the next record, at most ``config.log_every`` steps later.
    """
    rate = config.optimizer.learning_rate
    shape = schedule(config.steps, config.warmup_fraction)
    state, window, metrics = program.init_state(), new_window(), {}
    batches = program.task.train_batches(0)
    recorded, seconds, total_seconds = 0, 0.0, 0.0
    started = time.perf_counter()
    for step in range(1, config.steps + 1):
        state, window = program.train_step(
            state, window, next(batches), np.float32(rate)
        )
        is_last = step == config.steps
        wants_eval = is_last or step % config.eval_every == 0
        if not (wants_eval or step % config.log_every == 0):
            continue
        num_losses, lost_step = int(window.num_losses), int(window.lost_step)
        seconds = time.perf_counter() - started
        total_seconds += seconds
        if lost_step:
            return Outcome(state, metrics, total_seconds, lost_step)
        if num_losses:  # none: all were skipped, and the limit is further on
            loss = float(window.loss_sum) / num_losses
            recorder.write(
                "train",
                step,
                loss=loss,
                learning_rate=rate * float(np.asarray(shape(step - 1))),
                steps_per_second=(step - recorded) / seconds,
                **optimizers.skipped(state.opt_state),
            )
            bar.update(step, loss)
        if wants_eval:
            metrics = evaluate(program, program.eval_params(state))
            if not math.isfinite(metrics["loss"]):
                return Outcome(state, metrics, total_seconds, step)
            recorder.write("eval", step, **metrics)
        recorded, window, started = step, new_window(), time.perf_counter()
    return Outcome(state, metrics, total_seconds)


def run(
    config: Config, workdir: Path, source: tasks.Source, program: Program | None
) -> tuple[runs.Record, Program | None]:
    """Trains in ``workdir``, or reads what a finished run left there.

    Args:
      config: with ``config.optimizer.name`` set.
      workdir: folder of this run.
      source: the data of ``config``.
      program: of a config that differs in nothing but the learning rate, if at hand.

    Returns:
      The final record, and the program if there is one.
    """
    check(config)
    resolved = resolve(config, source)
    final = folders.finished(workdir, resolved)
    if final is not None:
        print(f"{workdir}: already {final['status']}", flush=True)
        return final, program
    # A task that cannot be built leaves no folder behind that is taken.
    task = source.build(workdir) if program is None else program.task
    with folders.locked(workdir):
        folders.claim(workdir, resolved)
        program = program or build_program(resolved, task)
        return _run(program, resolved, workdir), program


def _run(program: Program, config: Config, workdir: Path) -> runs.Record:
    program.task.save_assets(workdir)
    print(describe(program, config), flush=True)
    label = f"{config.optimizer.name} {config.optimizer.learning_rate:g}"
    with (
        folders.Recorder(workdir) as recorder,
        progress.run_bar(label, config.steps) as bar,
    ):
        outcome = fit(program, config, recorder, bar)
        return finish(program, config, workdir, recorder, outcome)


def finish(
    program: Program,
    config: Config,
    workdir: Path,
    recorder: folders.Recorder,
    outcome: Outcome,
) -> runs.Record:
    """Saves the parameters and writes the final record."""
    if outcome.lost_step:
        ending = {"status": "diverged", "loss": None}
    else:
        params = program.eval_params(outcome.state)
        save_params(workdir / folders.PARAMS_FOLDER, params)
        ending = {"status": "complete", **outcome.metrics}
    return recorder.write(
        "final",
        outcome.lost_step or config.steps,
        **ending,
        **optimizers.skipped(outcome.state.opt_state),
        optimizer=config.optimizer.name,
        learning_rate=config.optimizer.learning_rate,
        train_seconds=outcome.train_seconds,
        compile_seconds=program.compile_seconds,
        parameters=sum(x.size for x in jax.tree.leaves(outcome.state.params)),
        baselines=program.task.baselines,
        data=program.task.description,
        versions=versions(),
        hardware=provenance.hardware(),
        command=provenance.command(),
    )


def save_params(folder: Path, params: PyTree) -> None:
    """Saves parameters with orbax."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), params)


def describe(program: Program, config: Config) -> str:
    """What is trained on what, and what decays."""
    params = jax.eval_shape(program.init_state).params
    facts = ", ".join(f"{k} {v}" for k, v in program.task.description.items())
    if "weight_decay" not in config.optimizer:
        return f"data: {facts}"
    coverage = oht.mask_coverage(oht.decay_mask(params), params)
    return f"data: {facts}\nweight decay: {coverage}"


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
    source = tasks.load(config)
    final, _ = run(config, cli.workdir(), source, None)
    if final["status"] == "diverged":
        raise UserError(
            f"non-finite loss at step {final['step']}; the metrics so far are in "
            f"{cli.workdir() / folders.METRICS_FILE}"
        )
    print(
        f"validation loss {final['loss']:.3f} {config.report.loss_unit}, "
        f"{config.report.accuracy_name} {final['accuracy']:.1%}, "
        f"trained {final['train_seconds']:.0f} s"
    )


if __name__ == "__main__":
    cli.run(main)
