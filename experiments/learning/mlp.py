"""Training the MLP by evolution strategies on long trainings of small networks."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from experiments.common.types import Config
from experiments.learning import episodes, estimators
from optax_heavytail import learned

_LIMIT = 1.0  # of the gradient of a worker, and of their mean
# What belongs to which part of a training.
_EPISODES, _NOISE, _EVALUATION, _START = range(4)
FAMILIES = {"networks": episodes.networks, "quadratics": episodes.quadratics}


class Worker(NamedTuple):
    """How far a worker is; with a first axis of the workers of a family."""

    episode: Any  # (), int32
    time: Any  # (), int32, steps of the episode so far
    total: Any  # (170,), of `estimators.perturb`
    carry: Any  # parameters and state of both of its trainings: a first axis of two


class State(NamedTuple):
    """All that a training goes on from."""

    step: Any  # (), int32, windows so far
    weights: Any  # (170,)
    outer: Any  # state of the optimizer of the weights
    workers: dict[str, Worker]  # by family
    best: Any  # (170,), by the score of fresh episodes
    best_loss: Any  # ()
    history: Any  # (evaluations, 2): score of the workers, and of fresh episodes


class Training:
    """The steps of one training, as compiled functions of its state."""

    def __init__(self, config: Config, seed: int):
        self.config = config
        self._key = jax.random.key(seed)
        self._families = {name: make() for name, make in FAMILIES.items()}
        self._fresh, self._unravel = ravel_pytree(
            learned.init_mlp(jax.random.fold_in(self._key, _START))
        )
        self._outer = optax.chain(
            optax.zero_nans(),
            optax.clip_by_global_norm(_LIMIT),
            optax.adam(optax.cosine_decay_schedule(config.rate, config.outer_steps)),
        )
        self._window = jax.jit(self._make_window())
        self._evaluate = jax.jit(self._make_evaluation())

    @property
    def total(self) -> int:
        """Windows of a whole training."""
        return self.config.outer_steps

    def weights(self, flat: jax.Array) -> learned.MLPWeights:
        """The weights of a row of numbers."""
        return self._unravel(flat)

    def start(self) -> State:
        """Weights with which the MLP is normalised ACClip, and workers at the start."""
        return State(
            jnp.zeros([], jnp.int32),
            self._fresh,
            self._outer.init(self._fresh),
            {name: self._new_workers(name) for name in self._families},
            self._fresh,
            self._evaluate(self._fresh),
            jnp.full((self.config.evaluations, 2), jnp.nan),
        )

    def advance(self, state: State) -> tuple[State, float]:
        """One window of each worker; returns its mean score as well."""
        weights, outer, workers, loss = self._window(
            state.step, state.weights, state.outer, state.workers
        )
        state = state._replace(
            step=state.step + 1, weights=weights, outer=outer, workers=workers
        )
        done, parts = int(state.step), self.config.evaluations
        place = done * parts // self.total - 1
        if place > (done - 1) * parts // self.total - 1:
            found = self._evaluate(state.weights)
            is_best = bool(found < state.best_loss)
            state = state._replace(
                best=state.weights if is_best else state.best,
                best_loss=found if is_best else state.best_loss,
                history=state.history.at[place].set(jnp.stack([loss, found])),
            )
        return state, float(loss)

    def _number(self, name: str) -> int:
        return self.config.workers if name == "networks" else self.config.quadratics

    def _new_workers(self, name: str) -> Worker:
        family, number = self._families[name], self._number(name)
        params = jnp.zeros(sum(family.leaves))
        state = learned.scale_by_mlp(self._unravel(self._fresh)).init(params)
        carry = jax.tree.map(
            lambda x: jnp.zeros((number, 2, *x.shape), x.dtype), (params, state)
        )
        zero = jnp.zeros(number, jnp.int32)
        return Worker(zero, zero, jnp.zeros((number, len(self._fresh))), carry)

    def _folded(self, *parts: Any) -> jax.Array:
        key = self._key
        for part in parts:
            key = jax.random.fold_in(key, part)
        return key

    def _of_worker(
        self, name: str, flat: jax.Array, step: Any, index: Any, worker: Worker
    ) -> tuple[Worker, jax.Array, jax.Array]:
        """A window of one worker: the worker after it, its gradient and its score."""
        config, family = self.config, self._families[name]
        place = list(FAMILIES).index(name)
        key = self._folded(_EPISODES, place, index, worker.episode)
        chosen = episodes.setting(family, key, config.longest)
        # So that early and late phases are in every step from the first on.
        part = (index + 1) / (self._number(name) + 1)
        end = jnp.where(worker.episode == 0, part * chosen.horizon, chosen.horizon)
        is_new = worker.time == 0
        noise, total = estimators.perturb(
            config.estimator,
            self._folded(_NOISE, place, index, step),
            worker.total,
            is_new,
        )
        begun = episodes.begin(family, key, chosen)
        times = worker.time + jnp.arange(config.window)

        def one(sign, carry):
            weights = self._unravel(flat + sign * config.sigma * noise)
            carry = jax.tree.map(lambda b, x: jnp.where(is_new, b, x), begun, carry)
            carry, losses = episodes.steps(family, weights, key, chosen, carry, times)
            return carry, episodes.score(losses)

        carry, scores = jax.vmap(one)(jnp.array([1.0, -1.0]), worker.carry)
        slope = estimators.gradient(total, scores[0], scores[1], config.sigma)
        time = worker.time + config.window
        is_done = time >= end
        worker = Worker(
            worker.episode + is_done, jnp.where(is_done, 0, time), total, carry
        )
        return worker, slope, jnp.mean(scores)

    def _make_window(self) -> Any:
        def window(step, flat, outer, workers):
            new, slopes, scores = {}, [], []
            for name, own in workers.items():
                of_worker = functools.partial(self._of_worker, name, flat, step)
                new[name], slope, score = jax.vmap(of_worker)(
                    jnp.arange(self._number(name)), own
                )
                slopes.append(slope)
                scores.append(score)
            slope = estimators.clipped_mean(jnp.concatenate(slopes), _LIMIT)
            changes, outer = self._outer.update(slope, outer, flat)
            flat = optax.apply_updates(flat, changes)
            return flat, outer, new, jnp.mean(jnp.concatenate(scores))

        return window

    def _make_evaluation(self) -> Any:
        config = self.config
        times = jnp.arange(config.test_steps)

        def one(name, weights, key):
            family = self._families[name]
            chosen = episodes.setting(family, key, config.longest)
            chosen = chosen._replace(horizon=jnp.int32(config.test_steps))
            carry = episodes.begin(family, key, chosen)
            losses = episodes.steps(family, weights, key, chosen, carry, times)[1]
            return episodes.score(losses)

        def evaluate(flat):
            weights, found = self._unravel(flat), []
            for place, name in enumerate(FAMILIES):
                keys = jax.random.split(
                    self._folded(_EVALUATION, place), config.test_tasks
                )
                of_key = functools.partial(one, name, weights)
                found.append(jax.vmap(of_key)(keys))
            return jnp.mean(jnp.concatenate(found))

        return evaluate
