"""The steps of a run, and what happens between them."""

import math
import time
from typing import Any, NamedTuple

import numpy as np

from experiments.common import distributed, progress
from experiments.common.errors import UserError
from experiments.runs import records
from experiments.runs.outcome import Outcome
from experiments.training import checkpoints, optimizers, programs
from experiments.training.checkpoint_files import Progress, Resumed
from experiments.training.job import Job
from experiments.training.programs import Program
from experiments.training.steps import TrainState, Window


class Todo(NamedTuple):
    """What follows a step."""

    record: bool = False
    evaluate: bool = False
    save: bool = False
    stop: bool = False


class Loop:
    """Trains, with records, evaluations and checkpoints as the config wants them.

    The device keeps the losses, so that no step waits for the host: one that ends the
    run is noticed at the next record or checkpoint.

    Args:
      job: what is to be done.
      program: its steps.
      recorder: what writes the records.
      bar: what shows how far the run is.
      keeper: what saves the checkpoints.
      resumed: where to go on; ``None``: the first step.
    """

    def __init__(
        self,
        job: Job,
        program: Program,
        recorder: records.Recorder,
        bar: progress.RunBar,
        keeper: checkpoints.Keeper,
        resumed: Resumed | None = None,
    ):
        self._job, self._program = job, program
        self._config, self._layout = job.config, job.layout
        self._peak = np.float32(job.learning_rate)
        self._recorder, self._bar, self._keeper = recorder, bar, keeper
        state, window, self._at = resumed or Resumed(
            program.init_state(), program.new_window(), Progress()
        )
        self._state, self._window = map(self._layout.enter, (state, window))
        self._microbatches = program.task.train_batches(self._at.position)

    def fit(self) -> Outcome:
        """Runs the steps.

        Raises:
          UserError: a checkpoint cannot be written, or SIGTERM has come; then the last
            step is saved.
        """
        at, num_steps = self._at, self._job.plan.num_steps
        # What a stopped run has left out.
        missed = at.evaluated < at.step and at.step % self._config.eval_every == 0
        todo = Todo(evaluate=missed)
        if missed and not self._do(todo, self._layout.leave(self._window)):
            return self._outcome(at.step, todo)
        started = time.perf_counter()
        with distributed.on_sigterm() as wants_stop:
            for step in range(at.step + 1, num_steps + 1):
                self._step(step)
                self._keeper.check()
                todo = self._todo(step, wants_stop())
                if not any(todo):
                    continue
                window = self._layout.leave(self._window)
                lost_step = int(window.lost_step)
                at.seconds += time.perf_counter() - started
                if lost_step or not self._do(todo, window):
                    return self._outcome(lost_step or step, todo)
                started = time.perf_counter()
        return self._outcome(0, todo)

    def _outcome(self, lost_step: int, todo: Todo) -> Outcome:
        self._keeper.wait()
        at, is_stopped = self._at, todo.stop
        if lost_step:
            return Outcome("diverged", lost_step, {}, at.seconds, is_stopped)
        return Outcome("complete", at.step, at.metrics, at.seconds, is_stopped)

    @property
    def state(self) -> TrainState:
        """That after the last step."""
        return self._layout.leave(self._state)

    def _step(self, step: int) -> None:
        count = int(self._job.plan.microbatches[step - 1])
        batch = programs.stack([next(self._microbatches) for _ in range(count)])
        self._state, self._window = self._layout.settle(
            self._program.train_step(count)(
                self._state,
                self._window,
                self._layout.place(batch),
                self._peak,
            )
        )
        self._at.step, self._at.position = step, self._at.position + count

    def _todo(self, step: int, wants_stop: bool) -> Todo:
        config, is_last = self._config, step == self._job.plan.num_steps
        evaluate = is_last or step % config.eval_every == 0
        return Todo(
            record=evaluate or step % config.log_every == 0,
            # Who sends SIGTERM does not wait long.
            evaluate=evaluate and (is_last or not wants_stop),
            save=is_last or wants_stop or step % config.checkpoint.every == 0,
            stop=wants_stop,
        )

    def _do(self, todo: Todo, window: Window) -> bool:
        """Does what follows a step; returns whether the model is still finite."""
        at, state = self._at, self._layout.leave(self._state)
        if todo.record:
            self._record(state, window)
            window = self._program.new_window()
            self._window = self._layout.enter(window)
        if todo.evaluate:
            params = self._program.eval_params(state)
            at.metrics = programs.evaluate(self._program, params, state.model_state)
            at.evaluated = at.step
            if not math.isfinite(at.metrics["loss"]):
                return False
            self._write("eval", **at.metrics)
        if todo.save:
            self._keeper.save(state, window, at)
        if todo.stop and at.step < self._job.plan.num_steps:
            self._keeper.wait()
            raise UserError(
                f"stopped by SIGTERM after step {at.step}, which is saved; the same "
                "command goes on from there"
            )
        return True

    def _write(self, kind: str, **values: Any) -> None:
        self._recorder.write(kind, self._at.step, **values)
        self._at.records = (self._at.records or 0) + 1

    def _record(self, state: TrainState, window: Window) -> None:
        at, num_losses = self._at, int(window.num_losses)
        if num_losses:  # none: all were skipped, and the limit is further on
            loss = float(window.loss_sum) / num_losses
            self._write(
                "train",
                loss=loss,
                learning_rate=self._job.rate(at.step),
                steps_per_second=(at.step - at.recorded)
                / (at.seconds - at.seconds_recorded),
                **optimizers.skipped(state.opt_state),
                **optimizers.monitored(state.opt_state),
            )
            self._bar.update(at.step, loss)
        at.recorded, at.seconds_recorded = at.step, at.seconds
