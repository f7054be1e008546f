"""Does a bound on the trust ratio help at large batches, and which?"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_heavytail as oht
from experiments.evidence import cifar, training
from experiments.evidence.study import Cell, Record, Study
from experiments.evidence.training import Contestant

BASELINE = "adamw"
BATCH_SIZES = (1000, 3000)


def _momentum(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, 0.9, nesterov=True)


def _adamw(rate: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=1e-2, mask=oht.decay_mask)


def _lambc(rate: Any, bound: float | None) -> optax.GradientTransformation:
    return oht.lambc(
        rate,
        weight_decay=1e-2,
        mask=oht.decay_mask,
        trust_ratio_bounds=(0.0, bound),
    )


def _lars(rate: Any) -> optax.GradientTransformation:
    return optax.lars(
        rate, weight_decay=1e-4, weight_decay_mask=oht.decay_mask, momentum=0.9
    )


def _ratios(state: Any) -> dict[str, jax.Array]:
    """Of the kernels of convolutions and of the head, before any bound."""
    found = oht.get_trust_ratio(state, raw=True)
    kernels = [
        ratio
        for path, ratio in jax.tree_util.tree_leaves_with_path(found)
        if "kernel" in jax.tree_util.keystr(path)
    ]
    ratios = jnp.stack([jnp.mean(ratio) for ratio in kernels])
    return {
        "smallest": jnp.min(ratios),
        "median": jnp.median(ratios),
        "largest": jnp.max(ratios),
    }


def _bounded(bound: float | None, rate: float) -> Contestant:
    return Contestant(functools.partial(_lambc, bound=bound), rate, observe=_ratios)


# Middles of grids; one whose best point is on its edge is moved.
CONTESTANTS = {
    "adamw": Contestant(_adamw, 1e-2),
    "momentum": Contestant(_momentum, 0.4),
    "lambc, bound 1": _bounded(1.0, 0.1),
    "lamb, no bound": _bounded(None, 0.03),
    "lambc, bound 3": _bounded(3.0, 0.05),
    "lambc, bound 10": _bounded(10.0, 0.03),
    "lars": Contestant(_lars, 30.0),
    "lambc, bound 5": _bounded(5.0, 0.03),
}


def measure(name: str, batch_size: int, data: Path) -> dict[str, Any]:
    """One optimizer at one batch size, tuned and with fresh seeds."""
    return training.tune_and_run(
        CONTESTANTS[name], cifar.problem(data, batch_size), cifar.PROTOCOL
    )


def cells(scale: str, data: Path) -> list[Cell]:
    """Every optimizer at every batch size; the same at each scale."""
    del scale
    return [
        Cell(
            {"batch_size": batch_size, "optimizer": name, "epochs": cifar.EPOCHS},
            functools.partial(measure, name, batch_size, data),
        )
        for batch_size in BATCH_SIZES
        for name in CONTESTANTS
    ]


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    raise NotImplementedError


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figures of the page."""
    raise NotImplementedError


STUDY = Study(cells, tables, pictures)
