"""Microbatches of a `grain` dataset: their number is the position in the data.

Microbatch ``i`` has the same rows whatever the number of processes; process ``p`` of
``P`` has the ``p``-th of ``P`` equal parts of them.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import grain
import jax
import numpy as np

from experiments.errors import UserError
from experiments.types import Config

Batch = dict[str, np.ndarray]


def microbatch_size(config: Config) -> int:
    """Rows of a microbatch, over all processes.

    Raises:
      UserError: the batch is not cut into equal microbatches.
    """
    if config.accumulate < 1 or config.batch_size % config.accumulate:
        raise UserError(
            f"config.accumulate={config.accumulate}: must be 1 or more and divide "
            f"config.batch_size={config.batch_size}"
        )
    return config.batch_size // config.accumulate


def batches(
    examples: grain.MapDataset,
    size: int,
    start: int,
    batch_fn: Callable[[Sequence[Any]], Batch] | None = None,
) -> Iterator[Batch]:
    """This process's rows of the microbatches ``start``, ``start + 1``, ...

    Args:
      examples: endless; only the rows of this process are computed, ahead of need.
      size: rows of a microbatch, over all processes.
      start: number of the first microbatch.
      batch_fn: list of examples -> batch; `grain`'s own if ``None``.
    """
    count = jax.process_count()
    mine = examples.batch(size // count, batch_fn=batch_fn)[
        start * count + jax.process_index() :: count
    ]
    return cast(Iterator[Batch], iter(mine.to_iter_dataset()))


def whole(dataset: grain.MapDataset, start: int) -> Iterator[Batch]:
    """The same from a dataset of whole microbatches, of which this takes its rows."""
    for index in itertools.count(start):
        yield own_rows(cast(Batch, dataset[index]))


def own_rows(batch: Batch) -> Batch:
    """The rows of this process."""
    count, index = jax.process_count(), jax.process_index()
    return {
        name: np.split(array, count)[index] if count > 1 else array
        for name, array in batch.items()
    }
