"""Curvature of a run's loss: smoothness along its steps, and the Hessian's spectrum."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.points import Batches
from experiments.program import Program
from experiments.steps import TrainState
from experiments.tasks import Batch, PyTree
from experiments.types import Config
from optax_heavytail import diagnostics
from optax_heavytail.diagnostics import SmoothnessFit, Spectrum

NUM_STEPS = 16  # of the trajectory, from each point
_NUM_BATCHES = 4  # that stand for the whole loss
_NUM_GAMMAS = 4
_LANCZOS_STEPS, _PROBES = 30, 2
_LEAST_RATE = 0.1  # of the peak: shorter steps would measure rounding


@dataclasses.dataclass(frozen=True)
class Curvature:
    """At one point of training.

    Attributes:
      gradient_norms: at each step of a short trajectory.
      smoothnesses: along each of these steps.
      spectrum: of the Hessian at the point.
    """

    gradient_norms: np.ndarray
    smoothnesses: np.ndarray
    spectrum: Spectrum

    def to_json(self) -> dict[str, Any]:
        """As plain Python values."""
        ends = self.spectrum.ends()
        return {
            "gradient_norms": self.gradient_norms.tolist(),
            "smoothnesses": self.smoothnesses.tolist(),
            **{name: float(value) for name, value in ends._asdict().items()},
        }


class Probe:
    """Measures the curvature at points of a run; compiled once for all.

    The loss is the mean over some of the batches that the diagnosis looks at.

    Args:
      built: the run's steps.
      config: the resolved one.
    """

    def __init__(self, built: Program, config: Config):
        self._built, self._rate = built, np.float32(config.optimizer.learning_rate)
        taken = [batch for _, batch in Batches(built, _NUM_BATCHES)]
        # One after the other, whether they are batches or parts of one.
        self._batches = jax.tree.map(lambda *x: jnp.concatenate(x), *taken)
        self._key = jax.random.key(config.seed)
        self._smoothness = jax.jit(self._smoothness_along)
        self._spectrum = jax.jit(self._spectrum_at)

    def at(self, state: TrainState, done: Callable[[], None]) -> Curvature:
        """Calls ``done`` after each step of the trajectory, and after the spectrum.

        Raises nothing where numbers overflow: they are NaN then.
        """
        spectrum = jax.device_get(self._spectrum(state.params, state.model_state))
        done()
        found = []
        for before, after in self._trajectory(state):
            direction = jax.tree.map(jnp.subtract, after.params, before.params)
            found.append(self._smoothness(before.params, before.model_state, direction))
            done()
        return Curvature(
            np.array([float(point.gradient_norm) for point in found]),
            np.array([float(point.smoothness) for point in found]),
            spectrum,
        )

    def _loss(self, model_state: PyTree) -> Callable[[PyTree, Batch], jax.Array]:
        task = self._built.task

        def loss(params: PyTree, batch: Batch) -> jax.Array:
            total, _ = task.loss_sum(params, model_state, batch, self._key)
            return total / task.weight(batch)

        return loss

    def _smoothness_along(
        self, params: PyTree, model_state: PyTree, direction: PyTree
    ) -> diagnostics.LocalSmoothness:
        loss = self._loss(model_state)
        return diagnostics.local_smoothness(
            lambda params: diagnostics.mean_gradient(loss, params, self._batches),
            params,
            direction,
            num_points=_NUM_GAMMAS,
        )

    def _spectrum_at(self, params: PyTree, model_state: PyTree) -> Spectrum:
        loss = self._loss(model_state)
        return diagnostics.spectral_density(
            lambda vector: diagnostics.hvp(loss, params, vector, self._batches),
            params,
            self._key,
            num_steps=_LANCZOS_STEPS,
            num_probes=_PROBES,
        )

    def _trajectory(self, state: TrainState):
        """Steps of the run's optimizer from here, each with the state before it."""
        built = self._built
        size = int(built.plan.microbatches[0])
        step = built.train_step(size)
        state = state._replace(step=jnp.asarray(self._scheduled(int(state.step))))
        window = built.new_window()
        for _, batch in itertools.islice(Batches(built, NUM_STEPS), NUM_STEPS):
            before = jax.tree.map(jnp.copy, state)  # the step uses its memory again
            state, window = built.layout.settle(step(state, window, batch, self._rate))
            yield before, state

    def _scheduled(self, step: int) -> np.int32:
        """The nearest step of the schedule whose rate is not too close to 0."""
        steps = np.arange(self._built.plan.num_steps)
        factors = np.asarray(jax.vmap(self._built.plan.factor)(jnp.asarray(steps)))
        fit = steps[factors >= _LEAST_RATE]
        return np.int32(fit[np.argmin(np.abs(fit - step))])


def fit(found: Sequence[Curvature]) -> SmoothnessFit:
    """The line through the trajectories from all points."""
    norms = np.concatenate([curvature.gradient_norms for curvature in found])
    smoothnesses = np.concatenate([curvature.smoothnesses for curvature in found])
    return diagnostics.fit_smoothness(norms, smoothnesses)


def in_words(found: Sequence[Curvature]) -> dict[str, str]:
    """What there is to read, by name."""
    ends = found[-1].spectrum.ends()
    facts = {
        "largest Hessian eigenvalue": f"{ends.largest:.4g} (error up to "
        f"{ends.largest_error:.1g})",
        "smallest Hessian eigenvalue": f"{ends.smallest:.4g} (error up to "
        f"{ends.smallest_error:.1g})",
    }
    line = fit(found)
    if line.reason is not None:
        return {**facts, "smoothness against gradient norm": line.reason}
    facts["smoothness against gradient norm"] = (
        f"L0 = {line.l0:.3g} [{line.l0_low:.3g}, {line.l0_high:.3g}], "
        f"L1 = {line.l1:.3g} [{line.l1_low:.3g}, {line.l1_high:.3g}], rank correlation "
        f"{line.correlation:.2f} [{line.correlation_low:.2f}, "
        f"{line.correlation_high:.2f}] over {line.num_points} steps: {_reading(line)}"
    )
    return facts


def _reading(line: SmoothnessFit) -> str:
    low, high = line.correlation_low or 0.0, line.correlation_high or 0.0
    if low > 0:
        return "the smoothness rises with the gradient, which speaks for clipping"
    if high < 0:
        return "the smoothness falls as the gradient grows: no case for clipping"
    return "no relation is seen"
