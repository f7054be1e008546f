"""W3: eight workers, of which none, one or three are bad."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from experiments.data import digits as files
from experiments.models.losses import cross_entropy
from experiments.studies import digits
from experiments.studies.heavy_tails import corrupted, mlp, race
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.training import Contestant, Problem, PyTree
from optax_heavytail import aggregation

STEPS, WORKERS, ROWS = 300, 8, 8  # images of each worker in a step
RATE = 0.016
BASELINE = "mean, clip_by_global_norm(1)"


class Bad(NamedTuple):
    """What the first workers do, in every step."""

    number: int = 0
    shift: int = 0  # of the labels
    factor: float = 1.0  # on the gradient
    is_stale: bool = False  # the gradient is that of the first parameters, for good


CONDITIONS = {
    race.CLEAN: Bad(),
    "1 with shifted labels": Bad(1, shift=1),
    "1 sends -20 g": Bad(1, factor=-20.0),
    "1 sends NaN": Bad(1, factor=float("nan")),
    "1 is stale": Bad(1, is_stale=True),
    "3 with shifted labels": Bad(3, shift=1),
    "3 send -20 g": Bad(3, factor=-20.0),
}


def problem(condition: str, part: str) -> Problem:
    """The network of W2, its batch split among the workers."""
    bad, parts = CONDITIONS[condition], corrupted.images()
    is_bad = np.arange(WORKERS) < bad.number

    def batches(seed: int) -> dict[str, np.ndarray]:
        setup = digits.Setup(STEPS, WORKERS * ROWS)
        rows = digits.batch_indices(setup, corrupted.PARTS["train"], seed)
        spread = np.ones((STEPS, 1), np.float32)
        return {
            "rows": rows.reshape(STEPS, WORKERS, ROWS),
            "shift": np.tile(np.where(is_bad, bad.shift, 0), (STEPS, 1)),
            "factor": spread * np.where(is_bad, bad.factor, 1.0).astype(np.float32),
            "stale": np.tile(is_bad & bad.is_stale, (STEPS, 1)),
        }

    return Problem(
        STEPS,
        _init,
        _loss,
        _evaluate,
        (parts["train"], parts[part]),
        batches,
        gradient=_gradients,
        evaluations=1,
        side_by_side=True,
    )


def _init(key: jax.Array) -> tuple[PyTree, PyTree]:
    params = mlp.init(key, (files.SIZE**2, corrupted.WIDTH, files.NUM_CLASSES))
    return params, params


def _of_worker(params: PyTree, data: PyTree, batch: PyTree) -> jax.Array:
    images, labels = (x[batch["rows"]] for x in data[0])
    labels = (labels + batch["shift"]) % files.NUM_CLASSES
    return cross_entropy(mlp.apply(params, images), labels).mean()


def _gradients(
    params: PyTree, first: PyTree, data: PyTree, batch: PyTree, count: jax.Array
) -> tuple[PyTree, jax.Array, PyTree]:
    """That of each worker, the loss of the good ones' parameters, and the first."""
    del count

    def of_one(batch: PyTree) -> tuple[jax.Array, PyTree]:
        own = jax.tree.map(lambda p, q: jnp.where(batch["stale"], q, p), params, first)
        value, grads = jax.value_and_grad(_of_worker)(own, data, batch)
        return value, jax.tree.map(lambda g: batch["factor"] * g, grads)

    values, grads = jax.vmap(of_one)(batch)
    return grads, values.mean(), first


def _loss(params: PyTree, first: PyTree, data: PyTree, batch: PyTree) -> Any:
    """Of one worker, the last: a good one, whose noise is looked at."""
    last = jax.tree.map(lambda x: x[-1], batch)
    return _of_worker(params, data, last), first


def _evaluate(params: PyTree, first: PyTree, data: PyTree) -> Any:
    del first
    images, labels = data[1]
    logits = mlp.apply(params, images)
    is_right = jnp.argmax(logits, axis=-1) == labels
    return cross_entropy(logits, labels).mean(), jnp.mean(is_right)


def _by(
    aggregate: Callable[[PyTree], PyTree], then: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Gradients of workers to one, which an optimizer takes."""
    first = optax.stateless(lambda grads, params: aggregate(grads))
    return lambda rate: optax.chain(first, then(rate))


def _clipped(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))


RULES: dict[str, Callable[[Any], Any]] = {
    BASELINE: _by(aggregation.mean, _clipped),
    "mean": _by(aggregation.mean, optax.adamw),
    "mean, guarded": _by(aggregation.mean, lambda rate: oht.guarded(optax.adamw(rate))),
    "mean_of_clipped(1)": _by(
        lambda grads: aggregation.mean_of_clipped(grads, 1.0), optax.adamw
    ),
    "trimmed_mean(1)": _by(
        lambda grads: aggregation.trimmed_mean(grads, 1), optax.adamw
    ),
    "trimmed_mean(3)": _by(
        lambda grads: aggregation.trimmed_mean(grads, 3), optax.adamw
    ),
    "coordinate_median": _by(aggregation.coordinate_median, optax.adamw),
    "geometric_median": _by(aggregation.geometric_median, optax.adamw),
    "median_of_means(4)": _by(
        lambda grads: aggregation.median_of_means(grads, 4), optax.adamw
    ),
}
RACE = Race(
    "W3",
    problem,
    STEPS,
    tuple(CONDITIONS),
    {name: Contestant(make, RATE) for name, make in RULES.items()},
    Endpoint("median_of_means(4)", "1 sends -20 g", "default"),
    corrupted.MARGIN,
    baseline=BASELINE,
)
LOOKS = {
    "one worker, new weights": Look(
        functools.partial(problem, race.CLEAN, "test"), RATE, 0
    ),
    "one worker, trained": Look(
        functools.partial(problem, race.CLEAN, "test"), RATE, STEPS // 2
    ),
}
