"""Image files in class folders, in a folder tree or a tar.

``train/<class>/<image>`` and ``validation/<class>/<image>``; the second may also be
called ``val`` or ``test``. Images end in .jpg, .jpeg or .png. Other files are left
alone, and so is what notebooks and photo tools leave behind (`stores.is_left_behind`).
"""

import hashlib
import os
from typing import NamedTuple

import numpy as np

from experiments.common import inputs
from experiments.common.errors import UserError
from experiments.data import decoding, stores
from experiments.data.stores import Store

TRAIN = "train"
VALIDATION = ("validation", "val", "test")  # the first that is there
SUFFIXES = (".jpg", ".jpeg", ".png")
LAYOUT = "train/<class>/*.jpg and validation|val|test/<class>/*.jpg (or .jpeg, .png)"
LARGEST_FILE = decoding.LARGEST_IMAGE * decoding.BYTES_PER_PIXEL


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

    A plain tar is indexed; a compressed one is unpacked into memory, at most 4 GiB.

    Raises:
      UserError: nothing readable there, or not two splits with the same two or more
        classes, a class without an image, or a file larger than an image can be.
    """
    where = f"config.data.path={path}"
    store = _store(path, where)
    if not store.sizes:
        raise UserError(f"{where}: no images; {LAYOUT} are needed")
    largest = max(store.sizes, key=store.sizes.__getitem__)
    if store.sizes[largest] > LARGEST_FILE:
        raise UserError(
            f"{where}: {largest} has {store.sizes[largest]:,} bytes; an image may have "
            f"at most {LARGEST_FILE:,}"
        )
    by_split: dict[str, list[str]] = {}
    for name in sorted(store.sizes):
        by_split.setdefault(_parts(name)[0], []).append(name)
    held_out = next((name for name in VALIDATION if name in by_split), None)
    if TRAIN not in by_split or held_out is None:
        raise UserError(
            f"{where}: images for {' and '.join(sorted(by_split))} only; {LAYOUT} "
            "are needed"
        )
    _check_folders(store, (TRAIN, held_out), where)
    classes = _classes(by_split[TRAIN], by_split[held_out], held_out, where)
    number = {name: label for label, name in enumerate(classes)}

    def split(names: list[str]) -> Split:
        return Split(
            names, np.array([number[_parts(name)[1]] for name in names], np.int32)
        )

    return Files(split(by_split[TRAIN]), split(by_split[held_out]), classes, store)


def _store(path: str, where: str) -> Store:
    root = inputs.local("config.data.path", path)
    try:
        if inputs.is_folder(root):
            return stores.folder(root, (TRAIN, *VALIDATION), _is_image)
        return stores.archive(root, _is_image)
    except stores.BROKEN as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{where}: {reason}; a folder, or a whole tar, with {LAYOUT} is needed"
        ) from None


def _check_folders(store: Store, splits: tuple[str, ...], where: str) -> None:
    """Refuses folders of a split that would silently be no class."""
    with_images = {name.rpartition("/")[0] for name in store.sizes}
    for name in sorted(store.folders - with_images):
        if name.partition("/")[0] in splits:
            raise UserError(
                f"{where}: {name}: no JPEG or PNG image in this folder; convert what "
                "it has, or take it away"
            )


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
        and not any(map(stores.is_left_behind, parts))
        and parts[2].lower().endswith(SUFFIXES)
    )
