"""Does a bound on the trust ratio help at large batches, and which?"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_heavytail as oht
from experiments.evidence import charts, cifar, comparison, study, training
from experiments.evidence.study import Cell, Record, Study
from experiments.evidence.training import Contestant

BASELINE = "adamw"
BATCH_SIZES = (1000,)
UNBOUNDED = "lamb, no bound"
SHOWN = ("smallest", "median", "largest")  # of the kernels' ratios


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
    numbers = jnp.min(ratios), jnp.median(ratios), jnp.max(ratios)
    return dict(zip(SHOWN, numbers, strict=True))


def _bounded(bound: float | None, rate: float) -> Contestant:
    return Contestant(functools.partial(_lambc, bound=bound), rate, observe=_ratios)


_NESTEROV = functools.partial(optax.sgd, momentum=0.9, nesterov=True)

# Middles of grids; one whose best point is on its edge is moved.
CONTESTANTS = {
    "adamw": Contestant(_adamw, 1e-2),
    "momentum": Contestant(_NESTEROV, 0.4),
    "lambc, bound 1": _bounded(1.0, 0.1),
    UNBOUNDED: _bounded(None, 0.03),
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


def _results(records: Sequence[Record]) -> dict[int, dict[str, dict[str, Any]]]:
    """By batch size and optimizer."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for record in records:
        settings = record["settings"]
        of_size = found.setdefault(settings["batch_size"], {})
        of_size[settings["optimizer"]] = record["result"]
    return found


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    found = _results(records)
    losses = {
        f"batch_{size}": comparison.training_table(results, BASELINE)
        for size, results in found.items()
    }
    return {**losses, "bounds": _bounds(found), "ratios": _ratio_table(found)}


def _bounds(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Points of accuracy that each bound gains over none, seed by seed."""
    bounded = [name for name in CONTESTANTS if name.startswith("lambc")]
    rows = [
        [
            name,
            *(
                comparison.points_above(results[name], results[UNBOUNDED])
                for results in found.values()
            ),
        ]
        for name in sorted(bounded, key=lambda name: float(name.split()[-1]))
    ]
    return study.table(["", *(f"batch {size:,}" for size in found)], rows)


def _ratio_table(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Raw trust ratios over time, the mean over seeds."""
    rows = []
    for size, results in found.items():
        for name, result in results.items():
            seen = result["seen"]
            if not seen:
                continue
            last = len(result["evaluated_at"]) - 1
            for place in (0, last // 2, last):
                numbers = [f"{seen[key][place]:.3g}" for key in SHOWN]
                step = f"{result['evaluated_at'][place]}"
                rows.append([f"{size:,}", name, step, *numbers])
    return study.table(["batch", "optimizer", "step", *SHOWN], rows)


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figures of the page."""
    name = "validation loss, nats per image"
    return {
        f"lambc_{size}.png": charts.trainings(results, name)
        for size, results in _results(records).items()
    }


STUDY = Study(cells, tables, pictures)
