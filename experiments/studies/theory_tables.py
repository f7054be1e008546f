"""What the page of the theory shows of its raw results."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import markdown
from experiments.reporting import figures
from experiments.studies import charts, intervals
from experiments.studies.study import Record

NAMES = {"sgd": "SGD", "gclip": "GClip", "cclip": "CClip", "acclip": "ACClip"}
SHOWN_ORDER = 1.5


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    return {
        "rates": rates(_of(records, "rate")),
        "deviations": deviations(_of(records, "rate")),
        "horizons": horizons(_of(records, "horizon")),
        "dimensions": dimensions(_of(records, "dimension")),
    }


def _of(records: Sequence[Record], part: str) -> list[Record]:
    return [record for record in records if record["settings"]["part"] == part]


def _by(records: Sequence[Record], *names: str) -> dict[tuple[Any, ...], Record]:
    """Records by some of their settings, which tell them apart."""
    measured = {tuple(r["settings"][name] for name in names): r for r in records}
    assert len(measured) == len(records)
    return measured


def _distinct(records: Sequence[Record], name: str) -> list[Any]:
    return list(dict.fromkeys(record["settings"][name] for record in records))


def rates(records: Sequence[Record]) -> str:
    """Fitted exponents of the mean error beside the theorems'."""
    measured = _by(records, "kind", "order", "method")

    def cell(kind: str, order: float, method: str) -> str:
        return intervals.with_interval(
            measured[kind, order, method]["result"]["slope"], ".2f"
        )

    return _exponents(records, lambda order: -2 * (order - 1) / order, cell)


def _exponents(
    records: Sequence[Record],
    theorem: Callable[[float], float],
    cell: Callable[[str, float, str], str],
) -> str:
    """A row for each noise and order: the theorem's exponent, and each method's."""
    kinds, orders, methods = (
        _distinct(records, name) for name in ("kind", "order", "method")
    )
    rows = [
        [
            kind,
            f"{order:g}",
            f"{theorem(order):.2f}",
            *(cell(kind, order, method) for method in methods),
        ]
        for kind, order in itertools.product(kinds, orders)
    ]
    names = map(NAMES.__getitem__, methods)
    return markdown.table(["noise", "a", "theorem", *names], rows)


def deviations(records: Sequence[Record]) -> str:
    """How the errors of the last step are spread over the runs."""
    measured = _by(records, "kind", "order", "method")
    kinds, orders, methods = (
        _distinct(records, name) for name in ("kind", "order", "method")
    )
    shown = [order for order in orders if order in (orders[0], SHOWN_ORDER, orders[-1])]
    rows = []
    for kind, order, method in itertools.product(kinds, shown, methods):
        result = measured[kind, order, method]["result"]
        names = ("median", "mean", "quantile_99")
        median, mean, high = (result[name][-1] for name in names)
        numbers = [f"{x:.3g}" for x in (median, mean, high, high / median)]
        share = f"{result['share_above_10_medians']:.1%}"
        rows.append([kind, f"{order:g}", NAMES[method], *numbers, share])
    header = ["noise", "a", "method", "median", "mean", "99% quantile"]
    return markdown.table([*header, "99% / median", "above 10 medians"], rows)


def horizons(records: Sequence[Record]) -> str:
    """Fitted exponents of the mean squared gradient beside theorem 2's."""
    measured = _by(records, "kind", "order", "method", "steps")
    steps = _distinct(records, "steps")

    def cell(kind: str, order: float, method: str) -> str:
        of_runs = [measured[kind, order, method, k]["result"]["squares"] for k in steps]
        squares = np.transpose(of_runs)
        exponent = intervals.fitted_exponent(steps, squares)
        last = squares[:, -1].mean()
        return f"{intervals.with_interval(exponent, '.2f')}, {last:.3g}"

    return _exponents(records, lambda a: -(2 * a - 2) / (3 * a - 2), cell)


def dimensions(records: Sequence[Record]) -> str:
    """Errors by dimension, and fitted exponents of the dimension."""
    measured = _by(records, "scales", "method", "number")
    kinds, methods, numbers = (
        _distinct(records, name) for name in ("scales", "method", "number")
    )
    rows = []
    for scales in kinds:
        means = {}
        for method in methods:
            errors = [measured[scales, method, n]["result"]["errors"] for n in numbers]
            means[method] = np.mean(errors, axis=1)
            cells = [f"{mean:.3g}" for mean in means[method]]
            exponent = intervals.fitted_exponent(numbers, np.transpose(errors))
            cells.append(intervals.with_interval(exponent, ".2f"))
            rows.append([scales, NAMES[method], *cells])
        ratios = [f"{ratio:.2f}" for ratio in means[methods[0]] / means[methods[1]]]
        rows.append([scales, "ratio", *ratios, ""])
    header = ["scales", "", *(f"d = {number:,}" for number in numbers)]
    return markdown.table([*header, "exponent of d"], rows)


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figures of the page."""
    rate, scaled = _of(records, "rate"), "times $k^{2(a-1)/a}$"
    return {
        "theory_mean.png": _curves(rate, "mean", f"mean error {scaled}"),
        "theory_deviation.png": _curves(
            rate, "quantile_99", f"error that 1% exceed {scaled}"
        ),
    }


def _curves(records: Sequence[Record], statistic: str, label: str) -> bytes:
    """Errors times what the theorem divides them by: flat where it is met exactly."""
    measured = _by(records, "kind", "order", "method")
    kinds, methods = (_distinct(records, name) for name in ("kind", "method"))
    figure = Figure(figsize=(11.0, 4.2), dpi=150, facecolor="white")
    for axes, kind in zip(
        figure.subplots(1, len(kinds), sharey=True), kinds, strict=True
    ):
        for i, method in enumerate(methods):
            result = measured[kind, SHOWN_ORDER, method]["result"]
            steps = np.array(result["steps"], float)
            errors = np.array(result[statistic])
            axes.plot(
                steps,
                errors * steps ** (2 * (SHOWN_ORDER - 1) / SHOWN_ORDER),
                label=NAMES[method],
                **charts.line_style(i, len(methods)),
            )
        figures.style(axes, "step k")
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"{kind}, a = {SHOWN_ORDER:g}", loc="left", color=figures.INK)
    figure.axes[0].set_ylabel(label, color=figures.INK)
    figures.legend(figure.axes[1], loc="lower left")
    figure.tight_layout()
    return figures.png(figure)
