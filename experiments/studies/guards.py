"""Do guards cost anything on clean data, and do they keep a training alive?

On the digits: one grid of rates for all, on clean data and for validation images; then
fresh seeds at the best rates in every condition, on test images that have chosen
nothing.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import optax_heavytail as oht
from experiments.common import markdown
from experiments.reporting import figures
from experiments.studies import (
    comparison,
    digits,
    intervals,
    study,
    training,
    tuning,
)
from experiments.studies.digits import Setup
from experiments.studies.study import Cell, Record, Study
from experiments.studies.training import Contestant, Point, Problem, PyTree

STEPS = 500
PARTS = {"train": 1000, "validation": 400, "test": 397}
RATES = tuning.around(0.008, 7, 2.0)
TUNING_SEEDS = tuple(range(60))  # with 12 the rate that is chosen is half chance
TOP = 10.0  # of the figure, in nats
SEEDS = tuple(range(100, 120))
CLEAN_SEEDS = tuple(range(100, 300))  # a cost of 0.005 nats is to show
SHARE = 0.01  # of the steps, at random
FIRST = 20  # no guard knows what is usual in the first steps


class Condition(NamedTuple):
    """What happens to gradients and losses of a training."""

    spike: float = 1.0  # factor on the gradient of some steps, their loss as it is
    loss: float = 1.0  # factor on every loss


CONDITIONS = {
    "clean": Condition(),
    "spikes": Condition(spike=1e4),
    "NaN": Condition(spike=float("nan")),
    "loss x 0.001": Condition(loss=1e-3),
}


def _after(clip: optax.GradientTransformation) -> Callable[..., Any]:
    return lambda rate: optax.chain(clip, optax.adamw(rate))


def _acclip(rate: Any, **kwargs: Any) -> optax.GradientTransformation:
    return oht.acclip(rate, normalize=True, eps=1e-8, **kwargs)


CONTESTANTS: dict[str, Callable[..., Any]] = {
    "adamw": optax.adamw,
    "clip_by_global_norm(1), adamw": _after(optax.clip_by_global_norm(1.0)),
    "clip_by_history, adamw": _after(oht.clip_by_history()),
    "guarded(adamw)": lambda rate: oht.guarded(optax.adamw(rate)),
    "acclip": _acclip,
    "acclip, winsorise=8": functools.partial(_acclip, winsorise=8.0),
}
BASELINE = "adamw"


def problem(condition: Condition, part: str, evaluations: int = 1) -> Problem:
    """The network under a condition, evaluated on a part of the images."""
    setup, parts = Setup(STEPS), _parts()
    images, labels = parts["train"]
    bare = digits.problem(setup)

    def loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
        value = digits.losses(params, data[0][batch["rows"]], batch["labels"]).mean()
        # The factor is on the derivative alone, unless it is NaN.
        extra = (batch["factor"] - 1) * (value - jax.lax.stop_gradient(value))
        return condition.loss * (value + extra), state

    def batches(seed: int) -> dict[str, np.ndarray]:
        rows = digits.batch_indices(setup, len(images), seed)
        rng = np.random.default_rng([seed, 3])
        is_hit = (rng.random(STEPS) < SHARE) & (np.arange(STEPS) >= FIRST)
        factor = np.where(is_hit, condition.spike, 1.0).astype(np.float32)
        return {"rows": rows, "labels": labels[rows], "factor": factor}

    return bare._replace(
        loss=loss, data=(images, parts[part]), batches=batches, evaluations=evaluations
    )


@functools.cache
def _parts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each part, drawn once for all seeds."""
    images, labels = map(np.concatenate, zip(*digits.load(), strict=True))
    rows = np.random.default_rng(0).permutation(len(images))
    stops = np.cumsum(list(PARTS.values()))
    pieces = np.split(rows[: stops[-1]], stops[:-1])
    return {
        part: (images[piece], labels[piece])
        for part, piece in zip(PARTS, pieces, strict=True)
    }


def measure(name: str) -> dict[str, Any]:
    """The best rate on clean data, and what fresh seeds give there."""
    tuned = tune(name)
    contestant, best = Contestant(CONTESTANTS[name], 0.0), [Point(tuned["rate"], None)]
    by_condition = {}
    for condition, what in CONDITIONS.items():
        seeds = CLEAN_SEEDS if condition == "clean" else SEEDS
        curves = training.runner(contestant, problem(what, "test"))(best, seeds)
        by_condition[condition] = {
            "losses": study.rounded(curves.losses[0, :, -1]),
            "accuracies": study.rounded(curves.accuracies[0, :, -1]),
        }
    same = [Point(tune(BASELINE)["rate"], None)]
    curves = training.runner(contestant, problem(CONDITIONS["clean"], "test"))(
        same, CLEAN_SEEDS
    )
    at_same_rate = study.rounded(curves.losses[0, :, -1])
    return tuned | {"conditions": by_condition, "at_baselines_rate": at_same_rate}


@functools.cache
def tune(name: str) -> dict[str, Any]:
    """The losses of all rates on clean data, and the best rate."""
    contestant = Contestant(CONTESTANTS[name], 0.0)
    run = training.runner(contestant, problem(CONDITIONS["clean"], "validation"))
    losses = run([Point(rate, None) for rate in RATES], TUNING_SEEDS).losses
    means = losses[..., -1].mean(axis=1)
    return {
        "rates": study.rounded(RATES),
        "tuning_losses": study.rounded(means),
        "rate": study.rounded([RATES[int(np.argmin(means))]])[0],
    }


def cells(scale: str, data: Path) -> list[Cell]:
    """Every optimizer, tuned and in all conditions; the same at each scale."""
    del scale, data
    return [
        Cell(
            {
                "optimizer": name,
                "steps": STEPS,
                "tuning_seeds": len(TUNING_SEEDS),
                "clean_seeds": len(CLEAN_SEEDS),
            },
            functools.partial(measure, name),
        )
        for name in CONTESTANTS
    ]


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    results = {r["settings"]["optimizer"]: r["result"] for r in records}
    base = _losses(results[BASELINE], "clean")
    rows, rates = [], []
    for name, result in results.items():
        clean = _losses(result, "clean")
        versus = ["", ""]
        if name != BASELINE:
            same = np.array(result["at_baselines_rate"])
            versus = [_difference(clean, base), _difference(same, base)]
        changes = [
            _difference(_losses(result, condition), clean[: len(SEEDS)])
            for condition in CONDITIONS
            if condition != "clean"
        ]
        rows.append([name, f"{clean.mean():.4f}", *versus, *changes])
        accuracies = [
            _accuracy(result["conditions"][condition]) for condition in CONDITIONS
        ]
        rates.append([name, f"{result['rate']:.3g}", *accuracies])
    conditions = list(CONDITIONS)
    header = ["optimizer", "clean", f"clean - {BASELINE}'s", "likewise, at its rate"]
    changed = [f"{condition} - clean" for condition in conditions[1:]]
    return {
        "losses": intervals.table([*header, *changed], rows),
        "accuracies": markdown.table(["optimizer", "rate", *conditions], rates),
        "winsorise": _of_an_option(results["acclip"], results["acclip, winsorise=8"]),
    }


def _accuracy(seen: dict[str, list[float]]) -> str:
    """The mean of the runs that are not lost, beside the number of those that are."""
    losses, accuracies = np.array(seen["losses"]), np.array(seen["accuracies"])
    kept = accuracies[losses < training.LOST]
    lost = comparison.lost(losses)
    mean = f"{kept.mean():.1%}" if len(kept) else ""
    return f"{lost}, others {mean}" if lost and mean else lost or mean


def _of_an_option(without: dict[str, Any], with_it: dict[str, Any]) -> str:
    """What an option changes in each condition, and at the rates of the grid."""
    both = with_it, without
    rows: list[list[Any]] = [
        [condition, _difference(*(_losses(r, condition) for r in both))]
        for condition in CONDITIONS
    ]
    same = _difference(*(np.array(r["at_baselines_rate"]) for r in both))
    rows.append([f"clean, at {BASELINE}'s rate", same])
    pairs = zip(with_it["tuning_losses"], without["tuning_losses"], strict=True)
    for rate, (a, b) in zip(with_it["rates"], pairs, strict=True):
        rows.append([f"clean, validation, rate {rate:.3g}", f"{a - b:+.4f}"])
    return intervals.table(["condition", "with winsorise=8 - without"], rows)


def _losses(result: dict[str, Any], condition: str) -> np.ndarray:
    return np.array(result["conditions"][condition]["losses"])


def _difference(losses: np.ndarray, base: np.ndarray) -> intervals.Difference | str:
    return comparison.difference(losses, base, "+.4f")


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figure of the page: every run's loss, a run that was lost at the top."""
    figure = Figure(figsize=(9.0, 4.4), dpi=150, facecolor="white")
    axes = figure.subplots()
    width = 0.8 / len(records)
    for i, record in enumerate(records):
        for place, condition in enumerate(CONDITIONS):
            losses = np.minimum(_losses(record["result"], condition), TOP)
            middle = place + (i - (len(records) - 1) / 2) * width
            spread = np.linspace(-0.3, 0.3, len(losses)) * width
            axes.plot(
                middle + spread,
                losses,
                linestyle="",
                marker=".",
                markersize=4,
                color=figures.color(i),
                label=None if place else record["settings"]["optimizer"],
            )
    figures.style(axes, "")
    axes.set(yscale="log")
    axes.set_xticks(range(len(CONDITIONS)), list(CONDITIONS))
    axes.set_ylabel("test loss, nats per image", color=figures.INK)
    figures.legend(axes, loc=(1.02, 0.3), markerscale=3)
    return {"guards.png": figures.png(figure)}


STUDY = Study(cells, tables, pictures)
