"""Problems that no search for rules has been judged by, for optimizers of any kind."""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import text
from experiments.models.losses import cross_entropy
from experiments.studies.training import Problem, PyTree
from experiments.studies.tuning import Protocol
from experiments.tasks import problems

STEPS = 500
PROTOCOL = Protocol(
    points=13,
    rate_factor=2.0,
    tuning_seeds=(0, 1, 2),
    fresh_seeds=(10, 11, 12, 13, 14),
)
# The characters: how many of a text, how many are told apart, and how many are seen.
LENGTH, SYMBOLS, CONTEXT, HIDDEN = 200_000, 40, 6, 32
BATCH, HELD = 64, 2_000

# What they are called in tables, and the problem of the search's holdout.
PROBLEMS = {
    "digits, deeper": "deeper_tanh",
    "tumours, Pareto noise": "tumours_pareto",
    "characters": None,
}


def problem(name: str) -> Problem:
    """One of `PROBLEMS`."""
    found = PROBLEMS[name]
    return _characters() if found is None else _of_holdout(found)


def _of_holdout(name: str) -> Problem:
    found = problems.named()[name]

    def loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
        del data
        of_batch, of_noise = jax.random.split(jax.random.wrap_key_data(batch["key"]))
        noise = found.noise(jnp.zeros_like(params), of_noise)
        # Nothing but a gradient.
        drift = jnp.vdot(noise, params - jax.lax.stop_gradient(params))
        return found.loss(params, of_batch) + drift, state

    def evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
        del state, data
        loss, errors = found.validate(params)
        return loss, 1 - errors

    def batches(seed: int) -> dict[str, np.ndarray]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), STEPS)
        return {"key": np.asarray(jax.random.key_data(keys))}

    return Problem(
        STEPS,
        lambda key: (found.init(key), {}),
        loss,
        evaluate,
        (),
        batches,
        evaluations=1,
        side_by_side=True,
    )


def _characters() -> Problem:
    """The next character of the language reference, from the six before it."""
    train, held = _codes()
    window = np.arange(CONTEXT + 1)
    rows = np.linspace(0, len(held) - CONTEXT - 2, HELD).astype(int)[:, None]

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        first, last = jax.random.split(key)
        params = {
            "in": jax.random.normal(first, (CONTEXT * SYMBOLS, HIDDEN)) / CONTEXT**0.5,
            "bias": jnp.zeros((1, HIDDEN)),
            "out": jax.random.normal(last, (HIDDEN, SYMBOLS)) / HIDDEN**0.5,
            "out_bias": jnp.zeros((1, SYMBOLS)),
        }
        return params, {}

    def logits(params: PyTree, windows: jax.Array) -> jax.Array:
        seen = jax.nn.one_hot(windows[:, :-1], SYMBOLS).reshape(len(windows), -1)
        hidden = jax.nn.relu(seen @ params["in"] + params["bias"])
        return hidden @ params["out"] + params["out_bias"]

    def loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
        windows = data[0][batch["places"][:, None] + window]
        return cross_entropy(logits(params, windows), windows[:, -1]).mean(), state

    def evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
        del state
        found, labels = logits(params, data[1]), data[1][:, -1]
        is_right = jnp.argmax(found, axis=-1) == labels
        return cross_entropy(found, labels).mean(), jnp.mean(is_right)

    def batches(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, 1])
        return {"places": rng.integers(len(train) - CONTEXT - 1, size=(STEPS, BATCH))}

    return Problem(
        STEPS,
        init,
        loss,
        evaluate,
        (train, held[rows + window]),
        batches,
        evaluations=1,
        side_by_side=True,
    )


@functools.cache
def _codes() -> tuple[np.ndarray, np.ndarray]:
    """A number for each character, of the first nine tenths and of the rest."""
    joined = "\n\n".join(text.load_corpus("", "").documents)[:LENGTH].lower()
    common = collections.Counter(joined).most_common(SYMBOLS - 1)
    number = {character: i for i, (character, _) in enumerate(common, 1)}
    codes = np.array([number.get(c, 0) for c in joined], np.int32)
    end = 9 * len(codes) // 10
    return codes[:end], codes[end:]
