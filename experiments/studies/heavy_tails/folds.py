"""Ten folds of a table: each is the test part once, and its rate is chosen without it.

Of the rows that are not in the fold a ninth, drawn anew, are for validation. All points
of a grid are run for all folds at once, and validation and test losses are read at the
end: the point of a fold is that of the smallest validation loss, the mean of its seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import digits, training
from experiments.studies.heavy_tails import mlp
from experiments.studies.training import Problem, PyTree

FOLDS, PER_FOLD = 10, 2
SEEDS = tuple(range(FOLDS * PER_FOLD))  # the fold, and which of its seeds
WIDTH = 32
KINDS = ("validation", "test", "refitted", "ratio")


class Table(NamedTuple):
    """Rows of numbers, and what is to be told of each."""

    features: np.ndarray  # (n, d), of mean 0 and deviation 1
    target: np.ndarray  # (n,), over its mean or deviation


class Setup(NamedTuple):
    """How it is learnt."""

    steps: int
    batch: int
    is_poisson: bool = False


def parts(size: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of each part for a seed: test parts of different folds are disjoint."""
    fold = seed // PER_FOLD
    order = np.random.default_rng(0).permutation(size)
    length = size // FOLDS
    test = order[fold * length : (fold + 1) * length]
    rest = np.concatenate([order[: fold * length], order[(fold + 1) * length :]])
    rest = np.random.default_rng([fold, 1]).permutation(rest)
    return {"test": test, "validation": rest[:length], "train": rest[length:]}


def problem(table: Table, setup: Setup, huber: float | None = None) -> Problem:
    """A small network for a table; ``huber`` is where the squared loss gets linear."""
    size = len(table.target)

    def key(seed: int) -> PyTree:
        rows = parts(size, seed)
        own = {name: jnp.asarray(rows[name]) for name in ("test", "validation")}
        return jax.random.key(seed), own

    def batches(seed: int) -> dict[str, np.ndarray]:
        rows = parts(size, seed)["train"]
        places = digits.batch_indices(
            digits.Setup(setup.steps, setup.batch), len(rows), seed
        )
        limit = np.inf if huber is None else huber
        return {
            "rows": rows[places],
            "huber": np.full(setup.steps, limit, np.float32),
        }

    def init(given: PyTree) -> tuple[PyTree, PyTree]:
        return mlp.init(given[0], (table.features.shape[1], WIDTH, 1)), given[1]

    def loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
        x, y = (array[batch["rows"]] for array in data)
        output = mlp.apply(params, x)[:, 0]
        each = losses(setup, output, y, batch["huber"])
        return each.mean(), state

    return Problem(
        setup.steps,
        init,
        loss,
        _evaluation(setup),
        (table.features, table.target),
        batches,
        key,
        evaluations=1,
        side_by_side=True,
    )


def losses(
    setup: Setup, output: jax.Array, y: jax.Array, huber: Any = np.inf
) -> jax.Array:
    """Of each row: Poisson's negative logarithm, half the squared error, or Huber's."""
    if setup.is_poisson:
        return jnp.exp(output) - y * output
    error = jnp.abs(output - y)
    # As two factors, so that an infinite limit makes no NaN.
    near = jnp.minimum(error, huber)
    return near * (error - near / 2)


def _evaluation(setup: Setup) -> Callable[..., Any]:
    """`KINDS`: two losses, that of outputs with one scalar refitted, and its factor."""

    def evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
        x, y = data
        of = {part: mlp.apply(params, x[rows])[:, 0] for part, rows in state.items()}
        truth = {part: y[rows] for part, rows in state.items()}
        found = [losses(setup, of[p], truth[p]).mean() for p in ("validation", "test")]
        # The scalar comes from the validation part: a factor on the prediction.
        seen, told = of["validation"], truth["validation"]
        if setup.is_poisson:
            ratio = told.mean() / jnp.exp(seen).mean()
            refitted = of["test"] + jnp.log(ratio)
        else:
            ratio = jnp.vdot(seen, told) / jnp.vdot(seen, seen)
            refitted = ratio * of["test"]
        found += [losses(setup, refitted, truth["test"]).mean(), ratio]
        return jnp.stack(found), jnp.zeros(())

    return evaluate


def chosen(curves: training.Curves) -> dict[str, Any]:
    """For each fold, what the point of its smallest validation loss has, by kind."""
    last = curves.losses[:, :, -1].reshape(-1, FOLDS, PER_FOLD, len(KINDS))
    validation = last[..., KINDS.index("validation")].mean(axis=2)
    best = validation.argmin(axis=0)
    at_best = last[best, np.arange(FOLDS)]  # (folds, seeds, kinds)
    is_lost = np.any(at_best[..., :1] >= training.LOST, axis=1)  # (folds, 1)
    means = np.where(is_lost, training.LOST, at_best.mean(axis=1))
    return {
        "best": best,
        **{kind: means[:, i] for i, kind in enumerate(KINDS)},
        "mean_validation": validation.mean(axis=1),
    }
