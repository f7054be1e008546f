"""JSON documents and JSON lines; what is not one is refused in one line.

A file of JSON lines has one object a line. What a killed process or a power cut left is
a last line without its end, or of zeros: readers leave it out, and the next `append`
cuts it off.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from experiments.common import inputs
from experiments.common.errors import UserError

Record = dict[str, Any]


class Lines(NamedTuple):
    """What a file of JSON lines has."""

    records: list[Record]
    is_cut: bool  # the last line was written in part only, and is left out


def read_lines(path: Path) -> Lines:
    """The records of a file; none of one that is not there.

    Raises:
      UserError: naming the file, and the line that is no record.
    """
    if not path.exists():
        return Lines([], is_cut=False)
    content = _read(path)
    whole = _whole(content)
    rest = content[len(whole) :].strip(b"\0\n")
    if rest and not rest.startswith(b"{"):
        raise UserError(f"{path}: its last line is no part of a record")
    records = [
        _object(line, f"{path}:{i}", parse_constant=_refuse)
        for i, line in enumerate(whole.split(b"\n")[:-1], 1)
    ]
    return Lines(records, is_cut=len(whole) < len(content))


def _whole(content: bytes) -> bytes:
    """All but a last line without its end, or of zeros, as a power cut leaves it."""
    kept = content.rstrip(b"\0\n")
    if content[len(kept) : len(kept) + 1] == b"\n":
        return kept + b"\n"
    return kept[: kept.rfind(b"\n") + 1]


def read_object(path: Path) -> Record:
    """The JSON object that a file is; NaN and Infinity, as in a config, are numbers.

    Raises:
      UserError: it cannot be read, or is anything else.
    """
    return _object(_read(path), str(path), parse_constant=None)


def _read(path: Path) -> bytes:
    try:
        return inputs.read_bytes(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _object(text: bytes, where: str, **options: Any) -> Record:
    try:
        found = json.loads(text, **options)
    except RecursionError:
        raise UserError(f"{where}: not a record (nested too deep)") from None
    except ValueError as error:  # of JSON, or of UTF-8
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: a JSON object is needed, found {found!r:.60}")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def finite(value: Any) -> Any:
    """JSON in which a number that is not finite is ``None``."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    if isinstance(value, list):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_line(record: Record) -> str:
    """One line with its end.

    Raises:
      ValueError: a number is not finite, which JSON has no word for.
    """
    return json.dumps(record, allow_nan=False) + "\n"


def as_lines(records: Iterable[Record]) -> str:
    """The content of a whole file."""
    return "".join(map(as_line, records))


def append(path: Path, record: Record) -> None:
    """Adds a record, which is on the disk when this returns.

    Raises:
      OSError: not writable.
    """
    line = as_line(record).encode()
    with path.open("a+b") as file:
        _cut_off_the_rest(path, file.fileno())
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _cut_off_the_rest(path: Path, descriptor: int) -> None:
    """Removes what `_whole` leaves out."""
    size = os.fstat(descriptor).st_size
    end = os.pread(descriptor, 2, max(size - 2, 0))
    if size and (not end.endswith(b"\n") or end[0] in b"\0\n"):
        os.ftruncate(descriptor, len(_whole(path.read_bytes())))
