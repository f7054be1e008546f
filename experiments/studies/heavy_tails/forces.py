"""W7: forces of a Lennard-Jones cluster, with rare pairs that are far too close."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies import digits
from experiments.studies.heavy_tails import folds, methods, mlp, race
from experiments.studies.heavy_tails.folds import Setup
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.training import Contestant, Problem, PyTree

STEPS, BATCH = 400, 16
RATE = 0.008
PARTICLES, BOX = 5, 2.8  # in units of the length of the potential
USUAL = 1.0  # no pair of a usual configuration is closer
CLOSE = (0.75, 0.95)  # distances of a close pair
SHARE = 0.02  # of the configurations
PARTS = {"train": 3000, "validation": 500, "test": 500}
SIZES = (2, 32, 32, 1)
MARGIN = 0.01  # of the variance of usual forces
HUBER = {"huber_loss(1), adamw": 1.0}
METHODS = (
    "adamw",
    methods.BASELINE,
    "clip_by_global_norm(tuned), adamw",
    "clip_by_history, adamw",
    "guarded(adamw)",
)
CONDITIONS = (race.CLEAN, "2% with a close pair")


def problem(condition: str, part: str) -> Problem:
    """A network of one distance, whose forces on the particles are added up."""
    usual, close, unit = configurations()

    def batches(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, 3])
        rows = digits.batch_indices(digits.Setup(STEPS, BATCH), PARTS["train"], seed)
        share = 0.0 if condition == race.CLEAN else SHARE
        is_close = rng.random(PARTS["train"])[rows] < share
        return {
            "rows": rows,
            "is_close": is_close,
            "huber": np.full(STEPS, np.inf, np.float32),
        }

    positions = {"train": usual["train"], "close": close["train"]}
    held_out = {"usual": usual[part], "close": close[part]}
    return Problem(
        STEPS,
        lambda key: (mlp.init(key, SIZES), {}),
        _loss,
        _evaluate,
        (positions, held_out, np.float32(unit)),
        batches,
        evaluations=1,
        side_by_side=True,
    )


def _pairs(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distances (..., n, n), with ones for a particle and itself, and directions."""
    apart = positions[..., :, None, :] - positions[..., None, :, :]
    square = jnp.sum(apart**2, axis=-1) + jnp.eye(positions.shape[-2])
    distance = jnp.sqrt(square)
    return distance, apart / distance[..., None]


def _summed(sizes: jax.Array, directions: jax.Array) -> jax.Array:
    """Forces on the particles; the direction from a particle to itself is zero."""
    return jnp.sum(sizes[..., None] * directions, axis=-2)


def truth(positions: jax.Array) -> jax.Array:
    """24 (2 r^-13 - r^-7) along each pair."""
    distance, directions = _pairs(positions)
    return _summed(24 * (2 * distance**-13 - distance**-7), directions)


def _predicted(params: PyTree, positions: jax.Array) -> jax.Array:
    distance, directions = _pairs(positions)
    features = jnp.stack([distance - 1.5, 1 / distance], axis=-1)
    sizes = mlp.apply(params, features.reshape(-1, 2)).reshape(distance.shape)
    return _summed(sizes, directions)


def _loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
    usual, close = (data[0][kind][batch["rows"]] for kind in ("train", "close"))
    positions = jnp.where(batch["is_close"][:, None, None], close, usual)
    target = truth(positions) / data[2]
    output = _predicted(params, positions)
    each = folds.losses(Setup(STEPS, BATCH), output, target, batch["huber"])
    return each.mean(), state


def _evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
    """The error of usual forces over their variance; the share learnt of close ones."""
    del state
    ratios = []
    for kind in ("usual", "close"):
        positions = data[1][kind]
        target = truth(positions) / data[2]
        error = jnp.mean((_predicted(params, positions) - target) ** 2)
        ratios.append(error / jnp.mean(target**2))
    return ratios[0], 1 - ratios[1]


@functools.cache
def configurations() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """Usual positions by part, the same with a close pair, and the unit of forces."""
    rng = np.random.default_rng(0)
    wanted = sum(PARTS.values())
    found: list[np.ndarray] = []
    while sum(map(len, found)) < wanted:
        tried = rng.uniform(0, BOX, (20_000, PARTICLES, 3))
        apart = np.linalg.norm(tried[:, :, None] - tried[:, None], axis=-1)
        apart += 10 * np.eye(PARTICLES)
        found.append(tried[apart.min(axis=(1, 2)) >= USUAL])
    usual = np.concatenate(found)[:wanted].astype(np.float32)
    close = usual.copy()
    direction = rng.normal(size=(wanted, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    distance = rng.uniform(*CLOSE, size=(wanted, 1))
    close[:, 1] = close[:, 0] + distance * direction
    unit = float(np.std(np.asarray(jax.jit(truth)(usual))))
    stops = np.cumsum(list(PARTS.values()))[:-1]
    usual_parts, close_parts = (
        dict(zip(PARTS, np.split(x, stops), strict=True)) for x in (usual, close)
    )
    return usual_parts, close_parts, unit


RACE = Race(
    "W7",
    problem,
    STEPS,
    CONDITIONS,
    methods.contestants(RATE, METHODS)
    | {name: Contestant(optax.adamw, RATE) for name in HUBER},
    Endpoint("clip_by_history, adamw", CONDITIONS[1], "tuned"),
    MARGIN,
    adapted=functools.partial(methods.with_huber, HUBER),
)
LOOKS = {
    f"{condition}, trained": Look(
        functools.partial(problem, condition, "test"), RATE, STEPS // 2
    )
    for condition in CONDITIONS
}
