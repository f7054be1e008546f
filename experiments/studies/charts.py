"""Figures of trainings by many optimizers: what tuning saw, and what came of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting import figures
from experiments.studies.training import LOST

Results = Mapping[str, Mapping[str, Any]]  # of `tuning.tune_and_run`, by optimizer


def trainings(results: Results, loss_name: str) -> bytes:
    """Loss by step of the fresh seeds, and loss by rate of the tuning, as PNG."""
    figure = Figure(figsize=(11.0, 4.6), dpi=150, facecolor="white", layout="tight")
    curves, rates = figure.subplots(1, 2, sharey=True)
    draw_curves(curves, results)
    draw_rates(rates, results)
    curves.set_ylabel(loss_name, color=figures.INK)
    lowest = min(
        min(*result["losses"], *result["tuning_losses"]) for result in results.values()
    )
    starts = [result["loss_curves"][0][0] for result in results.values()]
    top = max(start for start in starts if start < LOST)
    curves.set_ylim(lowest - 0.03 * (top - lowest), top + 0.1 * (top - lowest))
    figures.legend(rates, loc="center left", bbox_to_anchor=(1, 0.5))
    return figures.png(figure)


def draw_curves(axes: Axes, results: Results) -> None:
    """The mean over the fresh seeds, and each of them as a thin line."""
    for i, (name, result) in enumerate(results.items()):
        losses = np.array(result["loss_curves"])
        steps, style = result["evaluated_at"], line_style(i, len(results))
        axes.plot(steps, losses.mean(axis=0), label=name, **style)
        axes.plot(steps, losses.T, color=style["color"], linewidth=0.6, alpha=0.5)
    figures.style(axes, "step")


def draw_rates(axes: Axes, results: Results) -> None:
    """The loss at every rate of the last grid, at the best threshold for each."""
    for i, (name, result) in enumerate(results.items()):
        rates = np.array(result["rates"])
        losses = np.reshape(result["tuning_losses"], (len(rates), -1)).min(axis=1)
        style = line_style(i, len(results))
        axes.plot(rates, losses, marker=".", label=name, **style)
    axes.set_xscale("log")
    figures.style(axes, "learning rate, tuning seeds")


def line_style(index: int, number: int) -> dict[str, Any]:
    """Of one of so many lines: each thinner than those below, which so can be seen."""
    width = 3.2 - 2.0 * index / max(number - 1, 1)
    dashes = figures.line_style(index)
    return {"color": figures.color(index), "linestyle": dashes, "linewidth": width}
