"""The error that ends a command with one line instead of a traceback."""

import errno
import os
from collections.abc import Sequence

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST = 1_000  # characters of a message


class UserError(Exception):
    """Bad input; its text is one line naming the value and what is allowed.

    What a user named may hold anything: characters that do not print, such as line
    breaks, are shown by their escapes, and the middle of a long text is left out.
    """

    def __init__(self, text: str):
        super().__init__(printable(text))


def printable(text: str) -> str:
    """One line that shows every character, of at most about ``LONGEST``."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def one_line(error: BaseException) -> str:
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
