"""Bias and coverage of the tail estimators on laws whose index is known."""

import json
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.benchmarks import common
from experiments.benchmarks.known_laws import GAUSSIAN, POWER_LAWS, STABLE_LAWS, Law
from experiments.common import fields, markdown, provenance
from experiments.common.json_files import Record
from experiments.common.measurements import Measurements
from optax_heavytail import diagnostics

CONFIDENCE = 0.9
LEVEL = 0.05  # of the tests whose rejections are counted
NUM_NULL = 20  # a test of the level 1/21
STABLE_METHODS = ("log_moment", "characteristic_function")
Over = Literal["iterations", "coordinates"]
SHARE = fields.number(0, 1)
# What the tables show of a record.
RECORD = {
    "settings": fields.mapping(),
    **{f"result.{name}": SHARE for name in ("below", "above", "rejected", "heavier")},
    **{
        f"result.{name}": fields.number(0).or_text("inf")
        for name in ("median", "width")
    },
}


class Cell(NamedTuple):
    """What is measured at a time."""

    law: Law
    setting: str  # one of SETTINGS
    n: int
    method: str

    @property
    def truth(self) -> float:
        """What the interval should cover."""
        return min(self.law.index, 2.0 if self.method in STABLE_METHODS else np.inf)

    def key(self) -> dict[str, Any]:
        """The cell in a record."""
        return {**self._asdict(), "law": str(self.law)}


SIZES = (200, 1000, 2500)
DRAWS_SIZE = 1000  # coordinates of each of several draws
# What the samples go over, the coefficient of their autoregression, and the number of
# draws, with how the tables call it.
SETTINGS: dict[str, tuple[Over, float, int]] = {
    "coordinates": ("coordinates", 0.0, 1),
    "coordinates, 20 draws": ("coordinates", 0.0, 20),
    "iterations, 0.5": ("iterations", 0.5, 1),
    "iterations, 0.8": ("iterations", 0.8, 1),
}
ALL_LAWS = (*POWER_LAWS, *STABLE_LAWS, GAUSSIAN)
SOME_LAWS = (Law("Student-t", 2), *STABLE_LAWS, GAUSSIAN)
LAWS: dict[str, tuple[Law, ...]] = {
    "hill": ALL_LAWS,
    "moment_ratio": ALL_LAWS,
    "pickands": (Law("Pareto", 1.5), *SOME_LAWS),
    "log_moment": SOME_LAWS,
    "characteristic_function": SOME_LAWS,
}


def cells() -> list[Cell]:
    """All cells, those of the fewest samples first."""
    return [
        Cell(law, setting, n, method)
        for n in SIZES
        for setting, (_, _, draws) in SETTINGS.items()
        for method, laws in LAWS.items()
        if draws == 1 or (n == DRAWS_SIZE and method == "hill")
        for law in laws
    ]


def is_meant(cell: Cell) -> bool:
    """Whether the interval is meant to cover in this cell."""
    _, phi, draws = SETTINGS[cell.setting]
    fewest = {"hill": 200}.get(cell.method, 1000)
    if phi:  # the stronger the dependence, the fewer samples there are in effect
        fewest = 1000 if phi <= 0.5 else 2500
    if draws > 1 or cell.n < fewest or (phi and cell.method == "pickands"):
        return False
    if cell.law.family == "stable":  # their tails begin late, the later the closer to 2
        return cell.law.index <= (1.2 if cell.method == "hill" else 1.5)
    highest = {"hill": 2, "moment_ratio": 4, "pickands": 4}.get(cell.method, 0)
    return cell.law.index <= highest


def measure(cell: Cell, repeats: int) -> Record:
    """The record of a cell."""
    over, phi, draws = SETTINGS[cell.setting]
    # Samples of its own for every cell, but for the methods, which are compared.
    name = f"{cell.law}, {cell.setting}, {cell.n}"
    seed = zlib.crc32(name.encode())
    samples = cell.law.samples((repeats * draws, cell.n), phi, seed)
    sets = samples.reshape(repeats, draws, cell.n) if draws > 1 else samples
    estimates = [
        diagnostics.estimate_tail(
            one,
            over=over,
            method=cell.method,
            confidence=CONFIDENCE,
            num_null=NUM_NULL,
            seed=seed,
        )
        for seed, one in enumerate(sets)
    ]
    reasons = {e.reason for e in estimates} - {None}
    if reasons:
        raise RuntimeError(f"{cell}: {reasons}")
    index, low, high, p_value = (
        np.array([getattr(e, name) for e in estimates])
        for name in ("index", "low", "high", "p_value")
    )
    truth = cell.truth
    return {
        "repeats": repeats,
        "truth": _number(truth),
        "median": _number(np.median(index)),
        "quartiles": [_number(q) for q in np.quantile(index, [0.25, 0.75], **_ORDER)],
        "width": _number(np.median(high) / np.median(low)),
        "below": float(np.mean(high < truth)),
        "above": float(np.mean(low > truth)),
        "rejected": float(np.mean(p_value <= LEVEL)),
        "heavier": float(np.mean([bool(e.heavier_than_null) for e in estimates])),
    }


_ORDER: dict[str, Any] = {"method": "inverted_cdf"}  # an index may be inf


def _number(value: Any) -> float | str:
    """JSON has no inf."""
    return float(value) if np.isfinite(value) else "inf"


def coverage(record: Record) -> float:
    """Share of the intervals that held the true index."""
    return 1 - record["below"] - record["above"]


def run(
    wanted: Sequence[Cell], repeats: int, partial: Path
) -> list[tuple[Cell, Record]]:
    """Measures the cells that ``partial`` does not have of this commit yet."""
    about = {"repeats": repeats, "commit": provenance.commit()}

    def key(settings: Record) -> str:
        return json.dumps(settings)

    known = Measurements(partial, lambda record: key(record["settings"]), _check)
    for number, cell in enumerate(wanted, 1):
        settings = {**cell.key(), **about}
        if key(settings) not in known:
            started = time.perf_counter()
            result = measure(cell, repeats)
            known.add({"settings": settings, "result": result})
            seconds = time.perf_counter() - started
            where = f"{number}/{len(wanted)} {', '.join(map(str, cell.key().values()))}"
            share = f"{coverage(result):.3f} of the intervals cover"
            print(f"{where}: {share}, {seconds:.1f} s", flush=True)
    measured = [(cell, known[key({**cell.key(), **about})]) for cell in wanted]
    return [
        (cell, {"kind": "cell", **cell.key(), **record["result"]})
        for cell, record in measured
    ]


def _check(record: Record, where: str) -> None:
    fields.check(record, RECORD, where)


Show = Callable[[Cell, Record], str]


def show_coverage(cell: Cell, record: Record) -> str:
    """In parentheses where it is not meant to be right, bold where it should be."""
    if np.isinf(cell.truth) and cell.method != "pickands":
        return "-"
    share = f"{coverage(record):.2f}"
    if not is_meant(cell):
        return f"({share})"
    return share if 0.845 <= coverage(record) < 0.955 else f"**{share}**"


SHOWN: dict[str, tuple[str, Show]] = {
    "Coverage": (
        "Share of the nominal 90 % intervals that hold the true index; in parentheses "
        "where they are not meant to, bold where they are meant to and it is not "
        "between 0.85 and 0.95.",
        show_coverage,
    ),
    "Bias": (
        "Median of the estimates.",
        lambda cell, record: f"{float(record['median']):.2f}",
    ),
    "Width": (
        "Median upper end over median lower end of the intervals.",
        lambda cell, record: f"{float(record['width']):.2f}",
    ),
    "Heavier": (
        "Share of the estimates that are called heavier than the Gaussian null, "
        "nominally at most 0.05 for the Gaussian law.",
        lambda cell, record: f"{record['heavier']:.2f}",
    ),
    "Fit": (
        "Share of the tests of fit with a p-value of at most 0.05.",
        lambda cell, record: f"{record['rejected']:.2f}",
    ),
}


def tables(measured: Sequence[tuple[Cell, Record]]) -> list[str]:
    """One table per method and quantity, laws against settings and sizes."""
    parts = []
    for title, (explanation, show) in SHOWN.items():
        parts += [f"## {title}", explanation]
        for method in LAWS:
            chosen = [
                (cell, record) for cell, record in measured if cell.method == method
            ]
            parts += [f"`{method}`:", _table(chosen, show)]
    return parts


def _table(chosen: Sequence[tuple[Cell, Record]], show: Show) -> str:
    columns = list(
        dict.fromkeys(
            (setting, cell.n)
            for setting in SETTINGS
            for cell, _ in chosen
            if cell.setting == setting
        )
    )
    rows: dict[str, dict[tuple[str, int], str]] = {}
    for cell, record in chosen:
        shown = show(cell, record)
        rows.setdefault(str(cell.law), {})[cell.setting, cell.n] = shown
    return markdown.table(
        ["law", *(f"{setting}: {n:,}" for setting, n in columns)],
        [[law, *(row[column] for column in columns)] for law, row in rows.items()],
    )


def study(output: Path, repeats: int) -> None:
    """Measures all cells, and writes the page and the records.

    Raises:
      UserError: not writable.
    """
    common.check_writable(output)
    partial = output.with_name(f"{output.name}.partial.jsonl")
    measured = run(cells(), repeats, partial)
    explanation = (
        f"`estimate_tail` with its defaults on {repeats} sets of samples a "
        "number. Columns: what the samples go over, the coefficient of their "
        "autoregression, and how many there are. Stable and Gaussian series are linear "
        "autoregressions; Pareto and Student-t series have the ranks of a Gaussian one."
    )
    records = [record for _, record in measured]
    common.write(output, "Tail estimators", [explanation, *tables(measured)], records)
    partial.unlink()
