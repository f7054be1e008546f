"""A perceptron on scikit-learn's digits, for studies of many small trainings."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data import digits
from experiments.models.losses import cross_entropy
from experiments.models.perceptron import Perceptron
from experiments.studies.training import Problem, PyTree
from experiments.studies.tuning import Protocol

PROTOCOL = Protocol(
    points=25,
    rate_factor=2**0.5,
    tuning_seeds=(0, 1, 2),
    fresh_seeds=(10, 11, 12, 13, 14),
)

_MODEL = functools.partial(Perceptron, digits.SIZE**2, 64, 2, digits.NUM_CLASSES)


class Setup(NamedTuple):
    """What the network is trained under."""

    steps: int = 1000
    batch_size: int = 64
    label_noise: float = 0.0  # share of training labels drawn anew
    spike_every: int = 0  # steps from one gradient times ``spike`` to the next
    spike: float = 1e4


def problem(setup: Setup) -> Problem:
    """The network under a set-up."""
    (images, labels), validation = load()

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        return nnx.split(_MODEL(rngs=nnx.Rngs(key)), nnx.Param)[1], {}

    def loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
        return losses(params, data[0][batch["rows"]], batch["labels"]).mean(), state

    def evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
        del state
        images, labels = data[1]
        is_right = jnp.argmax(logits(params, images), axis=-1) == labels
        return losses(params, images, labels).mean(), jnp.mean(is_right)

    def batches(seed: int) -> dict[str, np.ndarray]:
        rows = batch_indices(setup, len(images), seed)
        return {"rows": rows, "labels": noisy_labels(labels, setup, seed)[rows]}

    return Problem(
        setup.steps,
        init,
        loss,
        evaluate,
        (images, validation),
        batches,
        corrupt=functools.partial(_spiked, setup) if setup.spike_every else None,
        side_by_side=True,
    )


def logits(params: PyTree, images: jax.Array) -> jax.Array:
    """(images, classes) of the network."""
    return nnx.merge(_graph(), params)(images)


def losses(params: PyTree, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of each image, in nats."""
    return cross_entropy(logits(params, images), labels)


@functools.cache
def _graph() -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: _MODEL(rngs=nnx.Rngs(0))))


def _spiked(setup: Setup, grads: PyTree, count: jax.Array) -> PyTree:
    # In the middle of each interval: neither first nor last step.
    is_spike = count % setup.spike_every == setup.spike_every // 2
    return jax.tree.map(lambda g: jnp.where(is_spike, setup.spike * g, g), grads)


@functools.cache
def load() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images from 0 to 1 and labels, for training and for validation."""
    pixels, labels, _ = digits.load()
    images = pixels.reshape(len(pixels), -1).astype(np.float32) / digits.LARGEST_PIXEL
    train, held_out = digits.split(len(images), seed=0)
    return (images[train], labels[train]), (images[held_out], labels[held_out])


def batch_indices(setup: Setup, num_images: int, seed: int) -> np.ndarray:
    """Rows of each step, (steps, batch size): whole passes in random order."""
    rng = np.random.default_rng([seed, 1])
    wanted = setup.steps * setup.batch_size
    passes = [rng.permutation(num_images) for _ in range(-(-wanted // num_images))]
    rows = np.concatenate(passes)[:wanted]
    return rows.reshape(setup.steps, setup.batch_size)


def noisy_labels(labels: np.ndarray, setup: Setup, seed: int) -> np.ndarray:
    """Labels of which a share is drawn anew from all classes."""
    rng = np.random.default_rng([seed, 2])
    drawn = rng.integers(digits.NUM_CLASSES, size=len(labels))
    return np.where(rng.random(len(labels)) < setup.label_noise, drawn, labels)
