"""The error that ends a command with one line instead of a traceback."""

import errno
import os
from collections.abc import Sequence

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Bad input; its text is one line naming the value and what is allowed."""


def one_line(error: Exception) -> str:
    """What an error of a library says, shortened; of a full disk just that."""
    text = " ".join(str(error).split())
    for reason in map(os.strerror, NO_ROOM):
        if reason in text:
            return reason
    return f"{type(error).__name__}: {text:.300}"


def check_distinct(what: str, names: Sequence[str]) -> None:
    """Refuses an empty list, and a name that is there twice."""
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"{what}={','.join(names)}: must be one or more names, each once"
        )
