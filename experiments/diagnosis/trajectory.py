"""A training that is followed: curvature at its steps and along its updates."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.errors import UserError
from experiments.tasks import Batch, PyTree
from experiments.training import parallel, programs
from experiments.training.job import Job
from experiments.training.programs import Program
from experiments.training.steps import TrainState
from optax_heavytail import diagnostics

Record = dict[str, Any]
_ROUNDING = 0.1  # of a smoothness, at most


class Instruments:
    """Measures the mean loss over some batches, at any parameters.

    Args:
      program: of the model.
      batches: how many; they come after the last one of the training.
      lanczos_steps: Hessian-vector products for each spectrum.
      seed: of dropout, which is the same at all parameters, and of the search.
    """

    def __init__(
        self, program: Program, batches: int, lanczos_steps: int, seed: int = 0
    ):
        self._task, self._lanczos_steps = program.task, lanczos_steps
        self._key = jax.random.key(seed)
        stream = program.task.train_batches(
            program.plan.position(program.plan.num_steps)
        )
        stacked = programs.stack(list(itertools.islice(stream, batches)))
        rows = program.layout.sharding(None, parallel.ROWS)
        self._batches = jax.device_put(stacked, rows)
        self._spectrum = jax.jit(self._make_spectrum)
        self._smoothness = jax.jit(self._make_smoothness)

    def spectrum(self, params: PyTree, model_state: PyTree) -> Record:
        """Ends of the spectrum with bounds of their errors, and all its nodes."""
        started = time.perf_counter()
        found = jax.device_get(self._spectrum(params, model_state, self._batches))
        ends = {name: float(x) for name, x in found.ends()._asdict().items()}
        return {
            **ends,
            "nodes": found.nodes.tolist(),
            "weights": found.weights.tolist(),
            "errors": found.errors.tolist(),
            "seconds": time.perf_counter() - started,
        }

    def smoothness(self, params: PyTree, model_state: PyTree, update: PyTree) -> Record:
        """The smoothness along an update, the gradient norm, and the update's.

        A smoothness that may be rounding is NaN.
        """
        found = self._smoothness(params, model_state, update, self._batches)
        values = {name: float(x) for name, x in found.items()}
        if values["rounding"] > _ROUNDING * values["smoothness"]:
            values["smoothness"] = math.nan
        return values

    def _make_spectrum(
        self, params: PyTree, model_state: PyTree, batches: Batch
    ) -> diagnostics.Spectrum:
        loss, numbered = self._loss(model_state, batches)
        return diagnostics.spectral_density(
            lambda v: diagnostics.hvp(loss, params, v, numbered),
            params,
            self._key,
            self._lanczos_steps,
            num_probes=1,
        )

    def _make_smoothness(
        self, params: PyTree, model_state: PyTree, update: PyTree, batches: Batch
    ) -> dict[str, jax.Array]:
        loss, numbered = self._loss(model_state, batches)
        point = diagnostics.local_smoothness(
            lambda params: diagnostics.mean_gradient(loss, params, numbered),
            params,
            update,
        )
        squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(update)]
        return {**point._asdict(), "update_norm": jnp.sqrt(sum(squares))}

    def _loss(self, model_state: PyTree, batches: Batch) -> tuple[Any, Any]:
        """The loss of a numbered batch, and these; their mean is over all weights."""
        number = len(jax.tree.leaves(batches)[0])
        share = jnp.sum(jax.vmap(self._task.weight)(batches)) / number

        def loss(params: PyTree, numbered: tuple[Batch, jax.Array]) -> jax.Array:
            batch, index = numbered
            key = jax.random.fold_in(self._key, index)
            return self._task.loss_sum(params, model_state, batch, key)[0] / share

        return loss, (batches, jnp.arange(number))


class Point(NamedTuple):
    """A step of a training."""

    step: int
    params: PyTree  # after it; gone when the next point is asked for
    model_state: PyTree
    update: PyTree | None  # of the step after it, where that is wanted


def follow(
    job: Job,
    program: Program,
    state: TrainState,
    steps: Sequence[int],
    updates: Sequence[int],
) -> Iterator[Point]:
    """Trains on from a state, as far as is wanted.

    Args:
      job: what is trained.
      program: its steps.
      state: where to start; it is used up.
      steps: steps after which to yield a point.
      updates: steps after which to yield one with the update that comes next.

    Yields:
      The points, in the order of their steps.

    Raises:
      UserError: the training diverges.
    """
    layout, plan = program.layout, program.plan
    last = max([*steps, *(step + 1 for step in updates)])
    rate = np.float32(job.learning_rate)
    stream = program.task.train_batches(int(state.position))
    first = int(state.step)
    state, window = layout.enter(state), layout.enter(program.new_window())
    for step in range(first, last + 1):
        if step in steps:
            now = layout.leave(state)
            yield Point(step, now.params, now.model_state, None)
        if step == last:
            return
        before = _copy(layout.leave(state)) if step in updates else None
        count = int(plan.microbatches[step])
        batch = programs.stack([next(stream) for _ in range(count)])
        state, window = layout.settle(
            program.train_step(count)(state, window, layout.place(batch), rate)
        )
        if before is None:
            continue
        lost_step = int(layout.leave(window).lost_step)
        if lost_step:
            raise UserError(f"non-finite loss at step {lost_step}")
        after = layout.leave(state).params
        change = jax.tree.map(jnp.subtract, after, before[0])
        yield Point(step, *before, change)


def _copy(state: TrainState) -> tuple[PyTree, PyTree]:
    """The next step uses the state up."""
    return jax.tree.map(jnp.copy, (state.params, state.model_state))


def fit(records: Sequence[Record]) -> diagnostics.SmoothnessFit:
    """The line through the points of a training that are finite."""
    found = [r for r in records if r["kind"] == "smoothness"]
    pairs = [(r["gradient_norm"], r["smoothness"]) for r in found]
    pairs = [pair for pair in pairs if None not in pair]
    norms, smooth = np.array(pairs).reshape(-1, 2).T
    return diagnostics.fit_smoothness(norms, smooth)


def in_words(line: diagnostics.SmoothnessFit) -> str:
    """What a fit says."""
    if line.reason is not None:
        return f"no (L0, L1) fit: {line.reason}"
    assert line.correlation_low is not None
    assert line.correlation_high is not None
    if line.correlation_low > 0:
        verdict = "the smoothness rises with the gradient norm"
    elif line.correlation_high < 0:
        verdict = "the smoothness falls where the gradient norm rises"
    else:
        verdict = "no sign that the smoothness depends on the gradient norm"
    return (
        f"{verdict}: rank correlation {line.correlation:.2f} "
        f"[{line.correlation_low:.2f}, {line.correlation_high:.2f}], "
        f"L0 = {line.l0:.3g} [{line.l0_low:.3g}, {line.l0_high:.3g}], "
        f"L1 = {line.l1:.3g} [{line.l1_low:.3g}, {line.l1_high:.3g}] "
        f"({100 * line.confidence:.10g}% intervals, {line.num_points} updates)"
    )
