"""Does a bound on the trust ratio help at large batches, and which?"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from experiments.common import markdown
from experiments.studies import charts, cifar, comparison, intervals, training, tuning
from experiments.studies.study import Cell, Record, Study
from experiments.studies.training import Contestant

BASELINE = "adamw"
BATCH_SIZES = (1000, 3000)
BOUNDED = "lambc, bound 1"
UNBOUNDED = "lamb, no bound"
ATTEMPTED_BATCH_SIZE = 1000
SHOWN = ("smallest", "median", "largest")  # of the kernels' ratios


def _adamw(rate: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=1e-2, mask=oht.decay_mask)


def _lambc(
    rate: Any, bound: float | None, **others: Any
) -> optax.GradientTransformation:
    return oht.lambc(
        rate,
        weight_decay=1e-2,
        mask=oht.decay_mask,
        trust_ratio_bounds=(0.0, bound),
        **others,
    )


class RestartedState(NamedTuple):
    """State of `restarted`."""

    count: jax.Array  # () int32, of steps
    inner: Any


def restarted(
    inner: optax.GradientTransformation, every: int
) -> optax.GradientTransformation:
    """``inner`` with a new state after every so many steps."""

    def init(params: Any) -> RestartedState:
        return RestartedState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None
    ) -> tuple[Any, RestartedState]:
        is_first = state.count % every == 0
        old = optax.tree.where(is_first, inner.init(params), state.inner)
        updates, new = inner.update(updates, old, params)
        return updates, RestartedState(state.count + 1, new)

    return optax.GradientTransformation(init, update)


def _lambc_by_epoch(rate: Any, bound: float | None) -> optax.GradientTransformation:
    """As the authors' script has it, but for the rate, which goes on."""
    steps = cifar.TRAIN_IMAGES // ATTEMPTED_BATCH_SIZE
    return optax.chain(
        restarted(_lambc(1.0, bound), steps),
        optax.scale_by_learning_rate(rate, flip_sign=False),
    )


def _lars(rate: Any) -> optax.GradientTransformation:
    return optax.lars(
        rate, weight_decay=1e-4, weight_decay_mask=oht.decay_mask, momentum=0.9
    )


def _ratios(state: Any) -> dict[str, jax.Array]:
    """The trust ratios of the kernels of convolutions and of the head, unbounded."""
    by_leaf = oht.get_trust_ratio(state, raw=True)
    kernels = [
        ratio
        for path, ratio in jax.tree_util.tree_leaves_with_path(by_leaf)
        if "kernel" in jax.tree_util.keystr(path)
    ]
    ratios = jnp.stack([jnp.mean(ratio) for ratio in kernels])
    numbers = jnp.min(ratios), jnp.median(ratios), jnp.max(ratios)
    return dict(zip(SHOWN, numbers, strict=True))


def _bounded(
    bound: float | None, rate: float, make: Callable[..., Any] = _lambc
) -> Contestant:
    return Contestant(functools.partial(make, bound=bound), rate, observe=_ratios)


_NESTEROV = functools.partial(optax.sgd, momentum=0.9, nesterov=True)

# Middles of grids; one whose best point is on its edge is moved.
CONTESTANTS = {
    "adamw": Contestant(_adamw, 1e-2),
    "momentum": Contestant(_NESTEROV, 0.4),
    BOUNDED: _bounded(1.0, 0.1),
    UNBOUNDED: _bounded(None, 0.1),
    "lambc, bound 3": _bounded(3.0, 0.05),
    "lambc, bound 10": _bounded(10.0, 0.03),
    "lars": Contestant(_lars, 30.0),
    "lambc, bound 5": _bounded(5.0, 0.03),
}


def _pair(
    make: Callable[..., Any], schedule: Any = training.warm_cosine
) -> dict[str, Contestant]:
    """With and without a bound, otherwise alike."""
    contestants = {
        BOUNDED: _bounded(1.0, 0.1, make),
        UNBOUNDED: _bounded(None, 0.1, make),
    }
    return {k: v._replace(schedule=schedule) for k, v in contestants.items()}


def _constant(steps: int) -> optax.Schedule:
    """From the first step on, without a warm-up."""
    del steps
    return optax.constant_schedule(1.0)


# What might set us apart from the source.
ATTEMPTS = {
    "a constant rate": _pair(_lambc, _constant),
    "moments restart every epoch": _pair(_lambc_by_epoch),
    "both of these": _pair(_lambc_by_epoch, _constant),
    "ratios of kernels alone": _pair(
        functools.partial(_lambc, trust_ratio_mask=oht.decay_mask)
    ),
    "bias correction": _pair(functools.partial(_lambc, bias_correction=True)),
}


def measure(contestant: Contestant, batch_size: int, data: Path) -> dict[str, Any]:
    """One optimizer at one batch size, tuned and with fresh seeds."""
    problem = cifar.problem(data, batch_size)
    return tuning.tune_and_run(contestant, problem, cifar.PROTOCOL)


def cells(scale: str, data: Path) -> list[Cell]:
    """Every optimizer at every batch size, and the attempts; the same at each scale."""
    del scale

    def cell(contestant: Contestant, batch_size: int, **settings: str) -> Cell:
        return Cell(
            {"batch_size": batch_size, "epochs": cifar.EPOCHS, **settings},
            functools.partial(measure, contestant, batch_size, data),
        )

    main = [
        cell(contestant, batch_size, optimizer=name)
        for batch_size in BATCH_SIZES
        for name, contestant in CONTESTANTS.items()
    ]
    return main + [
        cell(contestant, ATTEMPTED_BATCH_SIZE, optimizer=name, attempt=attempt)
        for attempt, pair in ATTEMPTS.items()
        for name, contestant in pair.items()
    ]


Results = dict[Any, dict[str, dict[str, Any]]]  # by batch size or attempt, optimizer


def _results(records: Sequence[Record], key: str) -> Results:
    grouped: Results = {}
    for record in records:
        settings = record["settings"]
        results = grouped.setdefault(settings[key], {})
        results[settings["optimizer"]] = record["result"]
    return grouped


def _by_size(records: Sequence[Record]) -> Results:
    planned = [record for record in records if "attempt" not in record["settings"]]
    return _results(planned, "batch_size")


def _by_attempt(records: Sequence[Record]) -> Results:
    """With the comparison that they are attempts at first."""
    attempts = [record for record in records if "attempt" in record["settings"]]
    first = {"as above": _by_size(records)[ATTEMPTED_BATCH_SIZE]}
    return first | _results(attempts, "attempt")


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    by_size = _by_size(records)
    losses = {
        f"batch_{size}": comparison.training_table(results, BASELINE)
        for size, results in by_size.items()
    }
    return {
        **losses,
        "bounds": _bounds(by_size),
        "ratios": _ratio_table(by_size),
        "attempts": _attempts(_by_attempt(records)),
    }


def _bounds(by_size: Results) -> str:
    """Points of accuracy that each bound gains over none, seed by seed."""
    bounded = [name for name in CONTESTANTS if name.startswith("lambc")]
    rows = [
        [
            name,
            *(
                comparison.points_above(results[name], results[UNBOUNDED])
                for results in by_size.values()
            ),
        ]
        for name in sorted(bounded, key=lambda name: float(name.split()[-1]))
    ]
    return intervals.table(["", *(f"batch {size:,}" for size in by_size)], rows)


def _attempts(by_size: Results) -> str:
    """What a bound of 1 gains over none when something else is changed."""
    rows = []
    for name, results in by_size.items():
        pair = results[UNBOUNDED], results[BOUNDED]
        losses = [comparison.spread(np.array(result["losses"])) for result in pair]
        accuracies = [f"{np.mean(result['accuracies']):.1%}" for result in pair]
        gained = comparison.points_above(results[BOUNDED], results[UNBOUNDED])
        shown = zip(losses, accuracies, strict=True)
        rows.append([name, *(", ".join(both) for both in shown), gained])
    return intervals.table(["changed", UNBOUNDED, BOUNDED, "points gained"], rows)


def _ratio_table(by_size: Results) -> str:
    """Raw trust ratios over time, the mean over seeds."""
    rows = []
    for size, results in by_size.items():
        for name, result in results.items():
            seen = result["seen"]
            if not seen:
                continue
            last = len(result["evaluated_at"]) - 1
            for place in (0, last // 2, last):
                numbers = [f"{seen[key][place]:.3g}" for key in SHOWN]
                step = f"{result['evaluated_at'][place]}"
                rows.append([f"{size:,}", name, step, *numbers])
    return markdown.table(["batch", "optimizer", "step", *SHOWN], rows)


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figures of the page."""
    name = "validation loss, nats per image"
    return {
        f"lambc_{size}.png": charts.trainings(results, name)
        for size, results in _by_size(records).items()
    }


STUDY = Study(cells, tables, pictures)
