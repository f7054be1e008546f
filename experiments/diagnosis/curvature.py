"""Curvature of a run's loss: smoothness along its steps, and the Hessian's spectrum."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import json_files
from experiments.diagnosis import trajectory
from experiments.diagnosis.points import Batches
from experiments.diagnosis.trajectory import Record
from experiments.training.job import Job
from experiments.training.programs import Program
from experiments.training.steps import TrainState
from optax_heavytail.diagnostics import SmoothnessFit, Spectrum

NUM_STEPS = 16  # of the trajectory, from each point
LANCZOS_STEPS = 50
_NUM_BATCHES = 4  # that stand for the whole loss
_LEAST_RATE = 0.1  # of the peak: shorter steps would measure rounding


@dataclasses.dataclass(frozen=True)
class Curvature:
    """At one point of training.

    Attributes:
      smoothness: a record of `trajectory.Instruments` for each step of a short
        trajectory.
      spectrum: their record of the Hessian at the point.
    """

    smoothness: list[Record]
    spectrum: Record

    @property
    def is_finite(self) -> bool:
        """Whether the Hessian could be looked at."""
        return bool(np.isfinite(self.spectrum["nodes"]).all())

    @property
    def nodes(self) -> Spectrum:
        """The spectrum, to draw it."""
        parts = (self.spectrum[name] for name in Spectrum._fields)
        return Spectrum(*map(jnp.asarray, parts))

    def to_json(self) -> dict[str, Any]:
        """As JSON has it: what is not finite is ``None``."""
        return json_files.finite(dataclasses.asdict(self))


class Probe:
    """Measures the curvature at points of a run; compiled once for all.

    Args:
      job: what the run does.
      program: its steps.
    """

    def __init__(self, job: Job, program: Program):
        self._program, self._rate = program, np.float32(job.learning_rate)
        params = jax.eval_shape(program.init_state).params
        number = sum(x.size for x in jax.tree.leaves(params))
        self._instruments = trajectory.Instruments(
            program, _NUM_BATCHES, min(LANCZOS_STEPS, number), job.config.seed
        )

    def at(self, state: TrainState, done: Callable[[], None]) -> Curvature:
        """Calls ``done`` after the spectrum, and after each step of the trajectory."""
        spectrum = self._instruments.spectrum(state.params, state.model_state)
        done()
        smoothness = []
        for before, after in self._trajectory(state):
            update = jax.tree.map(jnp.subtract, after.params, before.params)
            smoothness.append(
                self._instruments.smoothness(before.params, before.model_state, update)
            )
            done()
        return Curvature(smoothness, spectrum)

    def _trajectory(self, state: TrainState) -> Iterator[tuple[TrainState, TrainState]]:
        """Steps of the run's optimizer from here, each with the state before it.

        The schedule stands still, so that none is beyond its end.
        """
        program = self._program
        size = int(program.plan.microbatches[0])
        step, scheduled = program.train_step(size), self._scheduled(int(state.step))
        window = program.new_window()
        for _, batch in Batches(program, NUM_STEPS):
            state = state._replace(step=jnp.asarray(scheduled))
            before = jax.tree.map(jnp.copy, state)  # the step uses its memory again
            state, window = program.layout.settle(
                step(state, window, batch, self._rate)
            )
            yield before, state

    def _scheduled(self, step: int) -> np.int32:
        """The nearest step of the schedule whose rate is not too close to 0."""
        steps = np.arange(self._program.plan.num_steps)
        factors = np.asarray(jax.vmap(self._program.plan.factor)(jnp.asarray(steps)))
        fit = steps[factors >= _LEAST_RATE]
        return np.int32(fit[np.argmin(np.abs(fit - step))])


def fit(curvatures: Sequence[Curvature]) -> SmoothnessFit:
    """The line through the trajectories from all points."""
    records = [
        {"kind": "smoothness", **json_files.finite(record)}
        for here in curvatures
        for record in here.smoothness
    ]
    return trajectory.fit(records)


def in_words(curvatures: Sequence[Curvature]) -> dict[str, str]:
    """What there is to read, by name."""
    last = curvatures[-1].spectrum

    def end(name: str) -> str:
        return f"{last[name]:.4g} (error up to {last[f'{name}_error']:.1g})"

    return {
        "largest Hessian eigenvalue": end("largest"),
        "smallest Hessian eigenvalue": end("smallest"),
        "smoothness along the run's steps": trajectory.in_words(fit(curvatures)),
    }
