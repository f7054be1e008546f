"""Files that are whole or not there."""

import contextlib
import errno
import os
from pathlib import Path

from experiments.common.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is whole or not there; text as UTF-8."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            # A power cut must not leave the new name with nothing in it.
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def check_target(path: Path) -> None:
    """Refuses, before the work, a path at which no file can be written after it.

    The folder that the file is to lie in is made.

    Raises:
      UserError: a folder is there, or the one it lies in is not writable.
    """
    if not path.name:
        raise UserError(f"{path}: must be a path with a name")
    make_folder(path.parent)
    trial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Whether a file system lets one write is known once it has.
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; a file is to be written there"
        ) from None


def table_and_lines(target: Path) -> tuple[Path, Path]:
    """The Markdown and the JSON lines that a command writes for one target."""
    name = target.name
    return target.with_name(f"{name}.md"), target.with_name(f"{name}.jsonl")


def make_folder(folder: Path) -> None:
    """Makes a folder, with those it lies in.

    Raises:
      UserError: not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from None


def not_writable(folder: Path, error: OSError) -> UserError:
    """The error that says so."""
    return UserError(f"{folder}: {error.strerror}; a writable folder is needed")
