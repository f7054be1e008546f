"""Files that are whole or not there."""

import os
from pathlib import Path

from experiments.common.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is whole or not there; text as UTF-8."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        # A power cut must not leave the new name with nothing in it.
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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
