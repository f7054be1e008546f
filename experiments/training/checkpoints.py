"""Checkpoints of a run: written while it trains, and read when it starts again."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from experiments.common import distributed
from experiments.common.errors import UserError, one_line
from experiments.common.types import Config
from experiments.runs import folders
from experiments.training import checkpoint_files
from experiments.training.checkpoint_files import DamagedError, Progress, Resumed
from experiments.training.programs import Program
from experiments.training.steps import TrainState, Window


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

    def __init__(self, program: Program, config: Config, workdir: Path):
        self._folder = (workdir / folders.CHECKPOINTS_FOLDER).absolute()
        self._config = folders.plain(config)
        self._shapes = checkpoint_files.shapes(program)
        self._layout = program.layout
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
        """Can save within; at the end a save that is under way is waited for.

        Raises:
          UserError: that save failed, and nothing else has.
        """
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                cleanup_tmp_directories=True,
                # A damaged file of an old checkpoint must not end the run.
                lightweight_initialize=True,
            ),
        )
        with checkpoint_files.quiet():
            try:
                yield
            except BaseException:
                # What ended the run is said, not what followed from it.
                with contextlib.suppress(Exception):
                    self._manager.close()
                raise
            try:
                self._manager.close()
            except Exception as error:  # whatever the storage raises
                raise self._failed(error) from None

    def save(self, state: TrainState, window: Window, progress: Progress) -> None:
        """Starts to save; returns when the arrays may change again.

        Raises:
          UserError: this or the last save failed.
        """
        self.wait()
        if progress.evaluated == progress.step:
            self._kept.losses[progress.step] = progress.metrics["loss"]
        self._saving = progress.step
        try:
            self._manager.save(
                progress.step,
                args=checkpoint_files.to_save(
                    Resumed(state, window, progress), self._config, self._layout
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
            f"({one_line(error)}); those before it are whole: make room, and the same "
            "command goes on from them"
        )

    def _steps(self) -> list[int]:
        def steps() -> list[int]:
            if not self._folder.is_dir():
                if os.path.lexists(self._folder):
                    raise UserError(
                        f"{self._folder}: is no folder, and checkpoints go there; take "
                        "it away"
                    )
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
            about = distributed.by_main(
                lambda s=step: checkpoint_files.read_about(self._folder / str(s))
            )
            progress = about.get("progress", {})
            if progress.get("evaluated") == step:
                self._kept.losses[step] = progress["metrics"]["loss"]

    def _read(self, step: int, with_changes: bool) -> Resumed:
        where = self._folder / str(step)
        about = distributed.by_main(lambda: checkpoint_files.read_about(where))
        if "damage" in about:
            raise DamagedError(about["damage"])
        checkpoint_files.check_format(where, about)
        folders.check_same(where, about["config"], self._config, with_changes)
        checkpoint_files.check_arrays(where, about, self._shapes)
        return checkpoint_files.read(where, about, self._shapes, self._layout)
