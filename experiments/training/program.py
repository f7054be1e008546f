"""A task and its compiled steps on the devices at hand."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.common.types import Config
from experiments.tasks import Batch, PyTree, Task
from experiments.training import aggregate, optimizers, parallel, plan, steps
from experiments.training.steps import TrainState, Window

Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run needs, usable for every peak learning rate.

    States and windows are global arrays; `parallel.Layout.enter` and ``leave`` change
    them to what the steps take and return.
    """

    task: Task
    plan: plan.Plan
    layout: parallel.Layout
    init_state: Callable[[], TrainState]
    new_window: Callable[[], Window]
    train_step: Callable[[int], Callable[..., tuple[TrainState, Window]]]
    eval_step: Callable[[PyTree, PyTree, Batch], Sums]
    predict_step: Callable[[PyTree, PyTree, Batch], Sums] | None
    eval_params: Callable[[TrainState], PyTree]  # those to evaluate and to keep
    compile_seconds: float


def build(config: Config, task: Task) -> Program:
    """Compiles the steps of a resolved config."""
    started = time.perf_counter()
    layout, its_plan = parallel.layout(config), plan.make(config)
    optimizer = optimizers.build(config.optimizer, config.monitor)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))

    def new_state() -> TrainState:
        return steps.new_state(task, optimizer, init_key)

    state, window = jax.eval_shape(new_state), jax.eval_shape(steps.new_window)
    shardings = layout.state_shardings(state)
    step = steps.make_train_step(
        task,
        optimizer,
        its_plan.factor,
        step_key,
        layout.axis_name,
        aggregate.build(config, layout.gradients(its_plan)),
    )
    microbatch = next(task.train_batches(0))

    @functools.cache
    def train_step(microbatches: int) -> Callable[..., tuple[TrainState, Window]]:
        batch = layout.place(stack([microbatch] * microbatches))
        return layout.compile_step(step, state, window, batch)

    def for_rows(function: Callable[..., Any]) -> Callable[..., Any]:
        batch = layout.place_rows(next(iter(task.eval_batches())))
        jitted = jax.jit(
            function,
            in_shardings=(shardings.params, shardings.model_state, None),
            out_shardings=layout.sharding(),
        )
        return jitted.lower(state.params, state.model_state, batch).compile()

    def read_out(state: TrainState) -> PyTree:
        transform = config.optimizer.transform
        return optimizers.eval_params(transform, state.opt_state, state.params)

    has_readout = config.optimizer.transform in optimizers.READOUTS
    train_step(int(its_plan.microbatches[0]))
    init_state = jax.jit(new_state, out_shardings=shardings)
    init_state()
    return Program(
        task=task,
        plan=its_plan,
        layout=layout,
        init_state=init_state,
        new_window=jax.jit(steps.new_window, out_shardings=layout.sharding()),
        train_step=train_step,
        eval_step=for_rows(task.eval_sums),
        predict_step=None if task.predict is None else for_rows(task.predict),
        eval_params=(
            jax.jit(read_out, out_shardings=shardings.params)
            if has_readout
            else read_out
        ),
        compile_seconds=time.perf_counter() - started,
    )


def stack(microbatches: list[Batch]) -> Batch:
    """The microbatches of one step along a new first axis."""
    if len(microbatches) == 1:  # as a view
        return jax.tree.map(lambda array: array[None], microbatches[0])
    return jax.tree.map(lambda *arrays: np.stack(arrays), *microbatches)


def evaluate(program: Program, params: PyTree, model_state: PyTree) -> dict[str, float]:
    """Metrics over all validation batches."""
    sums, outputs, settle = [], [], program.layout.settle
    for batch in program.task.eval_batches():
        placed = program.layout.place_rows(batch)
        sums.append(settle(program.eval_step(params, model_state, placed)))
        if program.predict_step is not None:
            outputs.append(settle(program.predict_step(params, model_state, placed)))
    totals = jax.tree.map(lambda *values: float(np.sum(values)), *sums)
    weight = totals.pop("weight")
    metrics = {name: total / weight for name, total in totals.items()}
    if program.task.score is not None:
        rows = jax.tree.map(lambda *arrays: np.concatenate(arrays), *outputs)
        metrics |= program.task.score(rows)
    return metrics
