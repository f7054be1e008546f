"""Pictures of what `experiments.follow` measured."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting import figures
from experiments.reporting.figures import INK, MUTED, SERIES
from optax_heavytail import diagnostics
from optax_heavytail.diagnostics import SmoothnessFit

Record = dict[str, Any]
LARGEST, SMALLEST, SMOOTHNESS = SERIES[0], SERIES[1], SERIES[2]
_SPECTRA = 3  # as many are apart in one picture
_WIDTH = 0.005  # of a normal distribution at a node, as a share of the spectrum
_POINTS = 1024
_DECADES = 6  # of a density that are shown


def png(records: Sequence[Record], fit: SmoothnessFit) -> bytes:
    """All three pictures side by side."""
    figure = Figure(figsize=(15.0, 4.4), dpi=120, facecolor="white")
    course, densities, line = figure.subplots(1, 3)
    figure.subplots_adjust(wspace=0.28)
    draw_course(course, records)
    draw_densities(densities, records)
    draw_line(line, records, fit)
    return figures.png(figure)


def draw_course(axes: Axes, records: Sequence[Record]) -> None:
    """Both ends of the spectrum and the smoothness along updates, by step."""
    spectra, updates = _of(records, "spectrum"), _of(records, "smoothness")
    axes.plot(
        *_columns(updates, "step", "smoothness"),
        ".",
        color=SMOOTHNESS,
        alpha=0.6,
        label="smoothness along the update",
    )
    steps, largest = _columns(spectra, "step", "largest")
    axes.plot(steps, largest, "o-", color=LARGEST, ms=4, label="largest eigenvalue")
    steps, smallest = _columns(spectra, "step", "smallest")
    below = smallest < 0
    label = "smallest eigenvalue, times -1"
    axes.plot(steps[below], -smallest[below], "s-", color=SMALLEST, ms=4, label=label)
    axes.set_yscale("log")
    _finish(axes, "step", "Curvature in the course of training")


def draw_densities(axes: Axes, records: Sequence[Record]) -> None:
    """The density of eigenvalues at the first, a middle and the last step."""
    spectra = [r for r in _of(records, "spectrum") if r["largest"] is not None]
    places = np.linspace(0, len(spectra) - 1, min(_SPECTRA, len(spectra)))
    chosen = [spectra[round(place)] for place in places]
    top = 0.0
    for color, record in zip(SERIES, chosen, strict=False):
        # An error may be None, for a node that stands for no step.
        arrays = (
            np.asarray(record[name], np.float32)
            for name in ("nodes", "weights", "errors")
        )
        spectrum = diagnostics.Spectrum(*map(jnp.asarray, arrays))
        grid = spectrum.grid(_POINTS, _WIDTH)
        density = np.asarray(spectrum.density(grid, _WIDTH))
        top = max(top, float(density.max()))
        label = f"step {record['step']:,}"
        axes.plot(np.asarray(grid), density, color=color, linewidth=1.2, label=label)
    axes.set_yscale("log")
    if top:
        axes.set_ylim(top * 10.0**-_DECADES, 3 * top)
    _finish(axes, "eigenvalue", "Density of the eigenvalues")


def draw_line(axes: Axes, records: Sequence[Record], fit: SmoothnessFit) -> None:
    """Smoothness against gradient norm, early updates light, with the line."""
    updates = [u for u in _of(records, "smoothness") if u["gradient_norm"] is not None]
    norms, smooth = _columns(updates, "gradient_norm", "smoothness")
    steps, _ = _columns(updates, "step", "smoothness")
    if len(steps):  # else none is finite
        shades = 0.25 + 0.75 * steps / max(steps.max(), 1.0)
        axes.scatter(norms, smooth, s=14, color=SMOOTHNESS, alpha=shades, linewidths=0)
    if fit.l0 is not None and fit.l1 is not None:
        x = np.geomspace(norms[norms > 0].min(), norms.max(), _POINTS)
        label = f"{fit.l0:.3g} + {fit.l1:.3g} x gradient norm"
        axes.plot(x, fit.l0 + fit.l1 * x, "--", color=MUTED, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _finish(axes, "gradient norm", "Smoothness along updates (darker: later)")


def _of(records: Sequence[Record], kind: str) -> list[Record]:
    found = [record for record in records if record["kind"] == kind]
    return sorted(found, key=lambda record: record["step"])


def _columns(
    records: Sequence[Record], x: str, y: str
) -> tuple[np.ndarray, np.ndarray]:
    """Two values of the records that have both."""
    pairs = [(r[x], r[y]) for r in records]
    pairs = [pair for pair in pairs if None not in pair]
    first, second = np.array(pairs, float).reshape(-1, 2).T
    return first, second


def _finish(axes: Axes, x: str, title: str) -> None:
    figures.style(axes, x)
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    if axes.get_legend_handles_labels()[1]:
        figures.legend(axes, fontsize=8)
