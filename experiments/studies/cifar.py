"""Narrow ResNets on parts of CIFAR-10 at half its resolution."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.configs import image_defaults
from experiments.data import images
from experiments.studies import datasets
from experiments.studies.training import Problem, PyTree
from experiments.studies.tuning import Protocol
from experiments.tasks import images as image_task

PROTOCOL = Protocol(
    points=7, rate_factor=2.0, tuning_seeds=(0,), fresh_seeds=(10, 11, 12)
)
TAR = "cifar10/cifar10.tar.xz"
SIZE = 16  # pixels, of 32
TRAIN_IMAGES = 9_000
VALIDATION_IMAGES = 2_000
CLASSES = 10
EPOCHS = 12

Images = dict[str, np.ndarray]


@functools.cache
def read(folder: Path) -> images.Images:
    """All images, decoded; their validation part is the source's test part.

    Raises:
      UserError: the archive is missing, or another one.
    """
    config = image_defaults.image_config().data
    config.update(path=str(datasets.find(folder, TAR)), image_size=SIZE)
    return images.load(config)


@functools.cache
def load(folder: Path) -> tuple[Images, Images]:
    """Pixels and labels, for training and for validation, drawn from the whole parts.

    Raises:
      UserError: the archive is missing, or another one.
    """
    loaded = read(folder)
    rng = np.random.default_rng(0)

    def part(split: images.Split, number: int) -> Images:
        return chosen(split, rng.permutation(len(split.labels))[:number])

    return part(loaded.train, TRAIN_IMAGES), part(loaded.validation, VALIDATION_IMAGES)


def chosen(split: images.Split, rows: np.ndarray) -> Images:
    """The images of these rows, each of weight 1."""
    pixels = np.stack([split.view(int(i)) for i in rows])
    weights = np.ones(len(rows), np.float32)
    return {"images": pixels, "labels": split.labels[rows], "weights": weights}


def network(stem: str) -> dict[str, Callable[..., Any]]:
    """Three blocks, of widths 8, 16 and 32."""
    config = image_defaults.image_config()
    config.data.update(
        image_size=SIZE, mean=(0.4913, 0.4821, 0.4465), std=(0.2452, 0.2428, 0.2606)
    )
    config.model = ConfigDict(
        {
            "name": "resnet",
            "block": "basic",
            "stages": (1, 1, 1),
            "width": 8,
            "stem": stem,
            "dtype": "float32",
        }
    )
    config.parallel = "jit"
    return image_task.model_functions(config, CLASSES, 3, images.LARGEST_PIXEL)


def problem(folder: Path, batch_size: int) -> Problem:
    """The network on the images in ``folder``; any batch size has the same epochs."""
    made = of_parts(network("cifar"), load(folder), batch_size, EPOCHS)
    return made._replace(evaluations=EPOCHS)


def of_parts(
    functions: dict[str, Callable[..., Any]],
    parts: tuple[Images, Images],
    batch_size: int,
    epochs: int,
) -> Problem:
    """A network trained on one part and evaluated on the other, without augmentation.

    Args:
      functions: of `network`.
      parts: for training, and for the evaluation.
      batch_size: images of a step.
      epochs: passes over the training part, whose steps are whole batches.
    """
    number = len(parts[0]["labels"])
    steps = epochs * number // batch_size

    def loss(params: PyTree, state: PyTree, data: PyTree, rows: jax.Array) -> Any:
        batch = jax.tree.map(lambda x: x[rows], data[0])
        total, state = functions["loss_sum"](params, state, batch, jax.random.key(0))
        return total / batch_size, state

    def evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
        sums = functions["eval_sums"](params, state, data[1])
        return sums["loss"] / sums["weight"], sums["accuracy"] / sums["weight"]

    def batches(seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, 1])
        rows = [rng.permutation(number) for _ in range(epochs)]
        return np.concatenate(rows)[: steps * batch_size].reshape(steps, batch_size)

    return Problem(
        steps,
        functions["init"],
        loss,
        evaluate,
        jax.tree.map(jnp.asarray, parts),
        batches,
    )
