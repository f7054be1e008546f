"""The error that ends a command with one line instead of a traceback."""

import errno
import os

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
