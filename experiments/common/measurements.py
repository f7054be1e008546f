"""Measurements that go on where a killed process stopped."""

from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from experiments.common import files, json_files
from experiments.common.errors import UserError
from experiments.common.json_files import Record


class Measurements:
    """Measurements in a file of JSON lines, each of which is there once it is made.

    Args:
      path: of the file; read if it is there.
      key: record -> what it was measured of. The last of a key counts.
      check: (record, where it is) -> nothing, or a `UserError`.

    Raises:
      UserError: the file is not one of such measurements.
    """

    def __init__(
        self,
        path: Path,
        key: Callable[[Record], Hashable],
        check: Callable[[Record, str], None] = lambda record, where: None,
    ):
        self._path, self._key = path, key
        self.records = json_files.read_lines(path).records
        self._found: dict[Hashable, Record] = {}
        for number, record in enumerate(self.records, 1):
            check(record, f"{path}:{number}: record")
            try:
                self._found[key(record)] = record
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"{path}:{number}: not a measurement of this program ({error!r})"
                ) from None

    def __contains__(self, key: Hashable) -> bool:
        """Whether it has been measured."""
        return key in self._found

    def __getitem__(self, key: Hashable) -> Record:
        """What was measured."""
        return self._found[key]

    def missing(self, keys: Iterable[Hashable]) -> list[Hashable]:
        """The keys that have not been measured."""
        return [key for key in keys if key not in self._found]

    def add(self, record: Record) -> None:
        """Takes a measurement, which is on the disk when this returns.

        Raises:
          UserError: not writable.
        """
        files.make_folder(self._path.parent)
        try:
            json_files.append(self._path, record)
        except OSError as error:
            raise files.not_writable(self._path.parent, error) from None
        self.records.append(record)
        self._found[self._key(record)] = record
