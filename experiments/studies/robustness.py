"""What do methods stand: rates that are off, spikes, wrong labels, narrow states?

On the digits, each optimizer tuned anew in each condition.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import optax_heavytail as oht
from experiments.common import markdown
from experiments.reporting import figures
from experiments.studies import charts, comparison, digits, study, training, tuning
from experiments.studies.digits import PROTOCOL, Setup
from experiments.studies.study import Cell, Record, Study
from experiments.studies.training import Contestant

STEPS = 500
SETUPS = {
    "clean": Setup(STEPS),
    "spikes": Setup(STEPS, spike_every=100),
    "label noise": Setup(STEPS, label_noise=0.4),
    "bfloat16 state": Setup(STEPS),
}
BASELINE = "adamw"
WIDTHS = (1.05, 1.5)  # of the best loss


def _momentum(rate: Any, dtype: Any = None) -> optax.GradientTransformation:
    return optax.sgd(rate, 0.9, accumulator_dtype=dtype)


def _clipped_momentum(
    rate: Any, threshold: Any, dtype: Any = None
) -> optax.GradientTransformation:
    """The usual order: the gradient is clipped, and then enters the momentum."""
    return optax.chain(oht.clip_by_norm(threshold), _momentum(rate, dtype))


def _acclip(rate: Any, dtype: Any = None) -> optax.GradientTransformation:
    return oht.acclip(
        rate, normalize=True, eps=1e-8, mu_dtype=dtype, threshold_dtype=dtype
    )


def _skipping(rate: Any) -> optax.GradientTransformation:
    return oht.skip_if_unsafe(optax.adamw(rate), window=32)


# Middles of grids; one whose best point is on its edge is moved.
CONTESTANTS = {
    "momentum": Contestant(_momentum, 0.1),
    "momentum after clip": Contestant(_clipped_momentum, 0.1, 1.0),
    "adamw": Contestant(optax.adamw, 0.02),
    "skip_if_unsafe(adamw)": Contestant(_skipping, 0.02),
    "gclip": Contestant(oht.gclip, 2.0, 0.3),
    "cclip": Contestant(oht.cclip, 2.0, 0.01),
    "acclip": Contestant(_acclip, 0.02),
    "lambc": Contestant(oht.lambc, 0.02),
    "neumann": Contestant(oht.neumann, 0.1, read=oht.neumann_eval_params),
}
# Between clean data's rates and these is a dip, far above the loss of a start.
SPIKED_MOMENTUM_RATE = 1e-5
NARROW: dict[str, Callable[..., Any]] = {
    "momentum": functools.partial(_momentum, dtype=jnp.bfloat16),
    "momentum after clip": functools.partial(_clipped_momentum, dtype=jnp.bfloat16),
    "adamw": functools.partial(optax.adamw, mu_dtype=jnp.bfloat16),
    "gclip": functools.partial(oht.gclip, mu_dtype=jnp.bfloat16),
    "cclip": functools.partial(oht.cclip, mu_dtype=jnp.bfloat16),
    "acclip": functools.partial(_acclip, dtype=jnp.bfloat16),
}


def measure(condition: str, name: str) -> dict[str, Any]:
    """One optimizer in one condition; on clean data also a fine line of rates."""
    contestant, problem = CONTESTANTS[name], digits.problem(SETUPS[condition])
    if (condition, name) == ("spikes", "momentum"):
        contestant = contestant._replace(rate=SPIKED_MOMENTUM_RATE)
    if condition == "bfloat16 state":
        contestant = contestant._replace(make=NARROW[name])
    result = tuning.tune_and_run(contestant, problem, PROTOCOL)
    if condition != "clean":
        return result
    rates = tuning.around(result["rate"], PROTOCOL.points, PROTOCOL.rate_factor)
    line = [training.Point(rate, result["threshold"]) for rate in rates]
    losses = training.runner(contestant, problem)(line, PROTOCOL.tuning_seeds).losses
    return result | {
        "line_rates": study.rounded(rates),
        "line_losses": study.rounded(losses[..., -1].mean(axis=1)),
    }


def cells(scale: str, data: Path) -> list[Cell]:
    """Every optimizer in every condition that it has; the same at each scale."""
    del scale, data
    return [
        Cell(
            {"condition": condition, "optimizer": name, "steps": STEPS},
            functools.partial(measure, condition, name),
        )
        for condition in SETUPS
        for name in (NARROW if condition == "bfloat16 state" else CONTESTANTS)
    ]


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    by_condition: dict[str, dict[str, Any]] = {}
    for record in records:
        settings = record["settings"]
        of_condition = by_condition.setdefault(settings["condition"], {})
        of_condition[settings["optimizer"]] = record["result"]
    conditions = {
        name: comparison.training_table(results, BASELINE)
        for name, results in by_condition.items()
    }
    return {
        "widths": _widths(by_condition["clean"]),
        **{name.replace(" ", "_"): table for name, table in conditions.items()},
    }


def _widths(results: dict[str, Any]) -> str:
    """In how many octaves of the rate the loss is near its best."""
    rows = []
    for name, result in results.items():
        rates, losses = np.array(result["line_rates"]), np.array(result["line_losses"])
        best = int(np.argmin(losses))
        widths = [f"{octaves(losses, factor):.1f}" for factor in WIDTHS]
        rows.append([name, f"{rates[best]:.3g}", f"{losses[best]:.3f}", *widths])
    header = ["optimizer", "best rate", "loss there"]
    return markdown.table([*header, "within 5%", "within 50%"], rows)


def octaves(losses: np.ndarray, factor: float) -> float:
    """Width of the unbroken range around the best of rates half an octave apart."""
    near = losses <= factor * losses.min()
    low = high = int(np.argmin(losses))
    while low > 0 and near[low - 1]:
        low -= 1
    while high < len(losses) - 1 and near[high + 1]:
        high += 1
    return (high - low + 1) / 2


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figures of the page."""
    figure = Figure(figsize=(9.0, 5.2), dpi=150, facecolor="white")
    axes = figure.subplots()
    clean = [r for r in records if r["settings"]["condition"] == "clean"]
    for i, record in enumerate(clean):
        result = record["result"]
        rates = np.array(result["line_rates"]) / result["rate"]
        axes.plot(
            rates,
            result["line_losses"],
            **charts.line_style(i, len(clean)),
            label=record["settings"]["optimizer"],
        )
    figures.style(axes, "rate over the tuned rate")
    axes.set(xscale="log", yscale="log", ylim=(None, 3))
    axes.set_ylabel("validation loss, nats per image", color=figures.INK)
    figures.legend(axes, loc=(1.02, 0.3))
    return {"robustness_rates.png": figures.png(figure)}


STUDY = Study(cells, tables, pictures)
