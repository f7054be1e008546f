"""Microbatches of a `grain` dataset: their number is the position in the data.

Microbatch ``i`` has the same rows whatever the number of processes; process ``p`` of
``P`` has the ``p``-th of ``P`` equal parts of them.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import grain
import jax
import numpy as np

from experiments.common.errors import UserError
from experiments.common.types import Config

Batch = dict[str, np.ndarray]

# Rows that one thread reads at once: handing rows over one by one costs more than
# cropping a small image does.
ROWS_AT_ONCE = 16
MOST_THREADS = 16


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


def whole(dataset: grain.MapDataset, start: int) -> Iterator[Batch]:
    """Microbatches ``start``, ``start + 1``, ... of a dataset of whole ones."""
    for index in itertools.count(start):
        yield own_rows(cast(Batch, dataset[index]))


def own_rows(batch: Batch) -> Batch:
    """The rows of this process."""
    own = _own_range(len(next(iter(batch.values()))))
    return {name: rows[own.start : own.stop] for name, rows in batch.items()}


def _own_range(size: int) -> range:
    """Where this process's rows are in a microbatch."""
    share, rest = divmod(size, jax.process_count())
    if rest:
        raise UserError(
            f"a microbatch of {size} rows (config.batch_size / config.accumulate) must "
            f"be divisible by {jax.process_count()}, the number of processes"
        )
    first = share * jax.process_index()
    return range(first, first + share)


def stack(rows: Sequence[dict[str, Any]]) -> Batch:
    """Rows of equal shapes as one batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class _OwnPieces:
    """Pieces of microbatches: lists of this process's rows, by number of the piece."""

    def __init__(self, examples: grain.MapDataset, size: int, start: int):
        own = _own_range(size)
        self._examples, self._size, self._start = examples, size, start
        self._pieces = [
            own[first : first + ROWS_AT_ONCE]
            for first in range(0, len(own), ROWS_AT_ONCE)
        ]
        self.per_batch = len(self._pieces)

    def __len__(self) -> int:
        microbatches = len(self._examples) // self._size - self._start
        return max(microbatches, 0) * self.per_batch

    def __getitem__(self, index: int) -> list[Any]:
        batch, piece = divmod(int(index), self.per_batch)
        first = (self._start + batch) * self._size
        return [self._examples[first + row] for row in self._pieces[piece]]


def batches(
    examples: grain.MapDataset,
    size: int,
    start: int,
    batch_fn: Callable[[Sequence[Any]], Batch] = stack,
) -> Iterator[Batch]:
    """This process's rows of the microbatches ``start``, ``start + 1``, ...

    Threads compute them, and no others, two microbatches ahead of need.

    Args:
      examples: row ``k`` of microbatch ``i`` is example ``i * size + k``; with
        ``repeat()`` the batches have no end, else a last one that is not full is left
        out.
      size: rows of a microbatch, over all processes.
      start: number of the first microbatch.
      batch_fn: list of examples -> batch.
    """
    pieces = _OwnPieces(examples, size, start)
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(2 * pieces.per_batch, threads)
    )

    def join(parts: Sequence[list[Any]]) -> Batch:
        return batch_fn([row for part in parts for row in part])

    source = cast(Any, pieces)  # a length and random access are all that grain needs
    dataset = grain.MapDataset.source(source).to_iter_dataset(options)
    return iter(dataset.batch(pieces.per_batch, batch_fn=join))
