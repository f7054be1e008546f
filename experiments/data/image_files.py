"""Image files in class folders, in a folder tree or a tar.

``train/<class>/<image>`` and ``validation/<class>/<image>``; the second may also be
called ``val`` or ``test``. Images end in .jpg, .jpeg or .png; other files, and those
whose names start with a dot, are left alone.
"""

import hashlib
import lzma
import os
import tarfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from experiments.common.errors import UserError

TRAIN = "train"
VALIDATION = ("validation", "val", "test")  # the first that is there
SUFFIXES = (".jpg", ".jpeg", ".png")
LAYOUT = "train/<class>/*.jpg and validation|val|test/<class>/*.jpg (or .jpeg, .png)"
LARGEST_HELD = 2**32  # bytes of the images of a compressed tar
BROKEN_TAR = (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error)


class Store(NamedTuple):
    """Files by their path inside the tree, and how to read one of them."""

    sizes: dict[str, int]
    read: Callable[[str], bytes]


class Split(NamedTuple):
    """Paths (n) and labels (n,) int32 of one part of the images, by path."""

    names: list[str]
    labels: np.ndarray


class Files(NamedTuple):
    """Both splits of a tree, its classes by label, and its files."""

    train: Split
    validation: Split
    classes: list[str]
    store: Store

    def sha256(self, with_bytes: bool) -> str:
        """Hash of all paths and sizes and, if asked for, of what the files hold."""
        total = hashlib.sha256()
        for name in (*self.train.names, *self.validation.names):
            # Names are any bytes to a file system.
            total.update(os.fsencode(f"{name}\0{self.store.sizes[name]}\0"))
            if with_bytes:
                total.update(self.store.read(name))
        return total.hexdigest()


def find(path: str) -> Files:
    """Finds the images at ``path``, a folder or a tar (plain, gz, bz2 or xz).

    A plain tar is indexed, by reading its headers, and images are read from where they
    are. A compressed one has no such places: its images are unpacked into memory, at
    most 4 GiB of them.

    Raises:
      UserError: nothing readable there, or not two splits with the same two or more
        classes.
    """
    where = f"config.data.path={path}"
    store = _folder(Path(path)) if Path(path).is_dir() else _archive(Path(path), where)
    if not store.sizes:
        raise UserError(f"{where}: no images; {LAYOUT} are needed")
    by_split: dict[str, list[str]] = {}
    for name in sorted(store.sizes):
        by_split.setdefault(_parts(name)[0], []).append(name)
    held_out = next((name for name in VALIDATION if name in by_split), None)
    if TRAIN not in by_split or held_out is None:
        raise UserError(
            f"{where}: images for {' and '.join(sorted(by_split))} only; {LAYOUT} "
            "are needed"
        )
    classes = _classes(by_split[TRAIN], by_split[held_out], held_out, where)
    number = {name: label for label, name in enumerate(classes)}

    def split(names: list[str]) -> Split:
        return Split(
            names, np.array([number[_parts(name)[1]] for name in names], np.int32)
        )

    return Files(split(by_split[TRAIN]), split(by_split[held_out]), classes, store)


def _classes(
    train: list[str], validation: list[str], held_out: str, where: str
) -> list[str]:
    """The classes in order, if both splits have the same two or more."""
    found = {_parts(name)[1] for name in train}
    others = {_parts(name)[1] for name in validation}
    for missing, part in ((others - found, TRAIN), (found - others, held_out)):
        if missing:
            raise UserError(
                f"{where}: {len(missing)} classes have no image in {part}/, "
                f"{min(missing)} among them; both splits need the same"
            )
    if len(found) < 2:
        raise UserError(f"{where}: one class, {min(found)}; at least two are needed")
    return sorted(found)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("/"))


def _is_image(name: str) -> bool:
    """Whether a path, without a leading "./", is an image of one of the splits."""
    parts = _parts(name)
    return (
        len(parts) == 3
        and parts[0] in (TRAIN, *VALIDATION)
        and not parts[2].startswith(".")
        and parts[2].lower().endswith(SUFFIXES)
    )


def _folder(root: Path) -> Store:
    def entries(folder: str | Path) -> Iterator[os.DirEntry]:
        with os.scandir(folder) as found:
            yield from found

    sizes = {}
    try:
        for split in entries(root):
            if split.name not in (TRAIN, *VALIDATION) or not split.is_dir():
                continue
            for label in entries(split.path):
                for image in entries(label.path) if label.is_dir() else ():
                    name = f"{split.name}/{label.name}/{image.name}"
                    if _is_image(name) and image.is_file():
                        sizes[name] = image.stat().st_size
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None

    def read(name: str) -> bytes:
        try:
            return (root / name).read_bytes()
        except OSError as error:
            raise UserError(f"{root / name}: {error.strerror}") from None

    return Store(sizes, read)


def _archive(path: Path, where: str) -> Store:
    try:
        archive, is_plain = _open(path)
        with archive:
            return _indexed(archive, path) if is_plain else _held(archive, where)
    except BROKEN_TAR as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{where}: {reason}; a folder, or a whole tar, with {LAYOUT} is needed"
        ) from None


def _open(path: Path) -> tuple[tarfile.TarFile, bool]:
    """The tar, and whether it is a plain one."""
    try:
        return tarfile.open(path, "r:"), True
    except tarfile.ReadError:
        return tarfile.open(path, "r|*"), False


def _images(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The images among the members, with their paths."""
    while (member := archive.next()) is not None:
        # It keeps a kilobyte for every file so far.
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        name = str(PurePosixPath(member.name))
        if not _is_image(name) or member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise tarfile.TarError(f"{member.name} is a link or the like, not a file")
        yield name, member


def _indexed(archive: tarfile.TarFile, path: Path) -> Store:
    places = {
        name: (member.size, member.offset_data) for name, member in _images(archive)
    }
    descriptor = os.open(path, os.O_RDONLY)

    def read(name: str) -> bytes:
        size, offset = places[name]
        data = os.pread(descriptor, size, offset)  # by many threads, without a lock
        if len(data) < size:
            raise UserError(f"{path}: {name} has {len(data)} bytes instead of {size}")
        return data

    weakref.finalize(read, os.close, descriptor)
    return Store({name: size for name, (size, _) in places.items()}, read)


def _held(archive: tarfile.TarFile, where: str) -> Store:
    held: dict[str, bytes] = {}
    room = LARGEST_HELD
    for name, member in _images(archive):
        room -= member.size
        if room < 0:
            raise UserError(
                f"{where}: a compressed tar is unpacked into memory, and this one has "
                f"more than {LARGEST_HELD:,} bytes of images; decompress it first"
            )
        file = archive.extractfile(member)
        assert file is not None  # it is a regular file
        held[name] = file.read()
    return Store({name: len(data) for name, data in held.items()}, held.__getitem__)
