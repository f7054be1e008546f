"""The learning rate and the microbatches of every step of a run."""

from typing import NamedTuple

import numpy as np
import optax

import optax_heavytail as oht
from experiments.common.errors import UserError
from experiments.common.fields import LARGEST
from experiments.common.types import Config
from experiments.data import stream


class Plan(NamedTuple):
    """What each step takes from the data, and how far it goes."""

    factor: optax.Schedule  # on the peak rate, of the count of steps from 0
    microbatches: np.ndarray  # (steps,), int: of each step

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return len(self.microbatches)

    def position(self, step: int) -> int:
        """Microbatches that the first ``step`` steps take."""
        return int(self.microbatches[:step].sum())


def make(config: Config) -> Plan:
    """The plan of a config.

    Raises:
      UserError: the batch cannot grow as ``config.max_batch_size`` says.
    """
    factor = schedule(config.steps, config.warmup_fraction)
    size = stream.microbatch_size(config)
    largest = config.max_batch_size
    if config.steps * config.accumulate > LARGEST:
        raise UserError(
            f"config.steps={config.steps}, config.accumulate={config.accumulate}: "
            f"their product, the microbatches of the run, must be at most {LARGEST}"
        )
    if not largest:
        return Plan(factor, np.full(config.steps, config.accumulate))
    if largest < config.batch_size:
        raise UserError(
            f"config.max_batch_size={largest}: must be 0 (the batch does not grow) or "
            f"at least config.batch_size={config.batch_size}"
        )
    grown = oht.grow_batch(
        factor, config.steps, config.batch_size, largest, multiple_of=size
    )
    return Plan(grown.schedule(), grown.batch_size // size)


def schedule(steps: int, warmup_fraction: float) -> optax.Schedule:
    """Linear warm-up to 1, then a cosine to 0: a factor on the peak rate."""
    warmup = min(round(warmup_fraction * steps), steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)
