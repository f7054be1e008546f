"""What a task offers to the training loop."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

PyTree = Any
Batch = dict[str, Any]
Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """Pure functions over pytrees, and the data they are applied to.

    Attributes:
      init_params: key -> parameters.
      loss: (parameters, batch, key) -> (mean loss, metrics to log).
      eval_sums: (parameters, batch) -> sums over the batch of "weight", "loss" and
        further metrics; a sum over all batches divided by "weight" is the metric.
      train_batches: first step -> endless batches, the same in every run.
      eval_batches: the validation batches, all of one shape.
      baselines: losses to compare with, drawn as lines in reports.
      description: what the data is, as JSON.
      save_assets: writes what is needed to use the parameters to a folder.
    """

    init_params: Callable[[jax.Array], PyTree]
    loss: Callable[[PyTree, Batch, jax.Array], tuple[jax.Array, Sums]]
    eval_sums: Callable[[PyTree, Batch], Sums]
    train_batches: Callable[[int], Iterator[Batch]]
    eval_batches: Callable[[], Iterable[Batch]]
    baselines: dict[str, float]
    description: dict[str, Any]
    save_assets: Callable[[Path], None]


@dataclasses.dataclass(frozen=True)
class Source:
    """Data that is read and identified, from which a task can be built.

    Attributes:
      sha256: hash of the data.
      build: work directory of a run -> its task; assets saved there are used again.
    """

    sha256: str
    build: Callable[[Path], Task]
