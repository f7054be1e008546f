"""W1 and W2: the digits, clean; with spikes, NaN and batches that are not scaled."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import digits as files
from experiments.models.losses import cross_entropy
from experiments.studies import digits
from experiments.studies.heavy_tails import methods, mlp, race
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.training import Problem, PyTree

STEPS, BATCH, WIDTH = 400, 32, 32
RATE = 0.032
PARTS = {"train": 1000, "validation": 400, "test": 397}
MARGIN = 0.01  # nats
CLEAN_SEEDS = tuple(range(100, 160))  # more than elsewhere: the margin is small


class Condition(NamedTuple):
    """Shares of the steps, each at random times from the first step on."""

    spikes: float = 0.0  # gradients times 10 to 10,000, their losses as they are
    nan: float = 0.0  # losses and gradients
    unscaled: float = 0.0  # images from 0 to 16 in place of 0 to 1


CONDITIONS = {
    race.CLEAN: Condition(),
    "spikes": Condition(spikes=0.02),
    "NaN": Condition(nan=0.01),
    "unscaled": Condition(unscaled=0.03),
}


def problem(condition: str, part: str) -> Problem:
    """The network under a condition, evaluated on a part of the images."""
    what, parts = CONDITIONS[condition], images()
    rows_of = digits.Setup(STEPS, BATCH)

    def batches(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, 3])
        hit = {
            kind: rng.random(STEPS) < share for kind, share in what._asdict().items()
        }
        spike = 10 ** rng.uniform(1, 4, STEPS)
        factor = np.where(hit["spikes"], spike, np.where(hit["nan"], np.nan, 1.0))
        return {
            "rows": digits.batch_indices(rows_of, PARTS["train"], seed),
            "factor": factor.astype(np.float32),
            "scale": np.where(hit["unscaled"], files.LARGEST_PIXEL, 1.0).astype("f4"),
        }

    data = (parts["train"], parts[part])
    return Problem(
        STEPS, _init, _loss, _evaluate, data, batches, evaluations=1, side_by_side=True
    )


def _init(key: jax.Array) -> tuple[PyTree, PyTree]:
    return mlp.init(key, (files.SIZE**2, WIDTH, files.NUM_CLASSES)), {}


def _loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
    images, labels = (x[batch["rows"]] for x in data[0])
    value = cross_entropy(mlp.apply(params, batch["scale"] * images), labels).mean()
    # The factor is on the derivative alone, unless it is NaN.
    extra = (batch["factor"] - 1) * (value - jax.lax.stop_gradient(value))
    return value + extra, state


def _evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
    del state
    images, labels = data[1]
    logits = mlp.apply(params, images)
    is_right = jnp.argmax(logits, axis=-1) == labels
    return cross_entropy(logits, labels).mean(), jnp.mean(is_right)


@functools.cache
def images() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each part, drawn once for all seeds."""
    pixels, labels = map(np.concatenate, zip(*digits.load(), strict=True))
    rows = np.random.default_rng(0).permutation(len(pixels))
    pieces = np.split(rows, np.cumsum(list(PARTS.values())))
    return {
        part: (pixels[piece], labels[piece])
        for part, piece in zip(PARTS, pieces[: len(PARTS)], strict=True)
    }


RACE = Race(
    "W2",
    problem,
    STEPS,
    tuple(CONDITIONS),
    methods.contestants(RATE),
    Endpoint("guarded(adamw)", "spikes", "default"),
    MARGIN,
    seeds={race.CLEAN: CLEAN_SEEDS},
    # What is not made for NaN loses every run, and is no measure of what is.
    baselines={"NaN": methods.FINITE},
)
LOOKS = {
    "clean, new weights": Look(functools.partial(problem, race.CLEAN, "test"), RATE, 0),
    "clean, trained": Look(
        functools.partial(problem, race.CLEAN, "test"), RATE, STEPS // 2
    ),
    "spikes, trained": Look(
        functools.partial(problem, "spikes", "test"), RATE, STEPS // 2
    ),
    "unscaled, trained": Look(
        functools.partial(problem, "unscaled", "test"), RATE, STEPS // 2
    ),
}
