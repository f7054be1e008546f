"""Files of a folder tree, or of a tar (plain, gz, bz2 or xz), by their path inside."""

import bz2
import contextlib
import gzip
import lzma
import os
import tarfile
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from experiments.common import inputs
from experiments.common.errors import UserError

COMPRESSED = {  # the first bytes of each kind
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x5d\0\0\x80": lzma.open,
}
LEFT_BEHIND = (
    "__MACOSX",
    "@eaDir",
    "@Recycle",
    "@Recently-Snapshot",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "RECYCLER",
    "System Volume Information",
    "Temporary Items",
    "Network Trash Folder",
    "__pycache__",
    "lost+found",
)
LARGEST_UNPACKED = 2**32  # bytes of a compressed tar, images or not
LARGEST_HEADER = 2**20  # bytes of what a tar says of one member
PIECE = 2**20
BROKEN = (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error, ValueError)


class Store(NamedTuple):
    """Files by their path inside the tree, and how to read one of them."""

    sizes: dict[str, int]
    read: Callable[[str], bytes]
    folders: frozenset[str]  # ``<top>/<folder>``, with wanted files in them or without


def is_left_behind(name: str) -> bool:
    """Whether a file or folder is of a system, a notebook or a photo tool.

    Such as ``.ipynb_checkpoints``, ``.git``, ``._1.jpg`` or ``__MACOSX``.
    """
    return name.startswith(".") or name in LEFT_BEHIND


def folder(
    root: Path, tops: Collection[str], is_wanted: Callable[[str], bool]
) -> Store:
    """The files ``<top>/<folder>/<file>`` that are wanted.

    Raises:
      UserError: a folder cannot be read.
    """

    def entries(path: str | Path) -> Iterator[os.DirEntry]:
        with os.scandir(path) as found:
            yield from found

    sizes, folders = {}, set()
    try:
        for top in entries(root):
            if top.name not in tops or not top.is_dir():
                continue
            for middle in entries(top.path):
                if not middle.is_dir() or is_left_behind(middle.name):
                    continue
                folders.add(f"{top.name}/{middle.name}")
                for file in entries(middle.path):
                    name = f"{top.name}/{middle.name}/{file.name}"
                    if is_wanted(name) and file.is_file():
                        sizes[name] = file.stat().st_size
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None

    def read(name: str) -> bytes:
        with inputs.needed(root / name, "an image"):
            return inputs.read_bytes(root / name)

    return Store(sizes, read, frozenset(folders))


def archive(path: Path, is_wanted: Callable[[str], bool]) -> Store:
    """The wanted files of a tar.

    A plain tar is indexed, by reading its headers, and files are read from where they
    are. A compressed one has no such places: its files are unpacked into memory, and
    the whole of it is read, so that its checksum is seen to be right.

    Raises:
      one of BROKEN: damaged, cut off, no tar at all, or a compressed one of more than
        4 GiB.
    """
    with inputs.open_file(path) as packed:
        start = packed.read(6)
        packed.seek(0)
        for magic, unpack in COMPRESSED.items():
            if start.startswith(magic):
                with unpack(packed) as unpacked:
                    file = cast(BinaryIO, unpacked)  # what it has of one is enough
                    return _held(_Bounded(file, LARGEST_UNPACKED), is_wanted)
        return _indexed(_Bounded(packed), packed.fileno(), path, is_wanted)


class _Bounded:
    """A file in which nobody goes far, nor takes much at once."""

    def __init__(self, file: BinaryIO, largest: int | None = None):
        self._file, self._largest = file, largest

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int) -> int:
        self._check(place)
        return self._file.seek(place)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.take(size)

    def take(self, size: int) -> bytes:
        self._check(self.tell() + size)
        return self._file.read(size)

    def _check(self, place: int) -> None:
        if self._largest is not None and place > self._largest:
            raise tarfile.ReadError(
                "a compressed tar is unpacked into memory, and this one has more than "
                f"{self._largest:,} bytes; decompress it first"
            )


def _files(
    file: _Bounded, is_wanted: Callable[[str], bool], folders: set[str]
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The wanted files among the members, with their paths.

    Args:
      file: the tar.
      is_wanted: of a path.
      folders: gets what a `Store` has of them.
    """
    tar = cast(BinaryIO, file)
    with _as_damage(), tarfile.open(fileobj=tar, mode="r:") as reader:
        while (member := reader.next()) is not None:
            # It keeps a kilobyte for every file so far.
            reader.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise tarfile.TarError(
                    f"the member {member.name} leads out of the archive"
                )
            is_inside = len(path.parts) > 2 or (len(path.parts) == 2 and member.isdir())
            if is_inside and not any(map(is_left_behind, path.parts[:2])):
                folders.add("/".join(path.parts[:2]))
            if not is_wanted(str(path)) or member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise tarfile.TarError(
                    f"{member.name} is a link or the like, not a file"
                )
            yield str(path), member
    # It takes a damaged header for the end.
    file.seek(reader.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut off at byte {reader.offset:,}")


@contextlib.contextmanager
def _as_damage() -> Iterator[None]:
    """What `tarfile` trips over is an error of the archive."""
    try:
        yield
    except RecursionError:
        raise tarfile.ReadError("headers without a file, one after another") from None
    except OverflowError:
        raise tarfile.ReadError("a header with a number without end") from None


def _indexed(
    file: _Bounded, descriptor: int, path: Path, is_wanted: Callable[[str], bool]
) -> Store:
    folders: set[str] = set()
    places = {
        name: (member.size, member.offset_data)
        for name, member in _files(file, is_wanted, folders)
    }
    descriptor = os.dup(descriptor)

    def read(name: str) -> bytes:
        size, offset = places[name]
        data = os.pread(descriptor, size, offset)  # by many threads, without a lock
        if len(data) < size:
            raise UserError(f"{path}: {name} has {len(data)} bytes instead of {size}")
        return data

    weakref.finalize(read, os.close, descriptor)
    sizes = {name: size for name, (size, _) in places.items()}
    return Store(sizes, read, frozenset(folders))


def _held(file: _Bounded, is_wanted: Callable[[str], bool]) -> Store:
    held: dict[str, bytes] = {}
    folders: set[str] = set()
    for name, member in _files(file, is_wanted, folders):
        file.seek(member.offset_data)
        held[name] = file.take(member.size)
        if len(held[name]) < member.size:
            raise EOFError(f"{name} is cut off")
    while file.take(PIECE):  # to the checksum at the end
        pass
    sizes = {name: len(data) for name, data in held.items()}
    return Store(sizes, held.__getitem__, frozenset(folders))
