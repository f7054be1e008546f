"""The small trainings that rules are judged by: pure functions of one flat vector."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

from experiments.data import digits

BATCH = 64
_NO_GAIN = math.log(10)  # nats, where there are no classes


class Problem(NamedTuple):
    """A network on data, or a function, with noise in its gradients."""

    init: Callable[[jax.Array], jax.Array]  # key -> weights (n,)
    loss: Callable[[jax.Array, jax.Array], jax.Array]  # weights, key of a batch -> ()
    noise: Callable[[jax.Array, jax.Array], jax.Array]  # gradient, key -> gradient
    # weights -> validation loss and share of errors; of a function errors are 0
    validate: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    ceiling: float  # the loss of a model that has learnt nothing
    leaves: tuple[int, ...]  # sizes of the parts that make the vector


class Data(NamedTuple):
    """Rows for training and for validation."""

    inputs: np.ndarray
    labels: np.ndarray
    held_inputs: np.ndarray
    held_labels: np.ndarray

    @property
    def classes(self) -> int:
        """Labels from 0 on."""
        return int(self.labels.max()) + 1


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean, with the largest logit subtracted before anything else.

    ``logsumexp(z) - z[y]`` cancels in float32: of ten logits of 1e8 it is 0, not
    log 10. A search finds that within minutes.
    """
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    centred = logits - top
    own = jnp.take_along_axis(centred, labels[:, None], axis=-1)[:, 0]
    return jnp.mean(jnp.log(jnp.sum(jnp.exp(centred), axis=-1)) - own)


def digits_data(split_seed: int = 0) -> Data:
    """Scikit-learn's digits, pixels from 0 to 1."""
    images, labels, _ = digits.load()
    inputs = images.reshape(len(images), -1).astype(np.float32) / digits.LARGEST_PIXEL
    train, held = digits.split(len(images), split_seed)
    return Data(inputs[train], labels[train], inputs[held], labels[held])


def tumours_data() -> Data:
    """Scikit-learn's table of breast tumours, columns of mean 0 and deviation 1."""
    found: Any = datasets.load_breast_cancer()
    inputs = (found.data - found.data.mean(axis=0)) / found.data.std(axis=0)
    train, held = digits.split(len(inputs), seed=0)
    inputs, labels = inputs.astype(np.float32), found.target.astype(np.int32)
    return Data(inputs[train], labels[train], inputs[held], labels[held])


def with_wrong_labels(data: Data, share: float) -> Data:
    """The training labels, some of them drawn anew."""
    rng = np.random.default_rng(1)
    wrong = rng.random(len(data.labels)) < share
    drawn = rng.integers(0, data.classes, len(data.labels), np.int32)
    return data._replace(labels=np.where(wrong, drawn, data.labels))


def network(
    data: Data,
    hidden: Sequence[int],
    activation: Callable[[jax.Array], jax.Array],
    noise: Callable[[jax.Array, jax.Array], jax.Array],
    batch: int = BATCH,
) -> Problem:
    """A perceptron with softmax, trained on so many rows a step."""
    widths = (data.inputs.shape[1], *hidden, data.classes)
    shapes = [(a + 1, b) for a, b in itertools.pairwise(widths)]
    ends = np.cumsum([math.prod(shape) for shape in shapes])

    def logits(weights, inputs):
        x = inputs
        for i, (shape, end) in enumerate(zip(shapes, ends, strict=True)):
            layer = weights[end - math.prod(shape) : end].reshape(shape)
            x = activation(x) if i else x
            x = x @ layer[:-1] + layer[-1:]
        return x

    def init(key):
        return initial_layers(key, shapes)

    def loss(weights, key):
        rows = jax.random.randint(key, (batch,), 0, len(data.labels))
        inputs, labels = jnp.asarray(data.inputs)[rows], jnp.asarray(data.labels)[rows]
        return cross_entropy(logits(weights, inputs), labels)

    def validate(weights):
        found = logits(weights, data.held_inputs)
        errors = jnp.mean(jnp.argmax(found, axis=-1) != data.held_labels)
        return cross_entropy(jnp.asarray(found), jnp.asarray(data.held_labels)), errors

    shares = np.bincount(data.held_labels) / len(data.held_labels)
    ceiling = float(-np.sum(shares * np.log(shares)))
    leaves = tuple(size for a, b in shapes for size in ((a - 1) * b, b))
    return Problem(init, loss, noise, validate, ceiling, leaves)


def initial_layers(key: jax.Array, shapes: Sequence[tuple[int, int]]) -> jax.Array:
    """Weights of layers as one vector; the last row of each is its bias, of zeros."""
    keys = jax.random.split(key, len(shapes))
    layers = [
        jax.random.normal(k, (a, b)) * (jnp.arange(a) < a - 1)[:, None] / a**0.5
        for k, (a, b) in zip(keys, shapes, strict=True)
    ]
    return jnp.concatenate([layer.ravel() for layer in layers])


def quadratic(condition: float, size: int = 64) -> Problem:
    """A separable quadratic, of log(10) at the start as the losses of ten classes."""
    curvatures = np.logspace(0, -math.log10(condition), size, dtype=np.float32)
    scale = _NO_GAIN / float(np.sum(curvatures))

    def loss(weights, key=None):
        del key
        return scale * jnp.sum(curvatures * jnp.square(weights))

    def init(key):
        return jnp.sign(jax.random.normal(key, (size,)))

    return Problem(
        init,
        loss,
        no_noise,
        lambda w: (loss(w), jnp.zeros([])),
        ceiling=_NO_GAIN,
        leaves=(size,),
    )


def no_noise(gradient: jax.Array, key: jax.Array) -> jax.Array:
    """The gradient as it is."""
    del key
    return gradient


def pareto(tail: float, scale: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Adds symmetric noise of a tail index, by the inverse of its distribution."""

    def noise(gradient, key):
        # One uniform for sign and size: its own bits are all there is to draw.
        u = jax.random.uniform(key, gradient.shape, minval=-1.0, maxval=1.0)
        size = (1 - jnp.abs(u) * (1 - 1e-6)) ** (-1 / tail) - 1
        return gradient + scale * jnp.sign(u) * size

    return noise


@functools.cache
def named() -> dict[str, Problem]:
    """All problems. Those of the holdout are never searched on."""
    data, heavy = digits_data(), pareto(1.5, 3e-3)
    wrong = with_wrong_labels(data, 0.2)
    return {
        "digits": network(data, (32,), jax.nn.relu, no_noise),
        "digits_pareto": network(data, (32,), jax.nn.relu, heavy),
        "digits_wrong_labels": network(wrong, (32,), jax.nn.relu, no_noise),
        "quadratic": quadratic(1e4),
        "deeper_tanh": network(digits_data(1), (24, 24, 24), jnp.tanh, no_noise),
        "tumours_pareto": network(tumours_data(), (16,), jnp.tanh, pareto(1.2, 1e-2)),
    }


FIRST = ("digits", "digits_pareto")
SECOND = (*FIRST, "digits_wrong_labels", "quadratic")
HOLDOUT = ("deeper_tanh", "tumours_pareto")
