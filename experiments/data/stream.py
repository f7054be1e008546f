"""Batches of a `grain` dataset, one a step."""

from collections.abc import Iterator
from typing import cast

import grain
import numpy as np

Batch = dict[str, np.ndarray]


def iterate(dataset: grain.MapDataset, start_step: int) -> Iterator[Batch]:
    """Batches ``start_step``, ``start_step + 1``, ... without end."""
    index = start_step
    while True:
        yield cast(Batch, dataset[index])
        index += 1
