"""W10: a ResNet on CIFAR-10 at large batches, for the claims of LAMBC and of Neumann.

Each batch size is a race of its own, of the same epochs: nothing is corrupted, and a
larger batch has fewer steps. The images are not part of the project.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import optax_heavytail as oht
from experiments.models import resnet
from experiments.reporting import figures
from experiments.studies import cifar, comparison, intervals
from experiments.studies.heavy_tails import methods, noise, race, shown
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.study import Cell, Record
from experiments.studies.training import LOST, Contestant, Problem, PyTree
from experiments.studies.tuning import Protocol

Results = Mapping[int, Mapping[str, Any]]  # by images of a step and optimizer

NAME = "W10"
EPOCHS = 8
PARTS = {"train": 12_288, "validation": 4_000}  # of the source's training part
TEST = 4_000  # of its test part
STEM = "imagenet"
MARGIN = 0.02  # nats
PROTOCOL = Protocol(5, 2.0, tuning_seeds=(0,), fresh_seeds=(100, 101, 102, 103, 104))
MOMENTUM = "clip_by_global_norm(1), nesterov"
LAMB, LAMBC, NEUMANN = "lamb", "lambc", "neumann"
# Images of a step -> the middle of the rates, by optimizer.
RATES = {
    64: {methods.BASELINE: 0.016, MOMENTUM: 0.1, NEUMANN: 0.1},
    512: {methods.BASELINE: 0.032, MOMENTUM: 0.4, NEUMANN: 0.2},
    1000: {methods.BASELINE: 0.064, MOMENTUM: 0.8, LAMB: 0.1, LAMBC: 0.1},
    3000: {methods.BASELINE: 0.064, MOMENTUM: 0.8, LAMB: 0.1, LAMBC: 0.1},
    4096: {methods.BASELINE: 0.064, MOMENTUM: 0.8, NEUMANN: 0.2},
}
LOOKED_AT = (64, 4096)
ORDER = (4096, 3000, 1000, 64, 512)  # of the measurements


def _nesterov(rate: Any) -> optax.GradientTransformation:
    momentum = optax.sgd(rate, momentum=0.9, nesterov=True)
    return optax.chain(optax.clip_by_global_norm(1.0), momentum)


_MADE = {
    MOMENTUM: Contestant(_nesterov, 1.0),
    LAMB: Contestant(functools.partial(optax.lamb, weight_decay=methods.DECAY), 1.0),
    LAMBC: Contestant(functools.partial(oht.lambc, weight_decay=methods.DECAY), 1.0),
    NEUMANN: Contestant(oht.neumann, 1.0, read=oht.neumann_eval_params),
}


def contestants(batch_size: int) -> dict[str, Contestant]:
    """The optimizers of a batch size."""
    rates = dict(RATES[batch_size])
    found = methods.contestants(rates.pop(methods.BASELINE), [methods.BASELINE])
    return found | {name: _MADE[name]._replace(rate=r) for name, r in rates.items()}


@functools.cache
def images(folder: Path) -> dict[str, cifar.Images]:
    """Images and labels of each part, drawn once for all seeds.

    Raises:
      UserError: the archive is missing, or another one.
    """
    source = cifar.read(folder)
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(source.train.labels))
    pieces = np.split(rows, np.cumsum(list(PARTS.values())))
    found = {
        part: cifar.chosen(source.train, piece)
        for part, piece in zip(PARTS, pieces[: len(PARTS)], strict=True)
    }
    test = rng.permutation(len(source.validation.labels))[:TEST]
    return found | {"test": cifar.chosen(source.validation, test)}


def problem(folder: Path, batch_size: int, condition: str, part: str) -> Problem:
    """The network, evaluated at the end, with new statistics of its normalisation.

    Running ones would be averages over as few as 24 steps, the first values among them.
    """
    del condition  # nothing is corrupted
    functions, parts = cifar.network(STEM), images(folder)
    made = cifar.of_parts(functions, (parts["train"], parts[part]), batch_size, EPOCHS)

    def evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
        # Averages that start at zero have one part of the statistics of all images.
        zeros = jax.tree.map(jax.numpy.zeros_like, state)
        _, after = functions["loss_sum"](params, zeros, data[0], jax.random.key(0))
        anew = jax.tree.map(lambda x: x / (1 - resnet.NORM_MOMENTUM), after)
        return made.evaluate(params, anew, data)

    def init(given: PyTree) -> tuple[PyTree, PyTree]:
        return given

    return made._replace(init=init, key=_new, evaluate=evaluate, evaluations=1)


def _new(seed: int) -> tuple[PyTree, PyTree]:
    """A network and its statistics, as every race has it for a seed."""
    return _init()(jax.random.key(seed))


@functools.cache
def _init() -> Callable[..., tuple[PyTree, PyTree]]:
    """Compiled once for all races, as that takes longer than some of their runs."""
    return jax.jit(cifar.network(STEM)["init"])


def of_size(batch_size: int, folder: Path) -> Race:
    """The race of a batch size; its images are read when it is measured."""
    endpoint = LAMBC if LAMBC in RATES[batch_size] else NEUMANN
    return Race(
        f"{NAME} batch {batch_size}",
        functools.partial(problem, folder, batch_size),
        EPOCHS * PARTS["train"] // batch_size,
        (race.CLEAN,),
        contestants(batch_size),
        Endpoint(endpoint, race.CLEAN, "tuned"),
        MARGIN,
        PROTOCOL,
    )


def _looks(folder: Path) -> dict[str, Look]:
    return {
        f"batch {size}, trained": Look(
            functools.partial(problem, folder, size, race.CLEAN, "test"),
            RATES[size][methods.BASELINE],
            EPOCHS * PARTS["train"] // size // 2,
        )
        for size in LOOKED_AT
    }


def cells(folder: Path) -> list[Cell]:
    """Every batch size, those first that the claims are about."""
    races = [of_size(size, folder) for size in ORDER]
    looks = noise.cells(NAME, _looks(folder))
    return looks + [cell for made in races for cell in race.cells(made)]


def results(records: Sequence[Record]) -> Results:
    """What was measured."""
    found = {size: shown.results(records, of_size(size, Path())) for size in RATES}
    return {size: conditions[race.CLEAN] for size, conditions in found.items()}


def tables(records: Sequence[Record]) -> dict[str, str]:
    """What the sources claim, on these images."""
    found = results(records)
    return {"w10_claims": _claims(found), "w10_sizes": _sizes(found)}


def _claims(found: Results) -> str:
    """A method and what it is to be better than, in nats and in points of accuracy."""
    rows = []
    for size, of_size in found.items():
        pair = (LAMBC, LAMB) if LAMBC in of_size else (NEUMANN, MOMENTUM)
        own, other = (of_size[name]["tuned"] for name in pair)
        losses = [np.array(each["losses"]) for each in (own, other)]
        apart = comparison.difference(losses[0], losses[1], "+.4f")
        gained = comparison.points_above(own, other)
        rows.append([f"{size:,}", f"{pair[0]} against {pair[1]}", apart, gained])
    headings = ["images of a step", "what", "difference of the loss", "points gained"]
    return intervals.table(headings, rows)


def _sizes(found: Results) -> str:
    """What more images of a step cost, as each of them is seen as often."""
    first, *others = [size for size, of_size in found.items() if NEUMANN in of_size]
    rows = []
    for name in found[first]:
        losses = {
            size: np.array(found[size][name]["tuned"]["losses"])
            for size in (first, *others)
        }
        costs = [
            comparison.difference(losses[size], losses[first], "+.4f")
            for size in others
        ]
        rows.append([name, *costs])
    headings = [f"{size:,} minus {first:,} images of a step" for size in others]
    return intervals.table(["optimizer", *headings], rows)


def picture(records: Sequence[Record]) -> bytes:
    """Every run's loss by the images of a step, and the means as dashes."""
    figure = Figure(figsize=(9.0, 4.4), dpi=110, facecolor="white")
    axes, found = figure.subplots(), results(records)
    for i, name in enumerate((methods.BASELINE, MOMENTUM, LAMB, LAMBC, NEUMANN)):
        losses = {
            place: np.array(of_size[name]["tuned"]["losses"])
            for place, of_size in enumerate(found.values())
            if name in of_size
        }
        color, aside = figures.color(i), 0.12 * (i - 2)
        kept = {place: values[values < LOST] for place, values in losses.items()}
        for place, values in kept.items():
            at = np.full(len(values), place + aside)
            axes.plot(at, values, ".", ms=6, alpha=0.7, color=color)
        means = [np.mean(values) for values in kept.values()]
        at = [place + aside for place in kept]
        axes.plot(at, means, "_", ms=14, color=color)
        axes.plot([], [], ".", ms=9, color=color, label=name)
    figures.style(axes, "images of a step")
    axes.set_xticks(range(len(found)), [f"{size:,}" for size in found])
    axes.set_ylabel("test loss, nats", color=figures.INK)
    figures.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figures.png(figure)
