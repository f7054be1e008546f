"""The training step: gradients over microbatches and devices, then the update."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import optimizers
from experiments.tasks import Batch, PyTree, Task

Aggregate = Callable[[PyTree], PyTree]  # leaves (n, ...) of n gradients -> one gradient


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
    """Of a whole step."""

    grads: PyTree
    loss: jax.Array  # (), float32
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
    aggregate: Aggregate | None = None,
) -> Callable[..., tuple[TrainState, Window]]:
    """Returns the pure step (state, window, batch, peak rate) -> (state, window).

    Args:
      task: its loss.
      optimizer: what `experiments.optimizers.build` returns.
      factor: on the peak rate, of the count of steps.
      step_key: for dropout.
      axis_name: of the devices, where the step runs on each of them for itself; the
        gradients are then summed over it.
      aggregate: makes one gradient of those of all microbatches on all devices, each a
        mean; ``None``: their sum, in the memory of one.

    The arrays of ``batch`` are (microbatches, rows, ...).
    """
    gradient = make_gradient(task, axis_name, aggregate)

    def train_step(
        state: TrainState, window: Window, batch: Batch, peak: jax.Array
    ) -> tuple[TrainState, Window]:
        key = jax.random.fold_in(step_key, state.position)
        found = gradient(state.params, state.model_state, batch, key)
        opt_state = optimizers.with_learning_rate(
            state.opt_state, peak * factor(state.step)
        )
        updates, opt_state = optimizer.update(
            found.grads,
            opt_state,
            state.params,
            grad_fn=lambda params: (
                gradient(params, state.model_state, batch, key).grads
            ),
        )
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        is_finite = jnp.isfinite(found.loss)
        is_lost = optimizers.is_lost(opt_state, is_finite)
        window = Window(
            window.loss_sum + jnp.where(is_finite, found.loss, 0),
            window.num_losses + is_finite.astype(jnp.int32),
            jnp.where(is_lost & (window.lost_step == 0), step, window.lost_step),
        )
        position = state.position + num_microbatches(batch)
        return TrainState(params, found.model_state, opt_state, step, position), window

    return train_step


def num_microbatches(batch: Batch) -> int:
    """Length of the first axis."""
    return jax.tree.leaves(batch)[0].shape[0]


def make_gradient(
    task: Task, axis_name: str | None, aggregate: Aggregate | None
) -> Callable[[PyTree, PyTree, Batch, jax.Array], Gradient]:
    """Returns (params, model state, batch, key) -> `Gradient`.

    The loss is the sum over all rows of the step divided by their whole weight, however
    they are cut. Gradients are summed in float32.
    """

    def over_devices(x: PyTree) -> PyTree:
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    def gradient(
        params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
    ) -> Gradient:
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        weights = jax.vmap(task.weight)(batch)
        total = jnp.maximum(over_devices(jnp.sum(weights)), 1)
        keys = _keys(key, weights.size)

        def one(model_state: PyTree, batch: Batch, key: jax.Array, weight: jax.Array):
            def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
                loss_sum, after = task.loss_sum(params, model_state, batch, key)
                return loss_sum / weight, (loss_sum, after)

            grads, (loss_sum, after) = jax.grad(loss, has_aux=True)(params)
            return grads, loss_sum / total, after

        if aggregate is None:
            found = _summed(one, model_state, batch, keys, total)
            found = found._replace(grads=over_devices(found.grads))
        else:
            found = _stacked(one, model_state, batch, keys, jnp.maximum(weights, 1))
            if axis_name is not None:
                found = found._replace(
                    grads=jax.lax.all_gather(found.grads, axis_name, tiled=True)
                )
            found = found._replace(grads=aggregate(found.grads))
        return found._replace(loss=over_devices(found.loss))

    return gradient


def _keys(key: jax.Array, number: int) -> jax.Array:
    """One key per microbatch; a single one keeps the key of its step."""
    if number == 1:
        return key[None]
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(number))


def _summed(one, model_state: PyTree, batch: Batch, keys, total) -> Gradient:
    """Sum over the microbatches, in the memory of one microbatch and one gradient."""
    first = jax.tree.map(lambda x: x[0], batch)
    if num_microbatches(batch) == 1:
        return Gradient(*one(model_state, first, keys[0], total))
    shapes, _, _ = jax.eval_shape(one, model_state, first, keys[0], total)
    start = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes
    )

    def add(carry: Gradient, x) -> tuple[Gradient, None]:
        grads, loss, model_state = one(carry.model_state, *x, total)
        grads = jax.tree.map(jnp.add, carry.grads, grads)
        return Gradient(grads, carry.loss + loss, model_state), None

    start = Gradient(start, jnp.zeros([]), model_state)
    return jax.lax.scan(add, start, (batch, keys))[0]


def _stacked(one, model_state: PyTree, batch: Batch, keys, weights) -> Gradient:
    """The mean gradient of each microbatch, all in memory at once."""

    def body(carry: Gradient, x) -> tuple[Gradient, PyTree]:
        grads, loss, model_state = one(carry.model_state, *x)
        return carry._replace(loss=carry.loss + loss, model_state=model_state), grads

    start = Gradient(None, jnp.zeros([]), model_state)
    end, grads = jax.lax.scan(body, start, (batch, keys, weights))
    return end._replace(grads=grads)
