"""Do restarts, snapshot ensembles, agreement of signs and growing batches help?

On the digits, with right labels and with wrong ones; every method tuned anew.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from experiments.studies import digits, survey_tables, training, tuning
from experiments.studies.digits import PROTOCOL, Setup
from experiments.studies.study import Cell, Study
from experiments.studies.training import Contestant, Problem, PyTree

STEPS, BATCH_SIZE, LARGEST_BATCH = 600, 64, 512
SHORT = 280  # steps to the end of the third growing cycle
MORE_IMAGES = 256  # a step, where signs are less noisy
EVALUATIONS = 60  # one at the end of every cycle
SETUPS = {
    "right": Setup(STEPS, BATCH_SIZE),
    "wrong": Setup(STEPS, BATCH_SIZE, label_noise=0.4),
}
# Number of cycles, length of the first, growth: all end with the last step.
CYCLES = {"5 cycles": (5, 120, 1), "4 growing cycles": (4, 40, 2)}


class Method(NamedTuple):
    """What is trained how."""

    contestant: Contestant
    problem: Callable[[Setup], Problem]


def _plain(setup: Setup) -> Problem:
    return digits.problem(setup)._replace(evaluations=EVALUATIONS)


def short(setup: Setup) -> Problem:
    """As long as three of the growing cycles."""
    return _plain(setup._replace(steps=SHORT))


def larger(setup: Setup) -> Problem:
    """As many steps of more images."""
    return _plain(setup._replace(batch_size=MORE_IMAGES))


def ensemble(setup: Setup) -> Problem:
    """Evaluates the mean prediction of snapshots: what is read is their state."""

    def evaluate(state: Any, model_state: PyTree, data: PyTree) -> Any:
        del model_state
        images, labels = data[1]

        def predict(params: Any) -> jax.Array:
            return jax.nn.softmax(digits.logits(params, images))

        shown = oht.snapshot_predictions(state, predict)
        rows = jnp.arange(len(labels))
        chosen = jnp.maximum(shown[rows, labels], jnp.finfo(shown.dtype).tiny)
        is_right = jnp.argmax(shown, axis=-1) == labels
        return -jnp.mean(jnp.log(chosen)), jnp.mean(is_right)

    return _plain(setup)._replace(evaluate=evaluate)


def growing(batch_plan: oht.BatchSizePlan, setup: Setup) -> Problem:
    """The same images in the same order, in batches as the plan says."""
    sizes = batch_plan.batch_size
    ends = np.cumsum(sizes)
    width = np.arange(sizes.max())
    is_real = width < sizes[:, None]
    places = np.where(is_real, (ends - sizes)[:, None] + width, 0)
    in_a_row = setup._replace(steps=int(ends[-1]), batch_size=1)

    def batches(seed: int) -> dict[str, np.ndarray]:
        images = digits.problem(in_a_row).batches(seed)
        chosen = {name: rows[places, 0] for name, rows in images.items()}
        return chosen | {"weights": (is_real / sizes[:, None]).astype(np.float32)}

    def loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
        losses = digits.losses(params, data[0][batch["rows"]], batch["labels"])
        return jnp.sum(batch["weights"] * losses), state

    return _plain(setup)._replace(steps=len(sizes), batches=batches, loss=loss)


def _stairs(steps: int) -> optax.Schedule:
    """Warm-up to 1, then 1/4 from the middle and 1/8 in the last quarter."""
    warm_up = optax.linear_schedule(0.0, 1.0, steps // 10)
    drops = {steps // 2: 0.25, 3 * steps // 4: 0.5}
    stairs = optax.piecewise_constant_schedule(1.0, drops)
    return lambda count: warm_up(count) * stairs(count)


def batch_plan(schedule: Callable[[int], optax.Schedule]) -> oht.BatchSizePlan:
    """The schedule's decay as growth of the batch."""
    factor = schedule(STEPS)
    return oht.grow_batch(
        factor, STEPS, BATCH_SIZE, LARGEST_BATCH, multiple_of=BATCH_SIZE
    )


BASES = {
    "momentum": Contestant(functools.partial(optax.sgd, momentum=0.9), 0.1),
    "adamw": Contestant(optax.adamw, 0.02),
}
SCHEDULES = {"cosine": training.warm_cosine, "stairs": _stairs}


def with_cycles(base: Contestant, cycles: tuple[int, int, int]) -> dict[str, Method]:
    """The last model of warm restarts, and the ensemble of all ends of cycles."""
    number, first, growth = cycles

    def make(rate: Any) -> optax.GradientTransformation:
        return oht.snapshot_ensemble(base.make(rate), number, t_0=first, t_mult=growth)

    restarted = base._replace(
        schedule=lambda steps: oht.warm_restarts(1.0, first, growth)
    )
    kept = restarted._replace(make=make, read=lambda state, params: state)
    return {"last": Method(restarted, _plain), "ensemble": Method(kept, ensemble)}


def _with_growth(
    base: Contestant, schedule: Callable[[int], optax.Schedule]
) -> dict[str, Method]:
    """A rate that decays, and the batch that grows in its place."""
    made = batch_plan(schedule)
    grown = base._replace(schedule=lambda steps: made.schedule())
    return {
        "decaying rate": Method(base._replace(schedule=schedule), _plain),
        "growing batch": Method(grown, functools.partial(growing, made)),
    }


def _with_signs() -> dict[str, Method]:
    """PowerSign and AddSign, with each internal decay."""
    decays = {
        "": None,
        ", linear decay": optax.linear_schedule(1.0, 0.0, STEPS),
        ", cosine decay": optax.cosine_decay_schedule(1.0, STEPS),
    }
    return {
        f"{name}{ending}": Method(
            Contestant(functools.partial(made, sign_decay=decay), 0.2), _plain
        )
        for name, made in (("powersign", oht.powersign), ("addsign", oht.addsign))
        for ending, decay in decays.items()
    }


def methods() -> dict[tuple[str, str, str], Method]:
    """All methods, by optimizer, schedule and what is done with it."""
    known = {}
    for name, base in BASES.items():
        for schedule, made in SCHEDULES.items():
            for use, method in _with_growth(base, made).items():
                known[name, schedule, use] = method
        known[name, "cosine", "short"] = Method(base, short)
        for schedule, cycles in CYCLES.items():
            for use, method in with_cycles(base, cycles).items():
                known[name, schedule, use] = method
    signs = _with_signs()
    for name, method in signs.items():
        known[name, "cosine", "decaying rate"] = method
    for name in ("momentum", "adamw", "powersign", "addsign"):
        method = known[name, "cosine", "decaying rate"]
        known[name, "cosine", "larger batch"] = method._replace(problem=larger)
    return known


def measure(setup: Setup, method: Method) -> dict[str, Any]:
    """Tuned, and fresh seeds."""
    problem = method.problem(setup)
    tuned = tuning.tune_and_run(method.contestant, problem, PROTOCOL)
    return tuned | {"updates": problem.steps}


def cells(scale: str, data: Path) -> list[Cell]:
    """Every method with right and with wrong labels; the same at each scale."""
    del scale, data
    return [
        Cell(
            {
                "condition": condition,
                "optimizer": name,
                "schedule": schedule,
                "use": use,
                "steps": STEPS,
            },
            functools.partial(measure, setup, method),
        )
        for condition, setup in SETUPS.items()
        for (name, schedule, use), method in methods().items()
    ]


STUDY = Study(cells, survey_tables.tables, survey_tables.pictures)
