"""The training step: gradients over microbatches and devices, then the update."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.tasks import Batch, PyTree, Task
from experiments.training import aggregate, optimizers
from experiments.training.aggregate import Aggregate
from optax_heavytail.aggregation import RunningMean


class TrainState(NamedTuple):
    """What training changes, and how far it is."""

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    step: jax.Array  # (), int32: finished steps
    position: jax.Array  # (), int32: microbatches taken from the data


class Window(NamedTuple):
    """Losses since the last record; read on the host at records alone."""

    loss_sum: jax.Array  # (), float32, of the finite ones
    num_losses: jax.Array  # (), int32: how many these are
    lost_step: jax.Array  # (), int32: first step that ends the run, or 0


class Gradient(NamedTuple):
    """The mean gradient of a whole step, and what comes with it."""

    grads: PyTree
    loss: jax.Array  # (), float32
    model_state: PyTree


class Sums(NamedTuple):
    """What the microbatches so far add up to."""

    grads: RunningMean | None  # None: they are kept one by one
    loss: jax.Array  # (), float32
    weight: jax.Array  # (), float32
    model_state: PyTree


def new_window() -> Window:
    """An empty window."""
    zero = jnp.zeros([], jnp.int32)
    return Window(jnp.zeros([]), zero, jnp.copy(zero))


def new_state(
    task: Task, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """The state before the first step."""
    params, model_state = task.init(key)
    zero = jnp.zeros([], jnp.int32)
    return TrainState(params, model_state, optimizer.init(params), zero, jnp.copy(zero))


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    factor: optax.Schedule,
    step_key: jax.Array,
    axis_name: str | None = None,
    combine: Aggregate = aggregate.MEAN,
) -> Callable[..., tuple[TrainState, Window]]:
    """Returns the pure step (state, window, batch, peak rate) -> (state, window).

    Args:
      task: its loss.
      optimizer: what `experiments.training.optimizers.build` returns.
      factor: on the peak rate, of the count of steps.
      step_key: for dropout.
      axis_name: of the devices, where the step runs on each of them for itself; the
        gradients are then taken together over it.
      combine: the gradients of all microbatches on all devices become one.

    The arrays of ``batch`` are (microbatches, rows, ...).
    """
    gradient = make_gradient(task, axis_name, combine)

    def train_step(
        state: TrainState, window: Window, batch: Batch, peak: jax.Array
    ) -> tuple[TrainState, Window]:
        key = jax.random.fold_in(step_key, state.position)
        gradients = gradient(state.params, state.model_state, batch, key)
        opt_state = optimizers.with_learning_rate(
            state.opt_state, peak * factor(state.step)
        )
        updates, opt_state = optimizer.update(
            gradients.grads,
            opt_state,
            state.params,
            value=gradients.loss,
            grad_fn=lambda params: (
                gradient(params, state.model_state, batch, key).grads
            ),
        )
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        is_finite = jnp.isfinite(gradients.loss)
        # One bad step, that the optimizer skips, would stay in running statistics.
        model_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old),
            gradients.model_state,
            state.model_state,
        )
        is_lost = optimizers.is_lost(opt_state, is_finite)
        window = Window(
            window.loss_sum + jnp.where(is_finite, gradients.loss, 0),
            window.num_losses + is_finite.astype(jnp.int32),
            jnp.where(is_lost & (window.lost_step == 0), step, window.lost_step),
        )
        position = state.position + num_microbatches(batch)
        return TrainState(params, model_state, opt_state, step, position), window

    return train_step


def num_microbatches(batch: Batch) -> int:
    """Length of the first axis."""
    return jax.tree.leaves(batch)[0].shape[0]


def make_gradient(
    task: Task, axis_name: str | None, combine: Aggregate
) -> Callable[[PyTree, PyTree, Batch, jax.Array], Gradient]:
    """Returns (params, model state, batch, key) -> `Gradient`.

    The loss is the sum over all rows of the step divided by their whole weight, however
    they are cut. Gradients are summed in float32.
    """

    def gradient(
        params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
    ) -> Gradient:
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        sums, stack = _over_microbatches(task, params, model_state, batch, key, combine)
        if axis_name is not None:
            totals = jax.lax.psum(sums[:3], axis_name)
            sums = Sums(*totals, model_state=sums.model_state)
            stack = jax.lax.all_gather(stack, axis_name, tiled=True)
        if sums.grads is None:
            assert combine.stacked is not None
            grads = combine.stacked(stack)
        else:
            grads = sums.grads.result(params)
        loss = sums.loss / _or_one(sums.weight)
        return Gradient(grads, loss, sums.model_state)

    return gradient


def _over_microbatches(
    task: Task,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    key: jax.Array,
    combine: Aggregate,
) -> tuple[Sums, PyTree]:
    """The sums over the microbatches, and, where it is wanted, each one's gradient."""

    def body(sums: Sums, x: tuple[Batch, jax.Array]) -> tuple[Sums, PyTree]:
        batch, key = x
        weight = task.weight(batch)

        def loss(params: PyTree) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
            loss_sum, after = task.loss_sum(params, sums.model_state, batch, key)
            return loss_sum / _or_one(weight), (loss_sum, after)

        grads, (loss_sum, after) = jax.grad(loss, has_aux=True)(params)
        running = sums.grads
        if running is not None:
            running = running.add(grads, weight, max_norm=combine.max_norm)
        sums = Sums(running, sums.loss + loss_sum, sums.weight + weight, after)
        return sums, None if combine.stacked is None else grads

    start = RunningMean.empty(params) if combine.stacked is None else None
    sums = Sums(start, jnp.zeros([]), jnp.zeros([]), model_state)
    number = num_microbatches(batch)
    if number == 1:  # without the loop XLA adds nothing to 0
        first = jax.tree.map(lambda x: x[0], batch)
        sums, grads = body(sums, (first, key))
        return sums, jax.tree.map(lambda x: x[None], grads)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(number))
    return jax.lax.scan(body, sums, (batch, keys))


def _or_one(weight: jax.Array) -> jax.Array:
    """A weight to divide by: rows that weigh nothing have a loss of 0, not 0 / 0."""
    return jnp.where(weight == 0, 1, weight)
