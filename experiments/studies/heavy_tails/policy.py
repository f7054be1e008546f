"""W6: policy gradients in a cart-pole, with data that are used once or many times."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.heavy_tails import methods, mlp
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.training import Problem, PyTree

ROLLOUTS, CARTS, LENGTH = 20, 8, 200  # of a training, carts of each, most steps
TESTED = 32  # episodes of an evaluation
EPOCHS = (1, 4, 10)
DISCOUNT = 0.99
RATE = 0.032
MARGIN = 0.02  # of the longest episode
RATIO_CLIP = 0.2
CONDITIONS = {"ratio clipped": RATIO_CLIP, "ratio free": np.inf}
METHODS = (
    "adamw",
    methods.BASELINE,
    "clip_by_history, adamw",
    "guarded(adamw)",
)


class Rollout(NamedTuple):
    """What a policy has seen and done, (steps, carts) each."""

    states: jax.Array
    actions: jax.Array
    log_probabilities: jax.Array
    alive: jax.Array  # before the step


def _cart(state: jax.Array, action: jax.Array) -> jax.Array:
    """One step of 0.02 s of the cart-pole of Barto, Sutton and Anderson, 1983."""
    _, speed, angle, turn = state
    force = jnp.where(action == 1, 10.0, -10.0)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    pole, total = 0.05, 1.1  # mass times half the length; masses of pole and cart
    push = (force + pole * turn**2 * sine) / total
    turning = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / total))
    pushing = push - pole * turning * cosine / total
    return state + 0.02 * jnp.stack([speed, pushing, turn, turning])


def roll(params: PyTree, key: jax.Array, carts: int) -> Rollout:
    """Episodes of a policy, side by side; a cart that has fallen stays so."""
    start_key, key = jax.random.split(key)
    starts = jax.random.uniform(start_key, (carts, 4), minval=-0.05, maxval=0.05)

    def step(carry: Any, key: jax.Array) -> Any:
        states, alive = carry
        logs = jax.nn.log_softmax(mlp.apply(params, states))
        actions = jax.random.categorical(key, logs)
        after = jax.vmap(_cart)(states, actions)
        stands = (jnp.abs(after[:, 0]) < 2.4) & (jnp.abs(after[:, 2]) < 0.2095)
        chosen = jnp.take_along_axis(logs, actions[:, None], axis=1)[:, 0]
        kept = jnp.where((alive & stands)[:, None], after, states)
        return (kept, alive & stands), Rollout(states, actions, chosen, alive)

    begin = starts, jnp.ones(carts, bool)
    return jax.lax.scan(step, begin, jax.random.split(key, LENGTH))[1]


def _advantages(rollout: Rollout) -> jax.Array:
    """Discounted steps to come, less the carts' mean, over their deviation."""

    def back(to_come: jax.Array, alive: jax.Array) -> Any:
        to_come = alive * (1.0 + DISCOUNT * to_come)
        return to_come, to_come

    alive = rollout.alive.astype(jnp.float32)
    to_come = jax.lax.scan(back, jnp.zeros_like(alive[0]), alive, reverse=True)[1]
    apart = to_come - to_come.mean(axis=1, keepdims=True)
    return apart / (jnp.sqrt(jnp.sum(alive * apart**2) / jnp.sum(alive)) + 1e-6)


def _surrogate(params: PyTree, rollout: Rollout, limit: jax.Array) -> jax.Array:
    logs = jax.nn.log_softmax(mlp.apply(params, rollout.states.reshape(-1, 4)))
    chosen = jnp.take_along_axis(logs, rollout.actions.reshape(-1, 1), axis=1)
    ratio = jnp.exp(chosen.reshape(rollout.actions.shape) - rollout.log_probabilities)
    gain = _advantages(rollout)
    clipped = jnp.clip(ratio, 1 - limit, 1 + limit)
    each = jnp.minimum(ratio * gain, clipped * gain)
    return -jnp.sum(rollout.alive * each) / jnp.sum(rollout.alive)


def problem(epochs: int, condition: str, part: str) -> Problem:
    """A policy that is updated so many times on each of its rollouts."""
    steps = ROLLOUTS * epochs
    key = jax.random.key(2 if part == "test" else 1)

    def init(given: jax.Array) -> tuple[PyTree, PyTree]:
        params = mlp.init(given, (4, 32, 2))
        return params, roll(params, given, CARTS)

    def batches(seed: int) -> dict[str, np.ndarray]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), steps)
        limit = np.full(steps, CONDITIONS[condition], np.float32)
        return {"key": np.asarray(jax.random.key_data(keys)), "limit": limit}

    def gradient(
        params: PyTree, last: Rollout, data: PyTree, batch: PyTree, count: jax.Array
    ) -> tuple[PyTree, jax.Array, PyTree]:
        del data
        new = functools.partial(
            roll, params, jax.random.wrap_key_data(batch["key"]), CARTS
        )
        rollout = jax.lax.cond(count % epochs == 0, new, lambda: last)
        value, grads = jax.value_and_grad(_surrogate)(params, rollout, batch["limit"])
        return grads, value, rollout

    def loss(params: PyTree, last: Rollout, data: PyTree, batch: PyTree) -> Any:
        """On a rollout of its own, for the look at the noise."""
        rollout = roll(
            jax.lax.stop_gradient(params), jax.random.wrap_key_data(batch["key"]), CARTS
        )
        del data
        return _surrogate(params, rollout, batch["limit"]), last

    def evaluate(params: PyTree, last: Rollout, data: PyTree) -> Any:
        """The share of the longest episode that is missing, and that is there."""
        del last
        share = jnp.mean(roll(params, jax.random.wrap_key_data(data), TESTED).alive)
        return 1 - share, share

    return Problem(
        steps,
        init,
        loss,
        evaluate,
        np.asarray(jax.random.key_data(key)),
        batches,
        gradient=gradient,
        evaluations=1,
        side_by_side=True,
    )


RACES = {
    epochs: Race(
        f"W6 {epochs} epochs" if epochs > 1 else "W6 1 epoch",
        functools.partial(problem, epochs),
        ROLLOUTS * epochs,
        # At the first use of a rollout all ratios are 1.
        tuple(CONDITIONS)[: 1 if epochs == 1 else None],
        methods.contestants(RATE, METHODS),
        Endpoint(
            "clip_by_history, adamw",
            "ratio clipped" if epochs == 1 else "ratio free",
            "tuned",
        ),
        MARGIN,
    )
    for epochs in EPOCHS
}
LOOKS = {
    epochs: {
        "ratio clipped, trained": Look(
            functools.partial(problem, epochs, "ratio clipped", "test"),
            RATE,
            ROLLOUTS * epochs // 2,
        )
    }
    for epochs in EPOCHS
}
