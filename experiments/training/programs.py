"""The compiled steps of a job on its data."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import distributed
from experiments.tasks import Batch, PyTree, Source, Task
from experiments.training import optimizers, parallel, plan, room, steps
from experiments.training.job import Job
from experiments.training.steps import TrainState, Window

Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled steps of jobs that differ in nothing but the peak learning rate.

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


def build(job: Job, task: Task) -> Program:
    """Compiles the steps of a job."""
    started = time.perf_counter()
    config, layout, optimizer = job.config, job.layout, job.optimizer
    init_key, step_key = jax.random.split(jax.random.key(config.seed))

    def new_state() -> TrainState:
        return steps.new_state(task, optimizer, init_key)

    state, window = jax.eval_shape(new_state), jax.eval_shape(steps.new_window)
    shardings = layout.state_shardings(state)
    step = steps.make_train_step(
        task,
        optimizer,
        job.plan.factor,
        step_key,
        layout.axis_name,
        job.aggregate,
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
        lowered = jitted.lower(state.params, state.model_state, batch)
        return lowered.compile(parallel.compiler_options())

    def read_out(state: TrainState) -> PyTree:
        transform = config.optimizer.transform
        return optimizers.eval_params(transform, state.opt_state, state.params)

    has_readout = config.optimizer.transform in optimizers.READOUTS
    train_step(int(job.plan.microbatches[0]))
    init_state = jax.jit(new_state, out_shardings=shardings)
    init_state()
    return Program(
        task=task,
        plan=job.plan,
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


class Programs:
    """The data of some jobs, and the program of the last one.

    A job that differs from the one before in nothing but its learning rate gets the
    same program: the points of a sweep are compiled once.
    """

    def __init__(self, source: Source):
        self.source = source
        self.last: Program | None = None
        self._key = ""

    def task(self, job: Job, workdir: Path) -> Task:
        """The task of a job, which fits into the memory.

        Raises:
          UserError: it does not, or the data are too few.
        """
        if self.last is not None and self._key == job.program_key:
            return self.last.task
        task = distributed.by_all(lambda: self.source.build(workdir))
        room.check(job, task)
        return task

    def compiled(self, job: Job, task: Task) -> Program:
        """The program of a job, compiled if the last one was another."""
        if self.last is None or self.last.task is not task:
            self.last = None  # the next one may need its memory
            self.keep(job, build(job, task))
        assert self.last is not None
        return self.last

    def keep(self, job: Job, program: Program) -> None:
        """Takes a program for jobs like this one."""
        self.last, self._key = program, job.program_key


def stack(microbatches: list[Batch]) -> Batch:
    """The microbatches of one step along a new first axis."""
    if len(microbatches) == 1:  # as a view
        return jax.tree.map(lambda array: array[None], microbatches[0])
    return jax.tree.map(lambda *arrays: np.stack(arrays), *microbatches)


def evaluate(program: Program, params: PyTree, model_state: PyTree) -> dict[str, float]:
    """Metrics over all validation batches."""
    score, predict_step = program.task.score, program.predict_step
    functions = [program.eval_step]
    if score is not None and predict_step is not None:
        functions.append(predict_step)
    sums, *outputs = _of_batches(program, functions, params, model_state)
    totals = jax.tree.map(lambda *values: float(np.sum(values)), *sums)
    weight = totals.pop("weight")
    metrics = {name: total / weight for name, total in totals.items()}
    if score is not None:
        metrics |= score(_of_all_rows(*outputs))
    return metrics


def predict(
    program: Program, params: PyTree, model_state: PyTree
) -> dict[str, np.ndarray]:
    """The outputs of all validation rows, those that fill up too."""
    assert program.predict_step is not None
    functions = [program.predict_step]
    (outputs,) = _of_batches(program, functions, params, model_state)
    return _of_all_rows(outputs)


def _of_all_rows(outputs: Sequence[Sums]) -> dict[str, np.ndarray]:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *outputs)


def _of_batches(
    program: Program,
    functions: Sequence[Callable[[PyTree, PyTree, Batch], Sums]],
    params: PyTree,
    model_state: PyTree,
) -> list[tuple[Sums, ...]]:
    """What each function makes of all batches, each of which is placed once."""
    found, layout = [], program.layout
    for batch in program.task.eval_batches():
        placed = layout.place_rows(batch)
        found.append(
            [layout.settle(call(params, model_state, placed)) for call in functions]
        )
    return list(zip(*found, strict=True))
