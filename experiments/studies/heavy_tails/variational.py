"""W9: a posterior by variational inference, from scales that are far too small.

The entropy's derivative by a scale is its inverse: with scales of 1e-4 the first
gradients are ten thousand times the last ones. What clips by the past has none at the
first step, and takes what it sees there for what is usual.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

from experiments.studies.heavy_tails import methods, race
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.training import Problem, PyTree

STEPS, BATCH, DRAWS = 400, 32, 64
RATE = 0.032
MARGIN = 0.002  # nats a row of the data
SCALES = {race.CLEAN: 0.1, "scales of 0.01": 1e-2, "scales of 0.0001": 1e-4}
SHARES = (0.6, 0.2)  # of the rows, for training and for validation


def problem(condition: str, part: str) -> Problem:
    """Logistic regression with a Gaussian prior, and a Gaussian of free scales."""
    parts = _parts()
    number, width = parts["train"][0].shape

    def key(seed: int) -> PyTree:
        return jax.random.key(seed), jnp.asarray(SCALES[condition], jnp.float32)

    def init(given: PyTree) -> tuple[PyTree, PyTree]:
        noise_key, scale = given
        mean = 0.1 * jax.random.normal(noise_key, (width,))
        return {"mean": mean, "scale": jnp.full(width, scale)}, {}

    def batches(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, 1])
        return {
            "rows": rng.integers(number, size=(STEPS, BATCH)),
            "noise": rng.normal(size=(STEPS, width)).astype(np.float32),
        }

    def loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
        x, y = (array[batch["rows"]] for array in data[0])
        weights = params["mean"] + params["scale"] * batch["noise"]
        fit = jnp.mean(jax.nn.softplus(-y * (x @ weights)))
        return fit + _divergence(params) / number, state

    draws = np.random.default_rng(0).normal(size=(DRAWS, width)).astype(np.float32)

    def evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
        """The bound with the fit to a held-out part, of many draws; and accuracy."""
        del state
        x, y = data[1]
        weights = params["mean"] + params["scale"] * draws
        margins = y * (weights @ x.T)
        bound = jnp.mean(jax.nn.softplus(-margins)) + _divergence(params) / number
        return bound, jnp.mean(margins > 0)

    return Problem(
        STEPS,
        init,
        loss,
        evaluate,
        (parts["train"], parts[part]),
        batches,
        key,
        evaluations=1,
        side_by_side=True,
    )


def _divergence(params: PyTree) -> jax.Array:
    """From the standard normal prior; a scale's sign means nothing."""
    square = params["scale"] ** 2
    return 0.5 * jnp.sum(square + params["mean"] ** 2 - 1 - jnp.log(square))


@functools.cache
def _parts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features of mean 0 and deviation 1, and labels of -1 and 1."""
    bunch: Any = datasets.load_breast_cancer()
    x = (bunch.data - bunch.data.mean(axis=0)) / bunch.data.std(axis=0)
    y = 2.0 * bunch.target - 1
    rows = np.random.default_rng(0).permutation(len(x))
    stops = np.cumsum([int(share * len(x)) for share in SHARES])
    return {
        part: (x[piece].astype(np.float32), y[piece].astype(np.float32))
        for part, piece in zip(
            ("train", "validation", "test"), np.split(rows, stops), strict=True
        )
    }


RACE = Race(
    "W9",
    problem,
    STEPS,
    tuple(SCALES),
    methods.contestants(RATE, methods.CLIPS),
    Endpoint("guarded(adamw)", "scales of 0.0001", "default"),
    MARGIN,
)
LOOKS = {
    "scales of 0.1, new": Look(functools.partial(problem, race.CLEAN, "test"), RATE, 0),
    "scales of 0.1, trained": Look(
        functools.partial(problem, race.CLEAN, "test"), RATE, STEPS // 2
    ),
    "scales of 0.0001, new": Look(
        functools.partial(problem, "scales of 0.0001", "test"), RATE, 0
    ),
}
