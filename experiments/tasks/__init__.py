"""Tasks by name: what is learnt, from which data."""

from collections.abc import Callable
from typing import Any

from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.tasks import images, mlm, squad
from experiments.tasks.base import Batch, PyTree, Source, Task, without_data

__all__ = [
    "TASKS",
    "Batch",
    "PyTree",
    "Source",
    "Task",
    "load",
    "smallest",
    "without_data",
]

TASKS: dict[str, Callable[[Config], Source]] = {
    "images": images.load,
    "mlm": mlm.load,
    "squad": squad.load,
}


def load(config: Config) -> Source:
    """Reads the data of ``config.task``."""
    if config.task not in TASKS:
        raise UserError(f"config.task={config.task}: must be one of {', '.join(TASKS)}")
    source = TASKS[config.task](config)
    pinned = config.data.sha256
    if pinned and pinned != source.sha256:
        raise UserError(
            f"config.data.sha256={pinned}: the data found has {source.sha256}"
        )
    return source


SMALLEST: dict[str, Callable[[Config], dict[str, Callable[..., Any]]]] = {
    "images": images.smallest,
    "mlm": mlm.smallest,
    "squad": squad.smallest,
}


def smallest(config: Config) -> Task | None:
    """The task of a config on data of one class or word, to know its sizes early."""
    functions = SMALLEST.get(config.task)
    return without_data(functions(config)) if functions else None
