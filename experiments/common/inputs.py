"""Files and folders that a user names and a command reads."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from experiments.common.errors import UserError

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
LARGEST_READ = 2**32  # bytes of a file that is read as a whole


def local(field: str, path: str) -> Path:
    """The path that a flag or a field of the config names.

    Raises:
      UserError: of another machine, or none at all.
    """
    if REMOTE.match(path):
        raise UserError(
            f"{field}={path}: must be a path of this machine; copy or mount what is "
            "elsewhere"
        )
    if "\0" in path:
        raise UserError(f"{field}={path}: a path has no zero byte")
    return Path(path)


@contextlib.contextmanager
def needed(where: object, what: str) -> Iterator[None]:
    """Names what was asked for, and what is needed, if the system has an objection.

    Raises:
      UserError: an OSError happened.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{where}: {reason}; {what} is needed") from None


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder.

    Raises:
      OSError: nothing is there, or it cannot be reached.
    """
    return stat.S_ISDIR(path.stat().st_mode)


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file; pipes and devices may never end.

    Raises:
      OSError: something else, or not readable.
    """
    # A pipe without a writer would not even open otherwise.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bytes(path: Path, limit: int = LARGEST_READ) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
      OSError: something else, not readable, or larger.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"more than {limit:,} bytes", str(path))
        return file.read()


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, without the byte-order mark at its start.

    Raises:
      OSError: not a regular file, not readable, or larger than 4 GiB.
      UserError: not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}: {error.reason})"
        ) from None
