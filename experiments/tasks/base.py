"""What a task offers to the training loop."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Batch = dict[str, Any]
Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """Pure functions over pytrees, and the data they are applied to.

    The first axis of every array of a batch is its rows. A task knows nothing of
    devices: its functions see the rows of one microbatch, all of them under ``jit`` and
    those of one device under ``shard_map`` and ``pmap``. Batches are of this process's
    rows.

    Attributes:
      init: key -> (parameters, model state). The state is what no gradient trains, such
        as running statistics; ``{}`` if the model has none.
      weight: batch -> (), float32, what the loss is averaged over, such as rows.
      loss_sum: (parameters, model state, batch, key) -> (sum of the losses that
        ``weight`` counts, next model state).
      eval_sums: (parameters, model state, batch) -> sums over the batch of "weight",
        "loss" and further metrics; a sum over all batches divided by "weight" is the
        metric.
      train_batches: first microbatch -> endless microbatches, the same in every run.
      eval_batches: the validation batches, all of one shape; rows that only fill the
        last one up have no weight.
      baselines: losses to compare with, drawn as lines in reports.
      description: what the data is, as JSON.
      save_assets: writes what is needed to use the parameters to a folder.
      predict: (parameters, model state, batch) -> outputs of its rows, for metrics that
        need the outputs of all rows at once.
      score: outputs of all rows in their order, those that fill up too -> metrics.
      answers: the same outputs -> what a run leaves as its predictions, by question.
    """

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    weight: Callable[[Batch], jax.Array]
    loss_sum: Callable[[PyTree, PyTree, Batch, jax.Array], tuple[jax.Array, PyTree]]
    eval_sums: Callable[[PyTree, PyTree, Batch], Sums]
    train_batches: Callable[[int], Iterator[Batch]]
    eval_batches: Callable[[], Iterable[Batch]]
    baselines: dict[str, float]
    description: dict[str, Any]
    save_assets: Callable[[Path], None]
    predict: Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]] | None = None
    score: Callable[[dict[str, np.ndarray]], dict[str, float]] | None = None
    answers: Callable[[dict[str, np.ndarray]], dict[str, str]] | None = None


def weight(batch: Batch) -> jax.Array:
    """What the loss is averaged over, where a batch has ``weights``."""
    return jnp.sum(batch["weights"])


def weighted_sums(batch: Batch, losses: jax.Array, correct: jax.Array) -> Sums:
    """The sums of an evaluation, of arrays like the ``weights`` of the batch."""
    weights = batch["weights"]
    return {
        "weight": weight(batch),
        "loss": jnp.sum(losses * weights),
        "accuracy": jnp.sum(correct * weights),
    }


def without_data(functions: dict[str, Callable[..., Any]]) -> Task:
    """A task whose functions alone are wanted."""

    def no_data(*_: Any) -> Any:
        raise RuntimeError("this task has no data")

    return Task(
        **functions,
        train_batches=no_data,
        eval_batches=no_data,
        baselines={},
        description={},
        save_assets=no_data,
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """Data that is read and identified, from which a task can be built.

    Attributes:
      sha256: hash of the data.
      build: work directory of a run -> its task; assets saved there are used again.
    """

    sha256: str
    build: Callable[[Path], Task]
