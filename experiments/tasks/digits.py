"""Classification of digits by a small perceptron."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.data import digits, stream
from experiments.errors import UserError
from experiments.models.perceptron import Perceptron
from experiments.tasks.base import Batch, PyTree, Source, Sums, Task
from experiments.types import Config


def load(config: Config) -> Source:
    """Reads the digits."""
    data, sha256 = digits.load()
    return Source(sha256, lambda workdir: _build(config, data, sha256))


def _build(config: Config, data: digits.Digits, sha256: str) -> Task:
    train, validation = digits.split(data, config.data.split_seed)
    if config.batch_size > len(train.labels):
        raise UserError(
            f"config.batch_size={config.batch_size}: must be at most "
            f"{len(train.labels)}, the number of training images"
        )
    pipeline = digits.train_pipeline(train, stream.microbatch_size(config), config.seed)
    held_out = digits.validation_batches(validation, stream.microbatch_size(config))
    frequencies = np.bincount(train.labels) / len(train.labels)
    return Task(
        **model_functions(config.model),
        train_batches=lambda start: stream.whole(pipeline, start),
        eval_batches=lambda: map(stream.own_rows, held_out),
        baselines={
            "class frequencies": float(-np.log(frequencies)[validation.labels].mean())
        },
        description={
            "source": "scikit-learn digits",
            "sha256": sha256,
            "train_images": len(train.labels),
            "validation_images": len(validation.labels),
        },
        save_assets=lambda folder: None,
    )


def model_functions(config: Config) -> dict[str, Callable[..., Any]]:
    """The pure functions of a `Task`."""

    def build(rngs: nnx.Rngs) -> Perceptron:
        return Perceptron(
            config.width, config.num_layers, digits.NUM_CLASSES, rngs=rngs
        )

    graph = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)))), {}

    def losses(params: PyTree, batch: Batch):
        logits = nnx.merge(graph, params)(batch["images"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["labels"]
        ), logits

    def weight(batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def loss_sum(
        params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        del key  # no dropout
        return jnp.sum(losses(params, batch)[0] * batch["weights"]), model_state

    def eval_sums(params: PyTree, model_state: PyTree, batch: Batch) -> Sums:
        del model_state
        values, logits = losses(params, batch)
        weights = batch["weights"]
        correct = jnp.argmax(logits, axis=-1) == batch["labels"]
        return {
            "weight": jnp.sum(weights),
            "loss": jnp.sum(values * weights),
            "accuracy": jnp.sum(correct * weights),
        }

    return {
        "init": init,
        "weight": weight,
        "loss_sum": loss_sum,
        "eval_sums": eval_sums,
    }
