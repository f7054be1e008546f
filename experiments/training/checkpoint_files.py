"""What a checkpoint is on the disk, and reading one back.

It has the arrays of the state and the window under their paths, and a JSON object
about them: format, versions, how far the run was, its config, and a fingerprint of
every array. What is read has the fingerprints of what was saved, or is refused.
"""

import contextlib
import dataclasses
import errno
import gc
import hashlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import jax
import orbax.checkpoint as ocp

import optax_heavytail as oht
from experiments.common import distributed
from experiments.common.errors import UserError, one_line
from experiments.training import fingerprints, parallel
from experiments.training.programs import Program
from experiments.training.steps import TrainState, Window

FORMAT = 1
ARRAYS, ABOUT = "arrays", "about"
# Of a storage, or of the limits of this process.
PASSING = (
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ETIMEDOUT,
)
About = dict[str, Any]


@dataclasses.dataclass
class Progress:
    """How far a run is, beside its arrays."""

    step: int = 0
    position: int = 0  # microbatches taken from the data
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluated: int = 0  # step of the metrics
    recorded: int = 0  # step of the last record
    seconds: float = 0.0  # of training
    seconds_recorded: float = 0.0  # of these, those before the last record
    records: int | None = 0  # so many, up to the step; None: of an older version

    def can_end_at(self, num_steps: int) -> bool:
        """Whether a run of so many steps, the last of them evaluated, goes on here."""
        return self.step < num_steps or self.step == num_steps == self.evaluated


class Resumed(NamedTuple):
    """Where a run goes on."""

    state: TrainState
    window: Window
    progress: Progress


class DamagedError(Exception):
    """A checkpoint that is not what was saved."""


def to_save(
    resumable: Resumed, config: dict[str, Any], layout: parallel.Layout
) -> ocp.args.Composite:
    """A checkpoint as Orbax takes it."""
    state, window, progress = resumable
    arrays = by_path((state, window))
    about = {
        "format": FORMAT,
        "optax_heavytail": oht.__version__,
        "progress": dataclasses.asdict(progress),
        "config": config,
        "arrays": _described(arrays),
        "fingerprints": fingerprints.take(arrays, layout),
    }
    about["sha256"] = sha256(about)
    return ocp.args.Composite(
        **{ARRAYS: ocp.args.StandardSave(arrays), ABOUT: ocp.args.JsonSave(about)}
    )


def read_about(where: Path) -> About:
    """The JSON object of a checkpoint, or as ``damage`` what is wrong with it.

    Raises:
      UserError: it cannot be read now.
    """
    try:
        directory: Any = where / ABOUT
        about = dict(ocp.JsonCheckpointHandler().restore(directory))
        found = about.pop("sha256")
    except Exception as error:  # whatever a damaged file leads to
        if is_passing(error):
            raise _not_readable(where, error) from None
        return {"damage": one_line(error)}
    if found != sha256(about):
        return {"damage": f"{ABOUT} is not what was saved"}
    return about


def check_format(where: Path, about: About) -> None:
    """Refuses what another version wrote in another way.

    Raises:
      UserError: another format.
    """
    if about["format"] != FORMAT:
        raise UserError(
            f"{where}: has format {about['format']}, this version reads {FORMAT}; "
            f"optax_heavytail {about['optax_heavytail']} wrote it"
        )


def check_arrays(where: Path, about: About, shapes: tuple[TrainState, Window]) -> None:
    """Refuses another state than that of this run.

    Raises:
      UserError: it names the leaves.
    """
    saved, wanted = about["arrays"], _described(by_path(shapes))
    lines = [
        *(f"{name} is missing" for name in wanted if name not in saved),
        *(f"{name} is not expected" for name in saved if name not in wanted),
        *(
            f"{name} is {saved[name]}, not {kind}"
            for name, kind in wanted.items()
            if name in saved and saved[name] != kind
        ),
    ]
    if lines:
        raise UserError(
            f"{where}: optax_heavytail {about['optax_heavytail']} saved another "
            f"state than this run has: {'; '.join(lines)}"
        )


def read(
    where: Path,
    about: About,
    shapes: tuple[TrainState, Window],
    layout: parallel.Layout,
) -> Resumed:
    """Reads the arrays to where ``shapes`` wants them.

    Raises:
      DamagedError: they are not what was saved.
      UserError: they cannot be read now.
    """
    arrays = _arrays(where, by_path(shapes))
    found = fingerprints.take(arrays, layout)
    own = [n for n, value in found.items() if value != about["fingerprints"][n]]
    # Of whatever the processes find, all must draw the same conclusion.
    changed = next(filter(None, distributed.gather(own)), [])
    if changed:
        raise DamagedError(f"{', '.join(changed):.300} not as saved")
    state, window = jax.tree.unflatten(jax.tree.structure(shapes), arrays.values())
    return Resumed(state, window, Progress(**{"records": None, **about["progress"]}))


def is_passing(error: Exception) -> bool:
    """Whether the next attempt may read what this one could not: it is no damage."""
    text = str(error)  # tensorstore has the system's words in its own errors
    return isinstance(error, MemoryError) or any(
        os.strerror(number) in text for number in PASSING
    )


def _not_readable(where: Path, error: Exception) -> UserError:
    return UserError(
        f"{where}: cannot be read now ({one_line(error)}); if that stays so, move it "
        "away, and the checkpoint before it is taken"
    )


def _arrays(where: Path, shapes: dict[str, Any]) -> fingerprints.Arrays:
    """The arrays of a checkpoint, if every process can read its part.

    Raises:
      DamagedError: one cannot.
      UserError: one cannot now.
    """
    arrays, damage, refusal = {}, "", ""
    # Not through a manager: its barriers would wait for a process that fails.
    handler = ocp.StandardCheckpointHandler()
    directory: Any = where / ARRAYS
    with quiet():
        try:
            arrays = handler.restore(directory, args=ocp.args.StandardRestore(shapes))
        except jax.errors.JaxRuntimeError:  # of the devices, not of the files
            raise
        except Exception as error:  # whatever a damaged file leads to
            if is_passing(error):
                refusal = str(_not_readable(where, error))
            else:
                damage = one_line(error)
        if damage or refusal:
            gc.collect()  # the other failures speak when they are freed
    # All processes must draw the same conclusion.
    damages, refusals = zip(*distributed.gather([damage, refusal]), strict=True)
    for message in filter(None, refusals):
        raise UserError(message)
    for message in filter(None, damages):
        raise DamagedError(message)
    return {name: arrays[name] for name in shapes}


def shapes(program: Program) -> tuple[TrainState, Window]:
    """Shapes and shardings of what a checkpoint has."""
    state, window = (
        jax.eval_shape(program.init_state),
        jax.eval_shape(program.new_window),
    )
    whole = jax.tree.map(lambda _: program.layout.sharding(), window)
    shardings = (program.layout.state_shardings(state), whole)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (state, window),
        shardings,
    )


def by_path(trees: tuple[TrainState, Window]) -> dict[str, Any]:
    """The leaves of a state and a window under their paths."""
    state, window = trees
    tree = {"state": state, "window": window}
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def _described(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def sha256(about: About) -> str:
    """The hash of a checkpoint's JSON object, without the hash itself."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def one_line_failures(where: Path) -> Iterator[None]:
    """Makes one line of what Orbax fails of, and its threads' tracebacks.

    Raises:
      UserError: something within failed.
    """
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:  # whatever the storage raises
        raise UserError(f"{where}: cannot be written ({one_line(error)})") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what Orbax's threads say of a failure; it is raised too."""

    def keep(record: logging.LogRecord) -> bool:
        return not (record.exc_info and record.levelno >= logging.ERROR)

    def report(unraisable: Any) -> None:
        # They go on to tell an event loop, or a coroutine, that is gone by then.
        is_theirs = "Event loop is closed" in str(unraisable.exc_value)
        if not (is_theirs or inspect.iscoroutine(unraisable.object)):
            hook(unraisable)

    loggers = (absl.logging.get_absl_logger(), logging.getLogger("asyncio"))
    hook, sys.unraisablehook = sys.unraisablehook, report
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    except BaseException:
        gc.collect()  # the other failures speak when they are freed
        raise
    finally:
        sys.unraisablehook = hook
        for logger in loggers:
            logger.removeFilter(keep)
