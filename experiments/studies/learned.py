"""Learned optimizers: the figure of 2016 and its limits, and what the MLP is worth."""

import functools
from pathlib import Path
from typing import Any

from experiments.configs import learn_lstm
from experiments.learning import functions, loop, lstm, rivals
from experiments.studies import learned_gate, learned_price, learned_tables, study
from experiments.studies.study import Cell, Study

SEEDS = (0, 1, 2, 3, 4)
HORIZONS = (100, 200)
# What an LSTM is trained on: what it is tested on, and what of the config is changed.
LSTMS: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "quadratics": (("quadratics", "digits_sigmoid"), {"functions": 200}),
    "digits_sigmoid": (
        ("digits_sigmoid", "digits_relu"),
        {"functions": 60, "batch": 1, "test_functions": 2},
    ),
}
TESTED = ("quadratics", "digits_sigmoid", "digits_relu")
NUMBER = {"quadratics": 128, "digits_sigmoid": 2, "digits_relu": 2}
RATES = 25
_FRESH = 1000  # no training has the functions of such a seed


def train(trained: str, seed: int) -> dict[str, Any]:
    """Trains an LSTM; its mean losses on fresh functions, by what they are."""
    tested, changes = LSTMS[trained]
    config = learn_lstm.get_config()
    config.family = trained
    config.update(changes)
    training = loop.make(config, seed)
    state = loop.run(training)
    tx = lstm.as_optimizer(training.family, state.best)
    curves = {
        name: study.rounded(
            rivals.fresh_curve(
                functions.FAMILIES[name](),
                tx,
                max(HORIZONS),
                NUMBER[name],
                _FRESH + seed,
            )
        )
        for name in tested
    }
    return {"curves": curves}


def tune(tested: str, name: str) -> dict[str, Any]:
    """A rival at its best rate for each horizon, on the functions of each seed."""
    rival = functions.RIVALS[name]
    tuned = rivals.tune(
        functions.FAMILIES[tested](),
        rival,
        rival.middle(tested),
        HORIZONS,
        NUMBER[tested],
        RATES,
        [_FRESH + seed for seed in SEEDS],
    )
    return {
        str(h): {
            "rate": study.rounded([found.rate])[0],
            "is_inside": found.is_inside,
            "curves": [study.rounded(curve) for curve in found.curves],
        }
        for h, found in tuned.items()
    }


def stability(name: str) -> dict[str, Any]:
    """How often it diverges at its best rate for a network of the gate."""
    rate = learned_gate.measure("digits, wide, GELU", name, "x1")["rate"]
    return {"rate": rate} | learned_gate.diverged(name, rate)


def cells(scale: str, data: Path) -> list[Cell]:
    """All parts; the same at each scale."""
    del scale, data
    who = {name: learned_gate.settings(name) for name in learned_gate.CONTESTANTS}
    found = [
        Cell(
            {"part": "rivals", "tested": tested, "optimizer": name, "rates": RATES},
            functools.partial(tune, tested, name),
        )
        for tested in TESTED
        for name in functions.RIVALS
    ]
    found += [
        Cell(
            {"part": "gate", "task": task, **who[name], "steps": steps},
            functools.partial(learned_gate.measure, task, name, length),
        )
        for task in learned_gate.TASKS
        for name in learned_gate.CONTESTANTS
        for length, steps in learned_gate.STEPS.items()
    ]
    found += [
        Cell(
            {"part": "stability", **who[name], "runs": learned_gate.RUNS},
            functools.partial(stability, name),
        )
        for name in learned_gate.CONTESTANTS
    ]
    found += [
        Cell(
            {"part": "price", "model": model, "rounds": learned_price.ROUNDS},
            functools.partial(learned_price.measure, model),
        )
        for model in learned_price.SIZES
    ]
    found += [
        Cell(
            {"part": "lstm", "trained": trained, "seed": seed, **_budget(trained)},
            functools.partial(train, trained, seed),
        )
        for trained in LSTMS
        for seed in SEEDS
    ]
    return found


def _budget(trained: str) -> dict[str, int]:
    config = learn_lstm.get_config()
    config.update(LSTMS[trained][1])
    return {"functions": config.functions, "batch": config.batch}


STUDY = Study(cells, learned_tables.tables, learned_tables.pictures)
