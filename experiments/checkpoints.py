"""Checkpoints of a run: written while it trains, and read when it starts again.

Each has the arrays of the state and the window under their paths, and a JSON object
about them: format, versions, how far the run was, its config, and a fingerprint of
every array. Nothing is resumed from that does not have the fingerprints of what was
saved.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import optax_heavytail as oht
from experiments import distributed, fingerprints, folders
from experiments.errors import UserError, one_line
from experiments.program import Program
from experiments.steps import TrainState, Window
from experiments.types import Config

FORMAT = 1
ARRAYS, ABOUT = "arrays", "about"


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


class Resumed(NamedTuple):
    """Where a run goes on."""

    state: TrainState
    window: Window
    progress: Progress


class DamagedError(Exception):
    """A checkpoint that is not what was saved."""


class Kept:
    """Orbax's preservation policy: the last ones, and the one of the lowest loss."""

    def __init__(self, last: int):
        self.losses: dict[int, float] = {}  # validation loss of a saved step
        self._last = last

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any):
        """Whether to keep each of ``checkpoints``, which are in order."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        evaluated = [step for step in steps if step in self.losses]
        kept = set(steps[-self._last :])
        kept |= {min(evaluated, key=self.losses.__getitem__)} if evaluated else set()
        return [step in kept for step in steps]


class Keeper:
    """Saves checkpoints of one run in the background."""

    def __init__(self, built: Program, config: Config, workdir: Path):
        self._folder = (workdir / folders.CHECKPOINTS_FOLDER).absolute()
        self._config = folders.plain(config)
        self._shapes = _shapes(built)
        self._layout = built.layout
        self._kept = Kept(config.checkpoint.keep)
        self._manager: ocp.CheckpointManager
        self._saving: int | None = None

    def resume(self, with_changes: bool) -> Resumed | None:
        """Reads the newest checkpoint that is whole; moves newer ones out of the way.

        Args:
          with_changes: accept one of another config.

        Raises:
          UserError: the newest is of another format, config or state.
        """
        for step in reversed(self._steps()):
            try:
                found = self._read(step, with_changes)
            except DamagedError as damage:
                distributed.by_main(lambda s=step, d=damage: self._set_aside(s, d))
                continue
            self._read_losses()
            return found
        return None

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Can save within; at the end a save that is under way is waited for."""
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                cleanup_tmp_directories=True,
                # A damaged file of an old checkpoint must not end the run.
                lightweight_initialize=True,
            ),
        )
        with _quiet(), contextlib.closing(self._manager):
            yield

    def save(self, state: TrainState, window: Window, progress: Progress) -> None:
        """Starts to save; returns when the arrays may change again.

        Raises:
          UserError: this or the last save failed.
        """
        self.wait()
        if progress.evaluated == progress.step:
            self._kept.losses[progress.step] = progress.metrics["loss"]
        arrays = _by_path((state, window))
        about = {
            "format": FORMAT,
            "optax_heavytail": oht.__version__,
            "progress": dataclasses.asdict(progress),
            "config": self._config,
            "arrays": _described(arrays),
            "fingerprints": fingerprints.take(arrays, self._layout),
        }
        self._saving = progress.step
        try:
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(
                    **{
                        ARRAYS: ocp.args.StandardSave(arrays),
                        ABOUT: ocp.args.JsonSave({**about, "sha256": _sha256(about)}),
                    }
                ),
                force=True,
            )
        except Exception as error:  # whatever the storage raises
            raise self._failed(error) from None

    def check(self) -> None:
        """Raises what a save in the background has failed of, if one has.

        Raises:
          UserError: a save failed.
        """
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the last checkpoint is whole.

        Raises:
          UserError: a save failed.
        """
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever the storage raises
            raise self._failed(error) from None
        self._saving = None

    def _failed(self, error: Exception) -> UserError:
        step, self._saving = self._saving, None
        return UserError(
            f"{self._folder}: the checkpoint of step {step} cannot be written "
            f"({one_line(error)}); those before it are whole, and the same command goes on "
            "from them when there is room"
        )

    def _steps(self) -> list[int]:
        def steps() -> list[int]:
            if not self._folder.is_dir():
                return []
            names = (path.name for path in self._folder.iterdir())
            return sorted(int(name) for name in names if name.isdecimal())

        return distributed.by_main(steps)

    def _set_aside(self, step: int, damage: DamagedError) -> None:
        aside = folders.numbered(self._folder.parent, "damaged")
        shutil.move(self._folder / str(step), aside)
        distributed.warn(
            f"checkpoint {self._folder / str(step)} is damaged ({damage}); it is now "
            f"{aside}, and the one before it is tried"
        )

    def _read_losses(self) -> None:
        for step in self._steps():
            about = distributed.by_main(lambda s=step: self._about(s))
            progress = about.get("progress", {})
            if progress.get("evaluated") == step:
                self._kept.losses[step] = progress["metrics"]["loss"]

    def _about(self, step: int) -> dict[str, Any]:
        """The JSON object of a checkpoint, or what is wrong with it."""
        try:
            directory: Any = self._folder / str(step) / ABOUT
            about = dict(ocp.JsonCheckpointHandler().restore(directory))
            found = about.pop("sha256")
        except Exception as error:  # whatever a damaged file leads to
            return {"damage": one_line(error)}
        if found != _sha256(about):
            return {"damage": f"{ABOUT} is not what was saved"}
        return about

    def _read(self, step: int, with_changes: bool) -> Resumed:
        about = distributed.by_main(lambda: self._about(step))
        if "damage" in about:
            raise DamagedError(about["damage"])
        where = self._folder / str(step)
        if about["format"] != FORMAT:
            raise UserError(
                f"{where}: has format {about['format']}, this version reads {FORMAT}; "
                f"optax_heavytail {about['optax_heavytail']} wrote it"
            )
        folders.check_same(where, about["config"], self._config, with_changes)
        self._check_arrays(where, about)
        arrays = self._arrays(where)
        found = fingerprints.take(arrays, self._layout)
        changed = [n for n, value in found.items() if value != about["fingerprints"][n]]
        if changed:
            raise DamagedError(f"{', '.join(changed):.300} not as saved")
        structure = jax.tree.structure(self._shapes)
        state, window = jax.tree.unflatten(structure, arrays.values())
        return Resumed(state, window, Progress(**about["progress"]))

    def _check_arrays(self, where: Path, about: dict[str, Any]) -> None:
        saved, wanted = about["arrays"], _described(_by_path(self._shapes))
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

    def _arrays(self, where: Any) -> fingerprints.Arrays:
        """The arrays as they are on the disk, where the layout wants them."""
        arrays, damage = {}, ""
        # Not through the manager: its barriers would wait for a process that fails.
        handler, directory = ocp.StandardCheckpointHandler(), where / ARRAYS
        try:
            with _quiet():
                arrays = handler.restore(
                    directory,
                    args=ocp.args.StandardRestore(_by_path(self._shapes)),
                )
        except jax.errors.JaxRuntimeError:  # of the devices, not of the files
            raise
        except Exception as error:  # whatever a damaged file leads to
            damage = one_line(error)
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.bool_(damage))
            if failed.any():
                damage = damage or f"process {int(failed.argmax())} cannot read it"
        if damage:
            raise DamagedError(damage)
        return {name: arrays[name] for name in _by_path(self._shapes)}


@contextlib.contextmanager
def one_line_failures(where: Path) -> Iterator[None]:
    """Makes one line of what Orbax fails of, and its threads' tracebacks.

    Raises:
      UserError: something within failed.
    """
    try:
        with _quiet():
            yield
    except UserError:
        raise
    except Exception as error:  # whatever the storage raises
        raise UserError(f"{where}: cannot be written ({one_line(error)})") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    def keep(record: logging.LogRecord) -> bool:
        return not (record.exc_info and record.levelno >= logging.ERROR)

    loggers = (absl.logging.get_absl_logger(), logging.getLogger("asyncio"))
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    except BaseException:
        gc.collect()  # what else has failed says so when it is freed
        raise
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


def _shapes(built: Program) -> tuple[TrainState, Window]:
    """Shapes and shardings of what a checkpoint has."""
    state, window = jax.eval_shape(built.init_state), jax.eval_shape(built.new_window)
    whole = jax.tree.map(lambda _: built.layout.sharding(), window)
    shardings = (built.layout.state_shardings(state), whole)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (state, window),
        shardings,
    )


def _by_path(trees: tuple[TrainState, Window]) -> dict[str, Any]:
    state, window = trees
    tree = {"state": state, "window": window}
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def _described(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def _sha256(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
