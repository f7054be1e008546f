"""Scikit-learn's 8x8 digits, which are installed with it, as batches."""

import hashlib
from typing import NamedTuple, cast

import grain
import numpy as np
from sklearn import datasets

from experiments.data.stream import Batch

NUM_CLASSES = 10
VALIDATION_FRACTION = 0.2
LARGEST_PIXEL = 16


class Digits(NamedTuple):
    """Images (n, 64) in [0, 1] and labels (n,)."""

    images: np.ndarray
    labels: np.ndarray


def load() -> tuple[Digits, str]:
    """All 1,797 digits and the SHA-256 of what was read."""
    images, labels = cast(
        tuple[np.ndarray, np.ndarray], datasets.load_digits(return_X_y=True)
    )
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    scaled = (images / LARGEST_PIXEL).astype(np.float32)
    return Digits(scaled, labels.astype(np.int32)), digest


def split(digits: Digits, seed: int) -> tuple[Digits, Digits]:
    """A random fifth is for validation, the rest for training."""
    order = np.random.default_rng(seed).permutation(len(digits.labels))
    held_out = round(VALIDATION_FRACTION * len(order))

    def take(index: np.ndarray) -> Digits:
        return Digits(digits.images[index], digits.labels[index])

    return take(order[held_out:]), take(order[:held_out])


def train_pipeline(digits: Digits, batch_size: int, seed: int) -> grain.MapDataset:
    """Endless batches; element ``i`` depends on ``seed`` and ``i`` alone."""
    rows = np.arange(len(digits.labels))
    return (
        grain.MapDataset.source(rows)  # pyright: ignore[reportArgumentType]
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size, batch_fn=np.stack)
        .map(
            lambda index: {
                "images": digits.images[index],
                "labels": digits.labels[index],
                "weights": np.ones(batch_size, np.float32),
            }
        )
    )


def validation_batches(digits: Digits, batch_size: int) -> list[Batch]:
    """All digits once; the last batch is filled up with rows of no weight."""
    number = len(digits.labels)
    rows = np.arange(number + -number % batch_size).reshape(-1, batch_size)
    return [
        {
            "images": digits.images[index % number],
            "labels": digits.labels[index % number],
            "weights": (index < number).astype(np.float32),
        }
        for index in rows
    ]
