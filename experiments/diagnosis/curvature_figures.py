"""Pictures of the curvature: smoothness along a run, and the spectrum."""

from collections.abc import Sequence

import numpy as np

from experiments.diagnosis import curvature
from experiments.diagnosis.curvature import Curvature
from experiments.diagnosis.noise_figures import (
    DATA,
    POWER,
    Picture,
    log_ticks,
    new_axes,
    picture,
)
from experiments.reporting.figures import INK, SERIES

_FLOOR = 1e-6  # of the density's peak, where the picture ends
_LINE = 200  # points of the line


def pictures(curvatures: Sequence[tuple[int, Curvature]]) -> list[Picture]:
    """The pictures that several points of training, or one, allow."""
    drawn, last = [], curvatures[-1][1]
    if any(len(_points(here)[0]) for _, here in curvatures):
        drawn.append(_smoothness(curvatures))
    if last.is_finite:
        drawn.append(_spectrum(last))
    return [*drawn, _ends(curvatures)] if len(curvatures) > 1 else drawn


def _smoothness(curvatures: Sequence[tuple[int, Curvature]]) -> Picture:
    figure, axes = new_axes()
    for i, (step, here) in enumerate(curvatures):
        color = SERIES[i % len(SERIES)]
        axes.plot(
            *_points(here),
            ".",
            color=color,
            label=f"from step {step:,}",
        )
    line = curvature.fit([here for _, here in curvatures])
    norms = np.concatenate([_points(here)[0] for _, here in curvatures])
    if line.l0 is not None and line.l1 is not None:
        x = np.geomspace(norms.min(), norms.max(), _LINE)
        axes.plot(x, line.l0 + line.l1 * x, "--", color=INK, label="L0 + L1 norm")
    axes.set_xscale("log")
    axes.set_yscale("log")
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    axes.set_ylabel("local smoothness", color=INK)
    caption = "Smoothness along the run's own steps against the gradient norm"
    return picture(figure, axes, "smoothness", caption, "gradient norm")


def _points(here: Curvature) -> tuple[np.ndarray, np.ndarray]:
    """Norms and smoothnesses that log axes have."""
    pairs = [(r["gradient_norm"], r["smoothness"]) for r in here.smoothness]
    array = np.array(pairs, float).reshape(-1, 2)
    norms, smoothnesses = array[(np.isfinite(array) & (array > 0)).all(1)].T
    return norms, smoothnesses


def _spectrum(here: Curvature) -> Picture:
    figure, axes = new_axes()
    grid = here.nodes.grid()
    density = np.asarray(here.nodes.density(grid))
    axes.plot(np.asarray(grid), density, color=DATA)
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR * density.max(), 3 * density.max())
    axes.set_ylabel("density", color=INK)
    caption = "Spectral density of the Hessian"
    return picture(figure, axes, "spectrum", caption, "eigenvalue")


def _ends(curvatures: Sequence[tuple[int, Curvature]]) -> Picture:
    figure, axes = new_axes()
    steps = [step for step, _ in curvatures]
    for name, color in (("largest", DATA), ("smallest", POWER)):
        values = [here.spectrum[name] for _, here in curvatures]
        axes.plot(steps, values, "o-", color=color, ms=4, label=name)
    axes.set_yscale("symlog", linthresh=0.1)
    caption = "Extreme Hessian eigenvalues in the course of training"
    return picture(figure, axes, "ends", caption, "step")
