"""Code as users write it, which type checkers take: basedpyright and mypy, in CI."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_heavytail as oht
from optax_heavytail import aggregation, diagnostics

Params = Any  # a tree of arrays, as Optax has it


def optimizers() -> dict[str, optax.GradientTransformationExtraArgs]:
    """Every function that takes a transform takes Optax's accumulation as well."""
    schedule = optax.cosine_decay_schedule(1e-3, 100)
    inner = optax.adamw(schedule)
    accumulated = optax.MultiSteps(inner, every_k_schedule=2)
    return {
        "guarded": oht.guarded(inner),
        "guarded, accumulated": oht.guarded(accumulated, factor=2.0, window=100),
        "skip": oht.skip_if_unsafe(inner, max_deviations=None),
        "skip, accumulated": oht.skip_if_unsafe(accumulated),
        "monitor, accumulated": diagnostics.monitor(accumulated),
        "average, accumulated": oht.weighted_iterate_average(accumulated),
        "snapshots, accumulated": oht.snapshot_ensemble(accumulated, 2, t_0=4),
        "cautious": oht.cautious(inner, descent=True),
        "reset": oht.reset_moments(oht.scale_by_adam()),
        "acclip": oht.acclip(schedule, normalize=True, mask=oht.decay_mask),
        "clip": diagnostics.monitor_clipping(oht.clip_by_history()),
        "gclip": oht.gclip(0.1, jnp.float32(1.0)),
        "neumann": oht.neumann(learning_rate=0.1),
    }


def train(tx: optax.GradientTransformationExtraArgs, num_steps: int) -> Params:
    """A few steps with the loss, under jit."""
    params: Params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = tx.init(params)

    def loss_fn(params: Params) -> jax.Array:
        return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"] ** 2)

    @jax.jit
    def step(params: Params, state: optax.OptState) -> tuple[Params, optax.OptState]:
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(num_steps):
        params, state = step(params, state)
    return params


def reports() -> tuple[float, dict[str, float]]:
    """What states tell."""
    tx = optax.chain(diagnostics.monitor_clipping(oht.clip_by_history()), optax.sgd(1))
    state = tx.init({"w": jnp.ones(3)})
    _, state = tx.update({"w": jnp.ones(3)}, state)
    return float(oht.get_threshold(state)), diagnostics.read_monitor(state)


def aggregate(microbatches: Params) -> Params:
    """A vote over the first axis."""
    return aggregation.majority_vote(microbatches)
