"""Does Neumann train better than momentum, in fewer steps, and with larger batches?

On the digits: final losses at equal epochs, steps to a target at a constant rate, each
tuned anew at every batch size; what its parts do; and its two-loop form.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax

import optax_heavytail as oht
from experiments.studies import digits, neumann_tables, study, training, tuning
from experiments.studies.digits import PROTOCOL, Setup
from experiments.studies.study import Cell, Study
from experiments.studies.training import Contestant, Curves, Point

IMAGES = 1438  # of the training part
EPOCHS, MORE_EPOCHS = 25, 100
TARGET = 0.15  # nats of validation loss, about 96% of images
# Steps in which the target is to be reached, by batch size, up to all images.
BUDGETS = {16: 1600, 64: 600, 256: 300, IMAGES: 200}
EVALUATIONS = 200  # of a run that looks for the target
INNER_STEPS = (0, 1, 3, 6)  # K, of which K + 1 divides the number of gradients
TWO_LOOP_BATCH, GRADIENTS = 256, 140  # as many steps as others take in 25 epochs

_FOUND = oht.neumann_eval_params
_MOMENTUM = functools.partial(optax.sgd, momentum=0.9)


def _constant(steps: int) -> optax.Schedule:
    del steps
    return optax.constant_schedule(1.0)


def _neumann(**options: Any) -> Contestant:
    return Contestant(functools.partial(oht.neumann, **options), 0.1, read=_FOUND)


def _repulsive(rate: Any, strength: Any) -> optax.GradientTransformation:
    return oht.neumann(rate, repulsive=strength, repulsive_scale=1.0)


def _cubic(rate: Any, strength: Any) -> optax.GradientTransformation:
    return oht.neumann(rate, cubic=strength)


# Middles of grids; one whose best point is on its edge is moved.
CONTESTANTS = {
    "momentum": Contestant(_MOMENTUM, 0.1),
    "rmsprop": Contestant(functools.partial(optax.rmsprop, momentum=0.9), 0.002),
    "adamw": Contestant(optax.adamw, 0.02),
    "lambc": Contestant(oht.lambc, 0.02),
    "neumann": _neumann(),
}


def _variants(batch_size: int) -> dict[str, Contestant]:
    """Neumann without, or with more of, each of its parts."""
    epoch = IMAGES / batch_size
    burn_in, interval = round(5 * epoch), round(10 * epoch)  # of the source
    return {
        "nesterov": Contestant(functools.partial(_MOMENTUM, nesterov=True), 0.1),
        "neumann without regularisers": _neumann(cubic=0.0, repulsive=0.0),
        "neumann, mu up to 0.99": _neumann(momentum=oht.neumann_momentum(0.5, 0.99)),
        "neumann, burn-in and resets": _neumann(
            burn_in_steps=burn_in, reset_interval=interval
        ),
        "neumann read as w": _neumann()._replace(read=None),
        "neumann, repulsive tuned": Contestant(_repulsive, 0.1, 1e-3, read=_FOUND),
        "neumann, repulsive per scalar": _neumann(repulsive_scale="params"),
        "neumann, cubic tuned": Contestant(_cubic, 0.1, 0.01, read=_FOUND),
        "neumann without repulsive": _neumann(repulsive=0.0),
        "neumann without cubic": _neumann(cubic=0.0),
    }


def contestant(name: str, batch_size: int) -> Contestant:
    """The contestant of a name; resets and burn-in depend on the steps of an epoch."""
    return (CONTESTANTS | _variants(batch_size))[name]


def final(
    optimizer: str, batch_size: int, epochs: int, schedule: str
) -> dict[str, Any]:
    """The last loss after a number of epochs."""
    chosen = contestant(optimizer, batch_size)
    if schedule == "constant":
        chosen = chosen._replace(schedule=_constant)
    steps = round(epochs * IMAGES / batch_size)
    problem = digits.problem(Setup(steps, batch_size))
    return tuning.tune_and_run(chosen, problem, PROTOCOL)


def steps_to(losses: np.ndarray, at: np.ndarray, target: float) -> np.ndarray:
    """The first of the steps ``at`` with a loss of at most ``target``, else infinity.

    Args:
      losses: (..., evaluations).
      at: (evaluations,), steps.
      target: of the loss.
    """
    is_reached = losses <= target
    first = at[np.argmax(is_reached, axis=-1)]
    return np.where(is_reached.any(axis=-1), first, np.inf)


def speed(optimizer: str, batch_size: int, target: float, budget: int) -> Any:
    """Steps to the target at a constant rate, which is tuned for few steps."""
    chosen = contestant(optimizer, batch_size)._replace(schedule=_constant)
    problem = digits.problem(Setup(budget, batch_size))
    problem = problem._replace(evaluations=EVALUATIONS)
    at = training.evaluation_steps(problem)
    train = training.runner(chosen, problem)

    def run(points: Sequence[Point], seeds: Sequence[int]) -> Curves:
        curves = train(points, seeds)
        steps = steps_to(curves.losses, at, target)
        # A run that never gets there counts twice the budget, in tuning alone.
        return curves._replace(losses=np.minimum(steps, 2 * budget)[..., None])

    tuned = tuning.tune(chosen, run, PROTOCOL)
    losses = train([tuned.best], PROTOCOL.fresh_seeds).losses[0]
    steps = steps_to(losses, at, target)
    return {
        "rates": study.rounded(tuned.rates),
        "tuning_steps": study.rounded(tuned.losses),
        "rate": study.rounded([tuned.best.rate])[0],
        "is_inside": tuned.is_inside,
        "steps": [None if np.isinf(number) else int(number) for number in steps],
        "last_losses": study.rounded(losses[:, -1]),
    }


def two_loop(inner_steps: int, steps: int, batch_size: int) -> dict[str, Any]:
    """K + 1 gradients of the same images in every step, both rates tuned."""

    def make(outer: Any, inner: Any = 1.0) -> optax.GradientTransformation:
        return oht.neumann_two_loop(inner, inner_steps, outer_learning_rate=outer)

    # Without inner steps there is no inner rate.
    loops = Contestant(make, 0.5, 0.5 if inner_steps else None)
    problem = digits.problem(Setup(steps, batch_size))
    return tuning.tune_and_run(loops, problem, PROTOCOL)


def _cell(measure: Callable[..., dict[str, Any]], **settings: Any) -> Cell:
    return Cell(
        {"question": measure.__name__, **settings},
        functools.partial(measure, **settings),
    )


def _final(
    optimizer: str, batch_size: int, epochs: int = EPOCHS, schedule: str = "cosine"
) -> Cell:
    settings = {"batch_size": batch_size, "epochs": epochs, "schedule": schedule}
    return _cell(final, optimizer=optimizer, **settings)


def _speed(optimizer: str, batch_size: int) -> Cell:
    settings = {"batch_size": batch_size, "target": TARGET}
    return _cell(speed, optimizer=optimizer, budget=BUDGETS[batch_size], **settings)


def _loops(inner_steps: int) -> Cell:
    steps = GRADIENTS // (inner_steps + 1)
    settings = {"steps": steps, "batch_size": TWO_LOOP_BATCH}
    return _cell(two_loop, inner_steps=inner_steps, **settings)


def cells(scale: str, data: Path) -> list[Cell]:
    """The optimizers at every batch size, then Neumann's parts; at each scale."""
    del scale, data
    names = list(_variants(64))
    constant = ("momentum", "adamw", "neumann", "neumann read as w")
    longer = ("momentum", "adamw", "neumann")
    return [
        *(_final(name, batch) for batch in BUDGETS for name in CONTESTANTS),
        *(_speed(name, batch) for batch in BUDGETS for name in CONTESTANTS),
        *(_final(name, 64) for name in names),
        *(_final(name, IMAGES) for name in names[:6]),
        *(_speed(name, batch) for batch in (64, IMAGES) for name in names[:5]),
        *(_final(name, 64, schedule="constant") for name in constant),
        *(_final(name, 64, epochs=MORE_EPOCHS) for name in longer),
        *(_loops(number) for number in INNER_STEPS),
    ]


STUDY = Study(cells, neumann_tables.tables, neumann_tables.pictures)
