"""W4: delays of flights, some of whose targets are a sentinel; losses in any unit."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies import digits
from experiments.studies.heavy_tails import folds, methods, mlp, race, tables
from experiments.studies.heavy_tails.folds import Setup
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.training import Contestant, Problem, PyTree

STEPS, BATCH = 400, 64
RATE = 0.008
SENTINEL = 9999.0  # minutes
PARTS = {"train": 40_000, "validation": 10_000, "test": 10_000}
MARGIN = 0.005  # of the variance: half a point of R2
HUBER = {"huber_loss(1), adamw": 1.0, "huber_loss(0.3), adamw": 0.3}


class Condition(NamedTuple):
    """Share of the training targets that are the sentinel, and the loss's unit."""

    sentinels: float = 0.0
    unit: float = 1.0


CONDITIONS = {
    race.CLEAN: Condition(),
    "0.01% sentinels": Condition(1e-4),
    "0.1% sentinels": Condition(1e-3),
    "1% sentinels": Condition(1e-2),
    "0.1%, loss x 0.001": Condition(1e-3, 1e-3),
    "0.1%, loss x 1000": Condition(1e-3, 1e3),
}


def problem(condition: str, part: str) -> Problem:
    """A small network; validation and test targets are as they were."""
    what, (data, deviation) = CONDITIONS[condition], _parts()

    def batches(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, 3])
        rows = digits.batch_indices(digits.Setup(STEPS, BATCH), PARTS["train"], seed)
        target = data["train"][1][rows]
        is_bad = rng.random(PARTS["train"])[rows] < what.sentinels
        return {
            "rows": rows,
            "target": np.where(is_bad, SENTINEL / deviation, target).astype("f4"),
            "huber": np.full(STEPS, np.inf, np.float32),
            "unit": np.full(STEPS, what.unit, np.float32),
        }

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        return mlp.init(key, (data["train"][0].shape[1], folds.WIDTH, 1)), {}

    arrays = (data["train"][0], data[part])
    return Problem(
        STEPS, init, _loss, _evaluate, arrays, batches, evaluations=1, side_by_side=True
    )


def _loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
    output = mlp.apply(params, data[0][batch["rows"]])[:, 0]
    each = folds.losses(Setup(STEPS, BATCH), output, batch["target"], batch["huber"])
    return batch["unit"] * each.mean(), state


def _evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
    """The squared error over the variance, and R2, which is 1 minus it."""
    del state
    features, target = data[1]
    error = jnp.mean((mlp.apply(params, features)[:, 0] - target) ** 2)
    ratio = error / jnp.var(target)
    return ratio, 1 - ratio


@functools.cache
def _parts() -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]:
    """Features and targets of each part, and the deviation that is the unit."""
    features, minutes = tables.flights()
    rows = np.random.default_rng(0).permutation(len(minutes))
    pieces = np.split(rows, np.cumsum(list(PARTS.values())))
    deviation = float(minutes[pieces[0]].std())
    target = (minutes / deviation).astype(np.float32)
    return {
        part: (features[piece], target[piece])
        for part, piece in zip(PARTS, pieces[: len(PARTS)], strict=True)
    }, deviation


RACE = Race(
    "W4",
    problem,
    STEPS,
    tuple(CONDITIONS),
    methods.contestants(RATE, methods.CLIPS)
    | {name: Contestant(optax.adamw, RATE) for name in HUBER},
    Endpoint("guarded(adamw)", "0.1% sentinels", "default"),
    MARGIN,
    adapted=functools.partial(methods.with_huber, HUBER),
)

LOOKS = {
    "clean, trained": Look(
        functools.partial(problem, race.CLEAN, "test"), RATE, STEPS // 2
    ),
    "0.1% sentinels, trained": Look(
        functools.partial(problem, "0.1% sentinels", "test"), RATE, STEPS // 2
    ),
}
