"""The MLP's weights against what they are to beat, on tasks that are new to them."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from experiments.studies import learned_tasks, study, tuning
from experiments.tasks import problems
from experiments.tasks.problems import Problem
from optax_heavytail import learned

STEPS = {"x1": 150, "x5": 750}
RATES = tuning.around(0.01, 11, 2.0)
TUNING_SEEDS = {"x1": (0, 1), "x5": (0,)}
FRESH_SEEDS = (10, 11, 12, 13, 14)
WEIGHTS = "mlp_v1"
_DECAY = 1e-4
_WORST, _OFFSET = 5.0, 1e-3  # of a loss under its logarithm


def _with_decay(direction: Any) -> Any:
    return optax.chain(direction, oht.add_decayed_weights(_DECAY))


def untrained() -> learned.MLPWeights:
    """Weights with which the MLP changes nothing: normalised ACClip, winsorised."""
    return learned.init_mlp(jax.random.key(0))


TASKS = (
    "digits, three layers",
    "digits, wide, GELU",
    "digits, tail 1.1",
    "tumours, tail 1.2",
    "wine",
    "letters",
    "autoencoder",
    "Rosenbrock",
)
CONTESTANTS: dict[str, Callable[[], Any]] = {
    "mlp_v1": lambda: _with_decay(learned.scale_by_mlp(learned.load(WEIGHTS))),
    "untrained": lambda: _with_decay(learned.scale_by_mlp(untrained())),
    "acclip": lambda: _with_decay(oht.scale_by_acclip(eps=1e-8, normalize=True)),
    "adamw": lambda: _with_decay(oht.scale_by_adam()),
}


def digest() -> str:
    """Of the weights: measurements of others are not theirs."""
    arrays = learned.load(WEIGHTS)
    content = b"".join(np.asarray(x).tobytes() for x in arrays)
    return hashlib.sha256(content).hexdigest()[:12]


def settings(name: str) -> dict[str, str]:
    """What a measurement of a contestant is of."""
    known = {"weights": digest()} if name == WEIGHTS else {}
    return {"optimizer": name, **known}


def split(vector: jax.Array, leaves: Sequence[int]) -> list[jax.Array]:
    """A vector as the leaves that make it."""
    ends = np.cumsum(leaves)
    return [vector[e - n : e] for e, n in zip(ends, leaves, strict=True)]


def lane(problem: Problem, tx: Any) -> Callable[..., Any]:
    """A training as a function of (rate, seed, steps); what it returns is of all steps.

    Returns:
      The mean logarithm of the training loss, the logarithm of the validation loss at
      the end, and the loss of the last step.
    """

    def run(rate, seed, steps):
        key = jax.random.key(seed)
        start = split(problem.init(jax.random.fold_in(key, 0)), problem.leaves)

        def step(t, carry):
            params, state, total, _ = carry
            of_batch, of_noise = jax.random.split(jax.random.fold_in(key, t + 1))
            vector = jnp.concatenate(params)
            loss, grads = jax.value_and_grad(problem.loss)(vector, of_batch)
            grads = split(problem.noise(grads, of_noise), problem.leaves)
            updates, state = tx.update(grads, state, params)
            now = rate * (1 + jnp.cos(jnp.pi * t / steps)) / 2
            params = [w - now * u for w, u in zip(params, updates, strict=True)]
            return params, state, total + logarithm(loss), loss

        carry = start, tx.init(start), jnp.zeros([]), jnp.zeros([])
        params, _, total, last = jax.lax.fori_loop(0, steps, step, carry)
        validation, _ = problem.validate(jnp.concatenate(params))
        return total / steps, logarithm(validation), last

    return run


def logarithm(loss: jax.Array) -> jax.Array:
    """Of a loss; one that is not finite is the largest that counts."""
    kept = jnp.where(loss < _WORST, loss, _WORST)
    return jnp.log(kept + _OFFSET)


@functools.cache
def _program(task: str, name: str) -> Callable[..., Any]:
    """So many lanes as there are rates, compiled once for each length."""
    run = lane(learned_tasks.named()[task], CONTESTANTS[name]())
    return jax.jit(jax.vmap(run, (0, 0, None)))


@functools.cache
def measure(task: str, name: str, length: str) -> dict[str, Any]:
    """The best rate of all by the training score, and fresh seeds at it."""
    program, steps = _program(task, name), STEPS[length]
    rates = jnp.asarray(RATES, jnp.float32)
    seeds = TUNING_SEEDS[length]
    scores = np.mean(
        [program(rates, jnp.full(len(RATES), s), steps)[0] for s in seeds], axis=0
    )
    best = int(np.argmin(scores))
    padded = jnp.asarray((*FRESH_SEEDS, *[0] * (len(RATES) - len(FRESH_SEEDS))))
    found = program(jnp.full(len(RATES), rates[best]), padded, steps)
    train, validation, _ = (np.asarray(x)[: len(FRESH_SEEDS)] for x in found)
    return {
        "scores": study.rounded(scores),
        "rate": study.rounded([RATES[best]])[0],
        "is_inside": 0 < best < len(RATES) - 1,
        "train": study.rounded(train),
        "validation": study.rounded(validation),
    }


def iqm(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half of the last axis, whose ends count by their share."""
    number, places = values.shape[-1], np.arange(values.shape[-1])
    ends = np.minimum(places + 1, 0.75 * number), np.maximum(places, 0.25 * number)
    shares = np.maximum(ends[0] - ends[1], 0)
    return np.sort(values, axis=-1) @ shares / shares.sum()


# Stability

RUNS, STABLE_STEPS = 100, 300
TAILS = (1.1, 2.0)
_SPIKE, _EVERY = 1e4, 50


def diverged(name: str, rate: float) -> dict[str, Any]:
    """Of 100 trainings under tails, spikes and other units, those that end badly.

    That is a last loss which is not finite or is above that of no learning.
    """
    problem = problems.network(
        problems.digits_data(), (32,), jax.nn.relu, problems.no_noise
    )
    rng = np.random.default_rng(0)
    tails = rng.uniform(*TAILS, RUNS).astype(np.float32)
    units = (10.0 ** rng.uniform(-3, 3, RUNS)).astype(np.float32)

    def one(tail, unit, seed):
        def noise(grads, key):
            heavy = problems.pareto(tail, 1e-2)(grads, key)
            is_spike = jax.random.uniform(jax.random.fold_in(key, 1)) < 1 / _EVERY
            return unit * jnp.where(is_spike, _SPIKE * heavy, heavy)

        scaled = problem._replace(
            init=lambda key: problem.init(key) / unit,
            loss=lambda w, key: problem.loss(unit * w, key),
            noise=lambda grads, key: noise(grads / unit, key),
            validate=lambda w: problem.validate(unit * w),
        )
        run = lane(scaled, CONTESTANTS[name]())
        return run(rate / unit, seed, STABLE_STEPS)[2]

    losses = np.asarray(
        jax.jit(jax.vmap(one))(tails, units, jnp.arange(RUNS)), np.float64
    )
    bad = ~(losses < problem.ceiling)
    return {
        "diverged": int(bad.sum()),
        "median": study.rounded([np.median(losses[~bad])])[0]
        if not bad.all()
        else None,
    }
