"""What every command has: how it ends, its flags, and who is one."""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from experiments.common.errors import UserError, printable

FOLDER = Path(__file__).parent.parent


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process in one line for what a user, or the machine, can mend."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = error.filename or "a file"
        reason = error.strerror or error
        sys.exit(f"error: {printable(f'{where}: {reason}')}")
    except MemoryError as error:
        reason = str(error) or "an array does not fit"
        sys.exit(f"error: {printable(f'not enough memory: {reason}')}")


class Parser(argparse.ArgumentParser):
    """Flags of a command that takes no config; bad ones end in one line."""

    def __init__(self, doc: str | None):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage as well."""
        raise UserError(message)


def refuse_other_modules(argv: Sequence[str]) -> None:
    """Ends the process if ``python -m`` is to run a module that is no command.

    It would end at once, and as if all were well.

    Args:
      argv: of the interpreter, as in `sys.orig_argv`.
    """
    name = _module(argv)
    if not name.startswith("experiments."):
        return
    file = FOLDER.joinpath(*name.split(".")[1:]).with_suffix(".py")
    if file.is_file() and not _is_command(file):
        there = ", ".join(sorted(map(_name, filter(_is_command, FOLDER.rglob("*.py")))))
        sys.exit(f"error: {name} has no command; there are {there}")


def _module(argv: Sequence[str]) -> str:
    """What stands after -m; empty if nothing does."""
    for number, word in enumerate(argv[1:], 1):
        # Options without a value may stand in front of it, as in -um.
        found = re.fullmatch(r"-[bBdEiIOPqsSuvx]*m(.*)", word)
        if found:
            return found[1] or "".join(argv[number + 1 : number + 2])
    return ""


def _is_command(file: Path) -> bool:
    return '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8")


def _name(file: Path) -> str:
    return ".".join(("experiments", *file.relative_to(FOLDER).with_suffix("").parts))
