"""Several processes: how they find each other, and what one of them does for all."""

import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
import rich
import rich.console
from absl import flags
from jax.experimental import multihost_utils

from experiments.common.errors import UserError

T = TypeVar("T")

DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes. Who the others are, JAX finds out on a TPU pod, under "
    "Slurm and under Open MPI; elsewhere the next three flags say it.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; implies --distributed."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0.", lower_bound=0
)
HEARTBEAT_SECONDS = flags.DEFINE_integer(
    "heartbeat_seconds",
    100,
    "A process that is silent, or alone at its end, for so long is dead to the others, "
    "which stop.",
    lower_bound=10,
)
# Several processes that do not know of each other would write to one folder.
LAUNCHERS = {
    "SLURM_NTASKS": "Slurm",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
}


def start() -> None:
    """Joins the other processes, before anything else asks JAX for a device.

    Raises:
      UserError: flags that do not fit together, or a launcher's tasks without them.
    """
    count, index = NUM_PROCESSES.value, PROCESS_ID.value
    given = {
        "--coordinator": COORDINATOR.value,
        "--num_processes": count,
        "--process_id": index,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"{', '.join(missing)}: needed too; the three belong together")
    if missing and not DISTRIBUTED.value:
        refuse_launchers()
        return
    if count is not None and index is not None and index >= count:
        raise UserError(f"--process_id={index}: must be below --num_processes={count}")
    try:
        jax.distributed.initialize(
            COORDINATOR.value,
            count,
            index,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS.value,
            # One that ends early waits for the others, which wait for it.
            shutdown_timeout_seconds=HEARTBEAT_SECONDS.value,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--distributed: {reason}") from None


def refuse_launchers() -> None:
    """Raises if this process is one of several tasks that are not told to be one run.

    Raises:
      UserError: naming the launcher.
    """
    for variable, launcher in LAUNCHERS.items():
        tasks = os.environ.get(variable, "1")
        # An interactive allocation has several tasks and no number among them.
        is_task = variable != "SLURM_NTASKS" or "SLURM_STEP_ID" in os.environ
        if is_task and tasks.isdigit() and int(tasks) > 1:
            raise UserError(
                f"{launcher} started {tasks} tasks: add --distributed to make them one "
                "run"
            )


def is_main() -> bool:
    """Whether this process writes the files and the terminal of the run."""
    return jax.process_index() == 0


def console() -> rich.console.Console:
    """The terminal, on the main process; nowhere on the others."""
    if is_main():
        return rich.get_console()
    return rich.console.Console(file=open(os.devnull, "w", encoding="utf-8"))


def say(text: str) -> None:
    """Prints a line once."""
    if is_main():
        print(text, flush=True)


def warn(text: str) -> None:
    """Prints a warning once."""
    if is_main():
        print(f"warning: {text}", file=sys.stderr, flush=True)


# JAX agrees on one call of all that this program makes, whatever run it is in.
_sync_points = itertools.count(1)


@contextlib.contextmanager
def on_sigterm() -> Iterator[Callable[[], bool]]:
    """Yields a function: whether to stop after this step, the same on every process.

    It is to be called at every step.
    """
    if jax.process_count() > 1:  # JAX has a handler of its own
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_sync_points))
        return
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def by_main(function: Callable[[], Any]) -> Any:
    """What ``function`` returns on the main process, on every process; JSON values.

    Raises:
      UserError: the main process raised it; so all of them end.
    """
    if jax.process_count() == 1:
        return function()
    outcome = {}
    if is_main():
        try:
            outcome = {"value": function()}
        except UserError as error:
            outcome = {"error": str(error)}
    outcome = gather(outcome)[0]
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


def by_all(function: Callable[[], T]) -> T:
    """What ``function`` returns on this process, if it returns on all of them.

    Raises:
      UserError: one of them raised it; so all of them end, and none waits for it.
    """
    if jax.process_count() == 1:
        return function()
    value, own = None, None
    try:
        value = function()
    except UserError as error:
        own = error
    errors = gather(None if own is None else str(own))
    if own is not None:
        raise own
    for index, error in enumerate(errors):
        if error is not None:
            raise UserError(f"process {index}: {error}")
    return cast(T, value)


def gather(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    room = np.zeros(sizes.max(), np.uint8)
    room[: data.size] = data
    rows = multihost_utils.process_allgather(room)
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
    ]
