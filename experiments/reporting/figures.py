"""Loss curves of several runs, as PNG or as SVG that follows the page's colours."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from experiments.runs.reading import Record, Run

# Okabe and Ito's colours, apart for colour-blind readers too; brown for their yellow.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b")
INK, MUTED, GRID = "#1c1e21", "#62676d", "#e3e5e8"
PAGE_COLORS = {
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES)},
    **{INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"},
}
LABEL_GAP = 13.0  # points between the baselines of two labels
POINTS_PER_INCH = 72.0
Kind = Literal["train", "eval"]
PARTS: Mapping[Kind, str] = {"eval": "Validation", "train": "Training"}
LINE_STYLES = ("-", "--", ":")  # apart where there are more runs than colours


class Label(NamedTuple):
    """Text beside the frame, at the height of what it names."""

    y: float
    text: str
    color: str
    reaches_end: bool = True


def caption(kind: Kind, runs: Sequence[Run]) -> str:
    """What a figure shows, with its unit."""
    return f"{PARTS[kind]} loss, {runs[0].loss_unit}"


def color(index: int) -> str:
    """The colour of the run at ``index``."""
    return SERIES[index % len(SERIES)]


def line_style(index: int) -> str:
    """The style of the line of the run at ``index``."""
    return LINE_STYLES[index // len(SERIES) % len(LINE_STYLES)]


def loss_png(title: str, runs: Sequence[Run], baselines: Mapping[str, float]) -> bytes:
    """Validation loss with the training loss faint behind it."""
    height = max(5.2, _label_height(runs, baselines))
    figure = Figure(figsize=(9.0, height), dpi=150, facecolor="white")
    axes = figure.subplots()
    axes.set_title(f"{title}\n", loc="left", color=INK, parse_math=False)
    for i, run in enumerate(runs):
        axes.plot(
            *_smooth(*_curve(run.train)), color=color(i), alpha=0.3, linewidth=1.2
        )
    draw(axes, runs, "eval", baselines)
    _caption(axes, f"{caption('eval', runs)} (faint: training loss)")
    return _save(figure, "png")


def loss_svg(kind: Kind, runs: Sequence[Run], baselines: Mapping[str, float]) -> str:
    """One figure for a page that defines ``--ink``, ``--muted``, ``--series-0``, ..."""
    figure = Figure(figsize=(4.6, max(3.4, _label_height(runs, baselines))))
    axes = figure.subplots()
    draw(axes, runs, kind, baselines)
    return svg(figure, kind, caption(kind, runs))


def png(figure: Figure) -> bytes:
    """A figure as a picture."""
    return _save(figure, "png")


def svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an element of a page, in whose colours it is drawn.

    Args:
      figure: drawn in `INK`, `MUTED`, `GRID` and `SERIES`.
      name: of the figure, another for each on a page.
      label: what it shows, for readers who cannot see it.
    """
    text = _save(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    opening = rf'<svg \1 role="img" aria-label="{escape(label)}">'
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, text)
    text = re.sub(r'(id="|"#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub("|".join(PAGE_COLORS), lambda match: PAGE_COLORS[match.group()], text)


def _label_height(runs: Sequence[Run], baselines: Mapping[str, float]) -> float:
    """Inches of a figure in whose frame all labels fit."""
    frame = 0.75  # of the figure's height, in matplotlib's layout
    return (len(runs) + len(baselines)) * LABEL_GAP / POINTS_PER_INCH / frame


def draw(
    axes: Axes,
    runs: Sequence[Run],
    kind: Kind,
    baselines: Mapping[str, float],
) -> None:
    """Draws one curve per run, the baselines, and a label beside each."""
    labels = []
    for i, run in enumerate(runs):
        steps, losses = _curve(run.train if kind == "train" else run.eval)
        if kind == "train":
            steps, losses = _smooth(steps, losses)
        if not len(steps):
            continue
        style = line_style(i)
        axes.plot(steps, losses, color=color(i), linestyle=style, linewidth=1.8)
        if run.outcome.is_complete:
            labels.append(Label(losses[-1], run.name, color(i)))
        else:
            axes.plot(steps[-1], losses[-1], "x", color=color(i))
            text = f"{run.name} ({run.outcome.status})"
            labels.append(Label(losses[-1], text, color(i), reaches_end=False))
    for name, value in baselines.items():
        axes.axhline(value, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.2)
        labels.append(Label(value, f"{name} {value:.3f}", MUTED))
    _style(axes)
    axes.set_yscale(runs[0].loss_scale)
    if runs[0].loss_scale == "log":
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0, max(1, *(run.outcome.step for run in runs)))
    _limit_height(axes, runs, baselines)
    _write_labels(axes, labels)


def _curve(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array([record["step"] for record in records], float)
    return steps, np.array([record["loss"] for record in records], float)


def _smooth(steps: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A centred mean over about a fortieth of the points, at least three."""
    half = max(1, len(losses) // 80)
    windows = [losses[max(0, i - half) : i + half + 1] for i in range(len(losses))]
    return steps, np.array([window.mean() for window in windows])


def _style(axes: Axes) -> None:
    style(axes, "step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def style(axes: Axes, x_label: str) -> None:
    """The frame that all figures have."""
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=MUTED)
    axes.tick_params(color=MUTED, labelcolor=INK, length=3)
    axes.tick_params(axis="y", which="both", left=False)
    axes.set_xlabel(x_label, color=INK, loc="right")


def legend(axes: Axes, **where: Any) -> None:
    """The legend that all figures have; ``where`` is Matplotlib's."""
    axes.legend(frameon=False, labelcolor=INK, **where)


def _caption(axes: Axes, text: str) -> None:
    axes.text(0, 1.02, text, transform=axes.transAxes, color=MUTED)


def _limit_height(
    axes: Axes, runs: Sequence[Run], baselines: Mapping[str, float]
) -> None:
    """Keeps one bad run from flattening all the others."""
    losses = np.concatenate([[], *(line.get_ydata() for line in axes.lines)])
    if runs[0].loss_scale == "log":
        losses = losses[losses > 0]
    if not losses.size:
        return
    starts = [run.train[0]["loss"] for run in runs if run.train]
    ceiling = 1.1 * max([min(starts, default=0.0), *baselines.values()])
    scale = axes.yaxis.get_transform()  # so that the margins look alike
    ends = losses.min(), max(losses.min(), min(losses.max(), ceiling))
    low, high = scale.transform(np.array(ends))
    margin = 0.05 * (high - low) or 0.1
    low, high = scale.inverted().transform(np.array([low - margin, high + margin]))
    axes.set_ylim(low, high)
    if runs[0].loss_scale == "log" and high < 10 * low:  # maybe no power of 10 in it
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _write_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Writes each label right of the frame, at its height where there is room."""
    low, high = axes.get_ylim()
    labels = sorted(labels)
    heights = [min(max(label.y, low), high) for label in labels]
    points = POINTS_PER_INCH / axes.figure.get_dpi()
    bottom, top, *wanted = (
        axes.transData.transform((0.0, y))[1] * points for y in (low, high, *heights)
    )
    placed = _spread(wanted, bottom, top)
    for label, y, old, new in zip(labels, heights, wanted, placed, strict=True):
        is_off = label.y > high
        place = {
            "xy": (1.0, y),
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "va": "center",
            "annotation_clip": False,
        }
        axes.annotate(
            f"\N{UPWARDS ARROW} {label.text}, {label.y:.4g}" if is_off else label.text,
            **place,
            xytext=(20, new - old),
            color=INK,
            parse_math=False,
            arrowprops=_leader(label.color) if label.reaches_end else None,
        )
        if not label.reaches_end:
            axes.annotate(
                "\N{MULTIPLICATION SIGN}",
                **place,
                xytext=(8, new - old),
                color=label.color,
                weight="bold",
            )


def _leader(color: str) -> dict[str, Any]:
    return {
        "arrowstyle": "-",
        "color": color,
        "linewidth": 1.4,
        "relpos": (0, 0.5),
        "patchA": None,  # the text's box would cut a steep line off below the text
        "shrinkA": 4,
        "shrinkB": 2,
    }


def _spread(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Moves sorted heights apart, each cluster about its mean and inside the frame."""
    clusters: list[list[float]] = []
    for height in wanted:
        clusters.append([height])
        while len(clusters) > 1 and _overlap(clusters[-2], clusters[-1], low, high):
            last = clusters.pop()
            clusters[-1] += last
    return [y for cluster in clusters for y in _stack(cluster, low, high)]


def _stack(cluster: Sequence[float], low: float, high: float) -> list[float]:
    length = LABEL_GAP * (len(cluster) - 1)
    bottom = sum(cluster) / len(cluster) - length / 2
    bottom = max(low, min(bottom, high - length))
    return [bottom + LABEL_GAP * i for i in range(len(cluster))]


def _overlap(
    below: Sequence[float], above: Sequence[float], low: float, high: float
) -> bool:
    return _stack(above, low, high)[0] - _stack(below, low, high)[-1] < LABEL_GAP


def _save(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    buffer = io.BytesIO()
    metadata = (
        dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else {}
    )
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loss"}):
        figure.savefig(
            buffer,
            format=kind,
            bbox_inches="tight",
            pad_inches=0.15,
            transparent=kind == "svg",
            metadata=metadata,
        )
    return buffer.getvalue()
