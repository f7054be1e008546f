"""Classification of images."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.common import axes
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.data import images, stream
from experiments.models import resnet
from experiments.models.losses import cross_entropy
from experiments.models.perceptron import Perceptron
from experiments.tasks.base import (
    Batch,
    PyTree,
    Source,
    Sums,
    Task,
    weight,
    weighted_sums,
)


def load(config: Config) -> Source:
    """Reads the images that ``config.data`` names."""
    mean, std = config.data.mean, config.data.std
    if len(mean) != len(std):
        raise UserError(
            f"config.data.mean={mean}, config.data.std={std}: must be equally many"
        )
    data = images.load(config.data)
    if len(config.data.mean) not in (1, data.channels):
        raise UserError(
            f"config.data.mean={config.data.mean}: must have 1 number, or one for each "
            f"of {data.channels} channels"
        )
    return Source(data.sha256, lambda workdir: _build(config, data))


def _build(config: Config, data: images.Images) -> Task:
    rows = stream.microbatch_size(config)
    num_train = len(data.train.labels)
    if config.batch_size > num_train:
        raise UserError(
            f"config.batch_size={config.batch_size}: must be at most {num_train}, the "
            "number of training images"
        )

    def eval_batches():
        return images.eval_batches(data.validation, rows)

    # Images that are in memory anyway: read out once.
    cached = functools.cache(lambda: list(eval_batches()))
    return Task(
        **model_functions(config, data.num_classes, data.channels, data.largest_pixel),
        train_batches=functools.partial(
            images.train_batches, data.train, rows, config.seed
        ),
        eval_batches=cached if data.in_memory else eval_batches,
        baselines={
            "class frequencies": images.frequency_cross_entropy(
                data.train, data.validation
            )
        },
        description={
            "source": data.origin,
            "sha256": data.sha256,
            "classes": data.num_classes,
            "train_images": num_train,
            "validation_images": len(data.validation.labels),
        },
        save_assets=lambda folder: None,
    )


def _perceptron(config: Config, num_classes: int, channels: int) -> Callable:
    num_in = channels * config.data.image_size**2
    width, num_layers = config.model.width, config.model.num_layers
    return functools.partial(Perceptron, num_in, width, num_layers, num_classes)


def _resnet(config: Config, num_classes: int, channels: int) -> Callable:
    model_config = resnet.ResNetConfig(
        num_classes=num_classes,
        channels=channels,
        axis_name=axes.batch_axis(config),
        **{name: value for name, value in config.model.items() if name != "name"},
    )
    return functools.partial(resnet.ResNet, model_config)


MODELS = {"perceptron": _perceptron, "resnet": _resnet}


def smallest(config: Config) -> dict[str, Callable[..., Any]]:
    """The functions of a model for grey images of one class."""
    return model_functions(config, 1, 1, 1)


def model_functions(
    config: Config, num_classes: int, channels: int, largest_pixel: int
) -> dict[str, Callable[..., Any]]:
    """Returns the task's pure functions, by name."""
    build = MODELS[config.model.name](config, num_classes, channels)
    graph = nnx.graphdef(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
    mean = jnp.asarray(config.data.mean, jnp.float32)[None, None, None]
    std = jnp.asarray(config.data.std, jnp.float32)[None, None, None]

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        return _pure_state(build(rngs=nnx.Rngs(key)))

    def apply(params: PyTree, model_state: PyTree, batch: Batch, *, train: bool):
        pixels = batch["images"].astype(jnp.float32) / largest_pixel
        model = nnx.merge(graph, params, model_state)
        logits = model((pixels - mean) / std, train=train)
        return logits, _pure_state(model)[1]

    def loss_sum(
        params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        del key  # augmentation is the data's
        logits, model_state = apply(params, model_state, batch, train=True)
        losses = cross_entropy(logits, batch["labels"], config.label_smoothing)
        return jnp.sum(losses * batch["weights"]), model_state

    def eval_sums(params: PyTree, model_state: PyTree, batch: Batch) -> Sums:
        logits, _ = apply(params, model_state, batch, train=False)
        labels = batch["labels"]
        losses = cross_entropy(logits, labels)
        correct = jnp.argmax(logits, axis=-1) == labels
        return weighted_sums(batch, losses, correct)

    return {
        "init": init,
        "weight": weight,
        "loss_sum": loss_sum,
        "eval_sums": eval_sums,
    }


def _pure_state(model: nnx.Module) -> tuple[PyTree, PyTree]:
    """What gradients train, and the statistics, which they do not."""
    _, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)
