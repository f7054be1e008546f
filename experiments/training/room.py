"""Whether a state fits into memory, from its shapes alone."""

import os
from typing import Any

import jax
import numpy as np

from experiments.common.errors import UserError
from experiments.tasks import Task
from experiments.training import steps
from experiments.training.job import Job
from experiments.training.parallel import Layout


def check(job: Job, task: Task) -> None:
    """Refuses a model that cannot be trained in the memory at hand.

    What is counted is the least there has to be: parameters, the optimizer's state, the
    model's, and one gradient.

    Raises:
      UserError: it says how many bytes are needed, and how many there are.
    """
    state = jax.eval_shape(
        lambda key: steps.new_state(task, job.optimizer, key), jax.random.key(0)
    )
    shardings = job.layout.state_shardings(state)
    needed = _bytes(state, shardings) + _bytes(state.params, shardings.params)
    there, what = at_hand(job.layout.local_devices)
    if needed > there:
        raise UserError(
            f"config.model, with config.optimizer.name={job.config.optimizer.name}, "
            f"needs {needed:,} bytes of memory or more for its parameters, one "
            f"gradient and the optimizer's state on {what}, which has {there:,}"
        )


def check_bytes(what: str, needed: int, layout: Layout) -> None:
    """Refuses arrays of ``needed`` bytes that the memory at hand cannot hold.

    Raises:
      UserError: it says how many bytes ``what`` needs, and how many there are.
    """
    there, where = at_hand(layout.local_devices)
    if needed > there:
        raise UserError(
            f"{what}: needs {needed:,} bytes of memory or more on {where}, which has "
            f"{there:,}"
        )


def _bytes(tree: Any, shardings: Any) -> int:
    """On one device."""
    sizes = jax.tree.map(
        lambda x, sharding: (
            int(np.prod(sharding.shard_shape(x.shape), dtype=object))
            * np.dtype(x.dtype).itemsize
        ),
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def at_hand(devices: list[Any]) -> tuple[int, str]:
    """Bytes that one of the devices has, and what it is."""
    device = devices[0]
    if device.platform == "cpu":
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return whole // len(devices), f"one of {len(devices)} CPU device(s)"
    statistics = device.memory_stats() or {}
    return statistics.get("bytes_limit", 2**63), f"a {device.device_kind}"
