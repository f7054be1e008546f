"""Training the LSTM of 2016 by backpropagation through windows of its own steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.types import Config
from experiments.learning import functions
from experiments.learning.functions import Family
from optax_heavytail import learned

# What belongs to which part of a training.
_TRAINING, _EVALUATION, _START = range(3)


class State(NamedTuple):
    """All that a training goes on from."""

    step: Any  # (), int32, batches of functions so far
    weights: learned.LSTMWeights
    outer: Any  # state of the optimizer of the weights
    best: learned.LSTMWeights  # by the mean last loss of fresh functions
    best_loss: Any  # ()
    history: Any  # (evaluations, 2): training loss and fresh functions' last loss


class Training:
    """The steps of one training, as compiled functions of its state."""

    def __init__(self, config: Config, seed: int):
        self.config = config
        self.family = functions.FAMILIES[config.family]()
        self._key = jax.random.key(seed)
        self._outer = optax.chain(
            optax.zero_nans(),
            optax.clip_by_global_norm(1.0),
            optax.adam(
                optax.cosine_decay_schedule(
                    config.rate, config.functions * self._windows
                )
            ),
        )
        self._episode = jax.jit(self._make_episode())
        self._evaluate = jax.jit(
            lambda weights: last_loss(
                self.family,
                weights,
                config.steps,
                config.test_functions,
                jax.random.fold_in(self._key, _EVALUATION),
            )
        )

    @property
    def total(self) -> int:
        """Batches of functions of a whole training."""
        return self.config.functions

    @property
    def _windows(self) -> int:
        return self.config.steps // self.config.window

    def start(self) -> State:
        """Fresh weights."""
        weights = learned.init_lstm(
            jax.random.fold_in(self._key, _START),
            preprocess=self.family.arguments["preprocess"],
        )
        return State(
            jnp.zeros([], jnp.int32),
            weights,
            self._outer.init(weights),
            weights,
            jnp.array(jnp.inf),
            jnp.full((self.config.evaluations, 2), jnp.nan),
        )

    def advance(self, state: State) -> tuple[State, float]:
        """One batch of functions; returns its mean loss as well."""
        key = jax.random.fold_in(self._key, _TRAINING)
        weights, outer, loss = self._episode(
            state.weights, state.outer, jax.random.fold_in(key, state.step)
        )
        state = state._replace(step=state.step + 1, weights=weights, outer=outer)
        done, parts = int(state.step), self.config.evaluations
        place = done * parts // self.total - 1
        if place > (done - 1) * parts // self.total - 1:
            state = self._evaluated(state, place, loss)
        return state, float(loss)

    def _evaluated(self, state: State, place: int, loss: jax.Array) -> State:
        found = self._evaluate(state.weights)
        is_best = bool(found < state.best_loss)
        return state._replace(
            best=state.weights if is_best else state.best,
            best_loss=found if is_best else state.best_loss,
            history=state.history.at[place].set(jnp.stack([loss, found])),
        )

    def _make_episode(self) -> Any:
        config, family = self.config, self.family

        def window(weights, carry, numbers, keys, first):
            tx = learned.scale_by_lstm(weights, **family.arguments)

            def values(points, t):
                own = jax.vmap(lambda k: jax.random.fold_in(k, t))(keys)
                return jax.vmap(jax.value_and_grad(family.loss))(points, numbers, own)

            def step(carry, t):
                points, state = carry
                loss, grads = values(points, t)
                # As published: how gradients depend on the weights is left out.
                updates, state = tx.update(jax.lax.stop_gradient(grads), state)
                return (points - updates, state), jnp.mean(loss)

            times = first + jnp.arange(config.window)
            carry, losses = jax.lax.scan(step, carry, times)
            # The first loss depends on no weight, the last one on all steps.
            end = jnp.mean(values(carry[0], first + config.window)[0])
            return jnp.sum(losses[1:]) + end, (carry, jnp.mean(losses))

        def episode(weights, outer, key):
            of_numbers, of_points, of_batches = jax.random.split(key, 3)
            numbers = jax.vmap(family.draw)(_split(of_numbers, config.batch))
            points = jax.vmap(family.start)(_split(of_points, config.batch))
            keys = _split(of_batches, config.batch)
            state = learned.scale_by_lstm(weights, **family.arguments).init(points)

            def one(carry, place):
                weights, outer, inner = carry
                slopes, (inner, loss) = jax.grad(window, has_aux=True)(
                    weights, inner, numbers, keys, place * config.window
                )
                changes, outer = self._outer.update(slopes, outer, weights)
                return (optax.apply_updates(weights, changes), outer, inner), loss

            carry = weights, outer, (points, state)
            carry, losses = jax.lax.scan(one, carry, jnp.arange(self._windows))
            return carry[0], carry[1], jnp.mean(losses)

        return episode


def _split(key, number):
    return jax.random.split(key, number)


def as_optimizer(family: Family, weights: learned.LSTMWeights) -> Any:
    """The paper's step: what is added to the parameters."""
    scaled = learned.scale_by_lstm(weights, **family.arguments)
    return optax.chain(scaled, optax.scale(-1.0))


def last_loss(
    family: Family,
    weights: learned.LSTMWeights,
    steps: int,
    number: int,
    key: jax.Array,
) -> jax.Array:
    """The mean loss of so many functions after the last step."""
    tx = as_optimizer(family, weights)
    return jnp.mean(functions.losses(family, tx, steps, number, key)[:, -1])
