"""Classification of digits by a small perceptron."""

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
    pipeline = digits.train_pipeline(train, config.batch_size, config.seed)
    init_params, loss, eval_sums = model_functions(config.model)
    frequencies = np.bincount(train.labels) / len(train.labels)
    return Task(
        init_params=init_params,
        loss=loss,
        eval_sums=eval_sums,
        train_batches=lambda start_step: stream.iterate(pipeline, start_step),
        eval_batches=lambda: [validation._asdict()],
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


def model_functions(config: Config):
    """Returns the pure functions ``init_params``, ``loss`` and ``eval_sums``."""

    def build(rngs: nnx.Rngs) -> Perceptron:
        return Perceptron(
            config.width, config.num_layers, digits.NUM_CLASSES, rngs=rngs
        )

    graph = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init_params(key: jax.Array) -> PyTree:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key))))

    def losses(params: PyTree, batch: Batch):
        logits = nnx.merge(graph, params)(batch["images"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["labels"]
        ), logits

    def loss(params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        del key  # no dropout
        return jnp.mean(losses(params, batch)[0]), {}

    def eval_sums(params: PyTree, batch: Batch) -> Sums:
        values, logits = losses(params, batch)
        correct = jnp.argmax(logits, axis=-1) == batch["labels"]
        return {
            "weight": jnp.asarray(values.size, jnp.float32),
            "loss": jnp.sum(values),
            "accuracy": jnp.sum(correct, dtype=jnp.float32),
        }

    return init_params, loss, eval_sums
