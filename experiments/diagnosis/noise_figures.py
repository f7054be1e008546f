"""Pictures of gradient noise: its law, its tail, its layers, its course in training."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.reporting import figures
from experiments.reporting.figures import INK, MUTED, SERIES
from optax_heavytail import diagnostics
from optax_heavytail.diagnostics import Diagnosis, LayerDiagnosis, TailEstimate

DATA, NULL, POWER = SERIES[0], MUTED, SERIES[1]
_BEYOND = 0.99  # of the norms are in the histogram
_ORDERS = 8  # random ones, beside the order in which the batches came
_POINTS = 200
_MOST_BINS = 100
_SUBS, _FEW = (1.0, 2.0, 3.0, 5.0, 7.0), 8  # ticks, where an axis spans no decade
_ROW = 0.24  # inches of a layer
_LONGEST = 26  # letters of a layer's name


class Picture(NamedTuple):
    """A figure of the page."""

    name: str
    caption: str
    svg: str
    is_dense: bool = False  # with many names, which large letters would not fit


def pictures(layer: LayerDiagnosis) -> list[Picture]:
    """The pictures of one layer, or of all as one vector, that has estimates."""
    return [
        _histogram(layer),
        _quantiles(layer),
        _survival(layer),
        _variance(layer),
        _hill(layer),
    ]


def new_axes(height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty figure of the page, so many inches high."""
    figure = Figure(figsize=(4.6, height))
    return figure, figure.subplots()


def picture(figure: Figure, axes: Axes, name: str, caption: str, x: str) -> Picture:
    """What is drawn, with its frame and its legend."""
    figures.style(axes, x)
    if axes.get_legend_handles_labels()[1]:
        figures.legend(axes, fontsize=8)
    return Picture(name, caption, figures.svg(figure, name, caption))


def log_ticks(axis: Axis) -> None:
    """Numbers on a log axis that spans less than a decade too."""
    low, high = axis.get_view_interval()
    subs = _SUBS if high / low < _FEW else _SUBS[:2] + _SUBS[3:4]
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _histogram(layer: LayerDiagnosis) -> Picture:
    norms = layer.noise.norms
    end = np.quantile(norms, _BEYOND)
    shown = norms[norms <= end]
    counts, edges = np.histogram(shown, _num_bins(shown))
    widths = np.diff(edges)
    figure, axes = new_axes()
    axes.bar(
        edges[:-1],
        counts / (len(norms) * widths),
        widths,
        align="edge",
        color=DATA,
        alpha=0.35,
    )
    x = np.linspace(norms.min(), end, _POINTS)
    axes.plot(x, _density(norms, x), color=DATA, label="density")
    fitted = statistics.NormalDist(float(norms.mean()), float(norms.std()) or 1.0)
    axes.plot(
        x, [fitted.pdf(v) for v in x], "--", color=NULL, label="fitted normal law"
    )
    beyond = int(np.sum(norms > end))
    caption = f"Norms of the noise ({beyond} of {len(norms)} are further right)"
    return picture(figure, axes, "histogram", caption, "norm of the noise")


def _num_bins(samples: np.ndarray) -> int:
    """Freedman and Diaconis' number, but no more than a picture can show."""
    low, high = np.quantile(samples, (0.25, 0.75))
    width, span = 2 * (high - low) / len(samples) ** (1 / 3), np.ptp(samples)
    if span == 0:
        return 1
    return min(_MOST_BINS, math.ceil(span / max(width, span / _MOST_BINS)))


def _density(samples: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Gaussian kernels of Silverman's width, which the quartiles keep robust."""
    quartiles = np.quantile(samples, (0.25, 0.75))
    spread = min(samples.std(), float(np.diff(quartiles)[0]) / 1.349) or samples.std()
    width = 0.9 * spread * len(samples) ** -0.2
    kernels = np.exp(-0.5 * ((x[:, None] - samples) / width) ** 2)
    return kernels.mean(1) / (width * np.sqrt(2 * np.pi))


def _quantiles(layer: LayerDiagnosis) -> Picture:
    norms = np.sort(layer.noise.norms)
    n, normal = len(norms), statistics.NormalDist()
    expected = np.array([normal.inv_cdf((i + 0.5) / n) for i in range(n)])
    figure, axes = new_axes()
    axes.plot(expected, (norms - norms.mean()) / norms.std(), ".", color=DATA, ms=4)
    axes.plot(expected, expected, "--", color=NULL, label="normal law")
    axes.set_ylabel("norm, standardised", color=INK)
    caption = "QQ plot: norms against a normal law"
    return picture(figure, axes, "qq", caption, "normal quantile")


def _survival(layer: LayerDiagnosis) -> Picture:
    norms, estimate = np.sort(layer.noise.norms), layer.norms["hill"]
    n = len(norms)
    share = 1 - np.arange(n) / n
    figure, axes = new_axes()
    if layer.null_norms is not None:
        low, middle, high = layer.null_norms
        axes.fill_betweenx(share, low, high, color=NULL, alpha=0.25, linewidth=0)
        axes.plot(middle, share, "--", color=NULL, label="Gaussian, same covariance")
    axes.plot(norms, share, ".", color=DATA, ms=4, label="measured")
    if estimate.index is not None and estimate.k:
        start = norms[-estimate.k]
        x = np.geomspace(start, norms[-1], _POINTS)
        power = estimate.k / n * (x / start) ** -estimate.index
        label = f"power law, index {estimate.index:.2f}"
        axes.plot(x, power, color=POWER, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    log_ticks(axes.xaxis)
    axes.set_ylim(0.5 / n, 1.5)
    axes.set_ylabel("share of the batches beyond", color=INK)
    caption = "Survival on log axes: a power law is a straight line"
    return picture(figure, axes, "survival", caption, "norm of the noise")


def _variance(layer: LayerDiagnosis) -> Picture:
    squares = layer.noise.norms**2
    n, rng = len(squares), np.random.default_rng(0)
    figure, axes = new_axes()
    counts = np.arange(1, n + 1)
    for _ in range(_ORDERS):
        values = np.cumsum(rng.permutation(squares)) / counts
        axes.plot(counts, values / squares.mean(), color=NULL, alpha=0.4, linewidth=0.8)
    values = layer.noise.empirical_variance() / squares.mean()
    axes.plot(counts, values, color=DATA, label="in the order drawn")
    axes.set_xscale("log")
    axes.set_ylim(0, min(float(values.max()) * 1.1, 4.0))
    axes.set_ylabel("relative to all", color=INK)
    share = squares.max() / squares.sum()
    caption = (
        "Empirical variance: settles if there is one (the largest batch alone is "
        f"{share:.1%} of it)"
    )
    return picture(figure, axes, "variance", caption, "number of batches")


def _hill(layer: LayerDiagnosis) -> Picture:
    norms, estimate = layer.noise.norms, layer.norms["hill"]
    ks, indices = map(np.asarray, diagnostics.hill_plot(norms / np.median(norms)))
    figure, axes = new_axes()
    shown = (ks >= 5) & np.isfinite(indices)
    ks, indices = ks[shown], indices[shown]
    width = 1.645 / np.sqrt(ks)
    band = indices * np.exp(-width), indices * np.exp(width)
    axes.fill_between(ks, *band, color=DATA, alpha=0.2, linewidth=0)
    axes.plot(ks, indices, color=DATA)
    axes.axhline(2, color=POWER, linewidth=1.2, label="2: finite variance above")
    if estimate.k is not None:
        axes.axvline(
            estimate.k, color=INK, linewidth=0.8, label=f"k = {estimate.k} is used"
        )
        null = dataclasses.replace(
            estimate, low=estimate.null_low, high=estimate.null_high
        )
        axes.plot(
            [estimate.k] * 2, _ends(null), color=NULL, linewidth=4, label="Gaussian"
        )
    axes.set_yscale("log")
    log_ticks(axes.yaxis)
    axes.set_ylabel("tail index", color=INK)
    caption = "Hill plot: the index by the number k of norms that are the tail"
    return picture(figure, axes, "hill", caption, "k")


def layers_picture(diagnosis: Diagnosis) -> Picture:
    """The two indices across iterations of every layer that has them."""
    shown = [x for x in (*diagnosis.layers, diagnosis.whole) if x.has_index]
    figure, axes = new_axes(max(3.0, 1.0 + _ROW * len(shown)))
    for row, layer in enumerate(reversed(shown)):
        for estimate, color, shift, label in (
            (layer.norms["hill"], DATA, 0.12, "norm"),
            (layer.entries, POWER, -0.12, "single coordinates"),
        ):
            if estimate is None or estimate.index is None:
                continue
            y = row + shift
            axes.plot(_ends(estimate), [y, y], color=color, linewidth=1.5)
            name = label if row == 0 else None
            axes.plot(estimate.index, y, "o", color=color, ms=3.5, label=name)
    axes.axvline(2, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    names = [_shortened(layer.noise.name) for layer in reversed(shown)]
    axes.set_yticks(range(len(shown)), names, fontsize=8, parse_math=False)
    caption = "Tail index across iterations by layer; left of 2 there is no variance"
    drawn = picture(figure, axes, "layers", caption, "tail index")
    return drawn._replace(is_dense=True)


def _ends(estimate: TailEstimate) -> list[float]:
    """The ends of the interval; NaN where there is none."""
    ends = (estimate.low, estimate.high)
    return [float("nan") if end is None else end for end in ends]


def _shortened(name: str) -> str:
    cut = f"...{name[3 - _LONGEST :]}"
    return name if len(name) <= _LONGEST else cut


def course_picture(by_step: Sequence[tuple[int, Diagnosis]]) -> Picture:
    """How the indices of the whole move in training."""
    figure, axes = new_axes()
    for of, color, label in (
        (lambda d: d.whole.norms.get("hill"), DATA, "norm"),
        (lambda d: d.whole.entries, POWER, "single coordinates"),
    ):
        points = [(step, of(diagnosis)) for step, diagnosis in by_step]
        points = [(s, e) for s, e in points if e is not None and e.index is not None]
        steps = [step for step, _ in points]
        axes.plot(
            steps, [e.index for _, e in points], "o-", color=color, ms=4, label=label
        )
        for step, estimate in points:
            axes.plot([step, step], _ends(estimate), color=color, linewidth=1.5)
    axes.axhline(2, color=INK, linewidth=0.8)
    axes.set_yscale("log")
    log_ticks(axes.yaxis)
    axes.set_ylabel("tail index", color=INK)
    caption = "Tail index of all layers in the course of training"
    return picture(figure, axes, "course", caption, "step")
