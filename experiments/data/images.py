"""Images to batches, by way of a random or a fixed view of each.

Batches have whole pixels; the model's side normalises them, so that a quarter of the
bytes go to the device.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.data import decoding, digits, image_files, stream
from experiments.data.stores import Store
from experiments.data.stream import Batch

AUGMENTATIONS = ("none", "shift", "resized_crop")
LARGEST_DECODED = 2**31  # bytes of images that are kept decoded
LARGEST_PIXEL = 255
# What is cut off around an image for validation where training has random crops.
EVAL_SHORT_SIDE = 256 / 224
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIALS = 10

Row = dict[str, Any]
View = Callable[[int], np.ndarray]
RandomView = Callable[[int, np.random.Generator], np.ndarray]


class Split(NamedTuple):
    """Labels (n,) int32, and views (size, size, channels) uint8 of each image."""

    labels: np.ndarray
    view: View  # for validation
    random_view: RandomView  # for training


class Images(NamedTuple):
    """Two splits of images, and what they are."""

    train: Split
    validation: Split
    num_classes: int
    channels: int
    largest_pixel: int
    in_memory: bool
    origin: str
    sha256: str


def load(config: Config) -> Images:
    """Reads or finds the images at ``config.path``; empty: scikit-learn's digits.

    If all images together, at ``config.image_size``, take at most 2 GiB and training
    needs nothing beyond that size, they are decoded once; else whenever one is needed.

    Raises:
      UserError: no images there, or one that is decoded now cannot be.
    """
    return _load_files(config) if config.path else _load_digits(config)


def _load_digits(config: Config) -> Images:
    if config.image_size != digits.SIZE or config.augment == "resized_crop":
        raise UserError(
            f"config.data.path=: the digits that come with scikit-learn are "
            f"{digits.SIZE}x{digits.SIZE} and take the augmentations none and shift; "
            "name a folder or a tar of images"
        )
    pixels, labels, sha256 = digits.load()
    train, validation = digits.split(len(labels), config.split_seed)
    return Images(
        _held_split(pixels[train], labels[train], config),
        _held_split(pixels[validation], labels[validation], config),
        digits.NUM_CLASSES,
        channels=1,
        largest_pixel=digits.LARGEST_PIXEL,
        in_memory=True,
        origin="scikit-learn digits",
        sha256=sha256,
    )


def _load_files(config: Config) -> Images:
    files = image_files.find(config.path)
    count = len(files.store.sizes)
    decoded = count * 3 * config.image_size**2
    in_memory = config.augment != "resized_crop" and decoded <= LARGEST_DECODED
    make = _decoded_split if in_memory else _lazy_split
    return Images(
        make(files.store, files.train, config),
        make(files.store, files.validation, config),
        len(files.classes),
        channels=3,
        largest_pixel=LARGEST_PIXEL,
        in_memory=in_memory,
        origin=config.path,
        sha256=files.sha256(with_bytes=in_memory),
    )


def _held_split(pixels: np.ndarray, labels: np.ndarray, config: Config) -> Split:
    view: View = pixels.__getitem__
    return Split(labels, view, _random_view(view, config))


def _decoded_split(store: Store, split: image_files.Split, config: Config) -> Split:
    size = config.image_size
    pixels = np.empty((len(split.names), size, size, 3), np.uint8)
    for row, name in zip(pixels, split.names, strict=True):
        row[...] = centre(_read(store, name), size, size)
    return _held_split(pixels, split.labels, config)


def _lazy_split(store: Store, split: image_files.Split, config: Config) -> Split:
    size, is_cropped = config.image_size, config.augment == "resized_crop"
    short_side = round(EVAL_SHORT_SIDE * size) if is_cropped else size

    def view(index: int) -> np.ndarray:
        return centre(_read(store, split.names[index]), size, short_side)

    def random_crop(index: int, rng: np.random.Generator) -> np.ndarray:
        return resized_crop(_read(store, split.names[index]), size, rng)

    if not is_cropped:
        return Split(split.labels, view, _random_view(view, config))
    return Split(split.labels, view, _maybe_flipped(random_crop, config))


def _random_view(view: View, config: Config) -> RandomView:
    def shifted(index: int, rng: np.random.Generator) -> np.ndarray:
        return shift(view(index), rng) if config.augment == "shift" else view(index)

    return _maybe_flipped(shifted, config)


def _maybe_flipped(random_view: RandomView, config: Config) -> RandomView:
    def flipped(index: int, rng: np.random.Generator) -> np.ndarray:
        pixels = random_view(index, rng)
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    return flipped if config.flip else random_view


def _read(store: Store, name: str) -> Image.Image:
    return decoding.decode(store.read(name), name)


def centre(image: Image.Image, size: int, short_side: int) -> np.ndarray:
    """The middle ``size`` x ``size`` of the image scaled to that short side."""
    edge = min(image.size) * size / short_side
    left, top = (image.width - edge) / 2, (image.height - edge) / 2
    return _resized(image, size, (left, top, left + edge, top + edge))


def resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of the image, at ``size`` x ``size``.

    8% to 100% of its area, with sides from 3:4 to 4:3, as in `Szegedy et al.
    <https://arxiv.org/abs/1409.4842>`_; the middle where ten trials do not fit.
    """
    low, high = np.log(CROP_RATIO)
    for _ in range(CROP_TRIALS):
        area = image.width * image.height * rng.uniform(*CROP_AREA)
        ratio = math.exp(rng.uniform(low, high))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = int(rng.integers(image.width - width, endpoint=True))
            top = int(rng.integers(image.height - height, endpoint=True))
            return _resized(image, size, (left, top, left + width, top + height))
    return centre(image, size, size)


def _resized(image: Image.Image, size: int, box: tuple) -> np.ndarray:
    if image.size == (size, size) and box == (0, 0, size, size):
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))


def shift(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves an image by up to an eighth of its size, and fills up with zeros.

    The padded random crop of CIFAR: 4 pixels of 32.
    """
    size = len(pixels)
    reach = size // 8
    down, right = rng.integers(-reach, reach, 2, endpoint=True).tolist()
    shifted = np.zeros_like(pixels)
    shifted[_target(down, size), _target(right, size)] = pixels[
        _target(-down, size), _target(-right, size)
    ]
    return shifted


def _target(by: int, size: int) -> slice:
    """Where a row of ``size`` pixels lands that moves ``by`` pixels."""
    return slice(max(by, 0), size + min(by, 0))


def train_batches(
    split: Split, batch_size: int, seed: int, start: int
) -> Iterator[Batch]:
    """Endless batches from microbatch ``start`` on, this process's rows of each.

    Row ``i`` of the stream depends on ``seed`` and ``i`` alone. Each epoch has every
    image once, in an order of its own.
    """

    def row(index: np.integer, rng: np.random.Generator) -> Row:
        return _row(split.random_view(int(index), rng), split.labels[index])

    rows = np.arange(len(split.labels))
    examples = (
        grain.MapDataset.source(rows)  # pyright: ignore[reportArgumentType]
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(row)
    )
    return stream.batches(examples, batch_size, start)


def eval_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Every image once; the last batch is filled up with rows of weight 0."""
    count = len(split.labels)

    def row(index: int) -> Row:
        pixels = split.view(min(index, count - 1))
        return _row(pixels, split.labels[min(index, count - 1)], index < count)

    padded = math.ceil(count / batch_size) * batch_size
    return stream.batches(grain.MapDataset.range(padded).map(row), batch_size, 0)


def _row(pixels: np.ndarray, label: np.integer, weight: float = 1) -> Row:
    return {"images": pixels, "labels": label, "weights": np.float32(weight)}


def frequency_cross_entropy(train: Split, validation: Split) -> float:
    """Nats per validation image under the training frequencies of the classes."""
    frequencies = np.bincount(train.labels) / len(train.labels)
    return float(-np.log(frequencies)[validation.labels].mean())
