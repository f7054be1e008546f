"""Trainings that no learned optimizer here has been trained on."""

import functools
import math
from pydoc_data import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

from experiments.data import digits
from experiments.tasks import problems
from experiments.tasks.problems import Data, Problem

_LETTERS = " abcdefghijklmnopqrstuvwxyz.,()_"
_CONTEXT = 3  # letters before the one that is predicted
_ROWS = 5000


def wine_data() -> Data:
    """Scikit-learn's table of wines, columns of mean 0 and deviation 1."""
    found: Any = datasets.load_wine()
    inputs = (found.data - found.data.mean(axis=0)) / found.data.std(axis=0)
    train, held = digits.split(len(inputs), seed=0)
    inputs, labels = inputs.astype(np.float32), found.target.astype(np.int32)
    return Data(inputs[train], labels[train], inputs[held], labels[held])


def letters_data() -> Data:
    """The next letter of Python's language reference, from the three before it."""
    text = " ".join(" ".join(topics.topics.values()).lower().split())
    known = {letter: i for i, letter in enumerate(_LETTERS)}
    numbers = np.array([known.get(letter, 0) for letter in text], np.int32)
    places = np.random.default_rng(0).choice(
        len(numbers) - _CONTEXT, _ROWS, replace=False
    )
    windows = numbers[places[:, None] + np.arange(_CONTEXT)]
    inputs = np.eye(len(_LETTERS), dtype=np.float32)[windows].reshape(_ROWS, -1)
    labels = numbers[places + _CONTEXT]
    train, held = digits.split(_ROWS, seed=0)
    return Data(inputs[train], labels[train], inputs[held], labels[held])


def autoencoder(width: int = 12) -> Problem:
    """Digits through a narrow layer: the squared error over the variance."""
    data = problems.digits_data()
    size = data.inputs.shape[1]
    shapes = [(size + 1, width), (width + 1, size)]
    split = math.prod(shapes[0])
    variance = float(np.mean((data.inputs - data.inputs.mean(axis=0)) ** 2))

    def error(weights, inputs):
        first, last = weights[:split].reshape(shapes[0]), weights[split:]
        last = last.reshape(shapes[1])
        hidden = jnp.tanh(inputs @ first[:-1] + first[-1:])
        return jnp.mean((hidden @ last[:-1] + last[-1:] - inputs) ** 2) / variance

    def loss(weights, key):
        rows = jax.random.randint(key, (problems.BATCH,), 0, len(data.inputs))
        return error(weights, jnp.asarray(data.inputs)[rows])

    return Problem(
        lambda key: problems.initial_layers(key, shapes),
        loss,
        problems.no_noise,
        lambda w: (error(w, data.held_inputs), jnp.zeros([])),
        ceiling=float(np.mean(data.inputs**2)) / variance,
        leaves=(size * width, width, width * size, size),
    )


def rosenbrock(size: int = 32) -> Problem:
    """The chain of valleys, from near 0; without data, so that both losses are one."""

    def loss(x, key=None):
        del key
        valley = jnp.square(x[1:] - jnp.square(x[:-1]))
        return jnp.mean(100 * valley + jnp.square(1 - x[:-1]))

    return Problem(
        lambda key: 0.1 * jax.random.normal(key, (size,)),
        loss,
        problems.no_noise,
        lambda w: (loss(w), jnp.zeros([])),
        ceiling=1.0,
        leaves=(size,),
    )


@functools.cache
def named() -> dict[str, Problem]:
    """All tasks, each with what is new in it."""
    data, network, no_noise = (
        problems.digits_data(),
        problems.network,
        problems.no_noise,
    )
    tumours, heavy = problems.tumours_data(), problems.pareto(1.2, 1e-2)
    return {
        "digits, three layers": network(
            problems.digits_data(1), (24, 24, 24), jnp.tanh, no_noise
        ),
        "digits, wide, GELU": network(data, (64,), jax.nn.gelu, no_noise),
        "digits, tail 1.1": network(
            data, (32,), jax.nn.relu, problems.pareto(1.1, 1e-2)
        ),
        "tumours, tail 1.2": network(tumours, (16,), jnp.tanh, heavy),
        "wine": network(wine_data(), (16, 16), jax.nn.silu, no_noise),
        "letters": network(letters_data(), (48,), jax.nn.relu, no_noise),
        "autoencoder": autoencoder(),
        "Rosenbrock": rosenbrock(),
    }
