"""The tables of a diagnosis: by layer, by estimator, and by point of training."""

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from optax_heavytail.diagnostics import Diagnosis, LayerDiagnosis, TailEstimate

ByStep = Sequence[tuple[int, Diagnosis]]


class Column(NamedTuple):
    """A column of the table of layers."""

    heading: str
    cell: Callable[[LayerDiagnosis], str]
    is_number: bool = True


COLUMNS = (
    Column("verdict", lambda x: _label(x), is_number=False),
    Column("coordinates", lambda x: f"{x.noise.size:,}"),
    Column("share of noise", lambda x: _percent(x.noise_share)),
    Column("signal to noise", lambda x: signal(x)),
    Column("norm: index", lambda x: _index(x.norms.get("hill"))),
    Column("Gaussian", lambda x: _null(x.norms.get("hill"))),
    Column("fit, p", lambda x: _p_value(x.norms.get("hill"))),
    Column("single coordinates: index", lambda x: _index(x.entries)),
    Column("by quarter, quiet to loud", lambda x: _groups(x)),
    Column("within an iteration: index", lambda x: _index(x.coordinates)),
)


def layers(diagnosis: Diagnosis) -> str:
    """A row for each layer, the last one for all of them."""
    headings = [("layer", False), *((c.heading, c.is_number) for c in COLUMNS)]
    return _table(
        headings,
        [
            [layer.noise.name, *(column.cell(layer) for column in COLUMNS)]
            for layer in (*diagnosis.layers, diagnosis.whole)
        ],
    )


def reasons(diagnosis: Diagnosis) -> str:
    """What stands behind each verdict, and what would change it."""
    rows = [
        [layer.noise.name, layer.verdict.text, layer.verdict.change]
        for layer in (*diagnosis.layers, diagnosis.whole)
    ]
    headings = [("layer", False), ("finding", False), ("what would change it", False)]
    return (
        "<details><summary>Each verdict in words</summary>\n"
        f"{_table(headings, rows)}</details>"
    )


def estimators(whole: LayerDiagnosis) -> str:
    """A row for each estimate of all layers as one vector."""
    estimates: dict[str, TailEstimate | None] = {
        f"{name}, across iterations": e for name, e in whole.norms.items()
    }
    estimates["hill, single coordinates across iterations"] = whole.entries
    estimates["hill, within an iteration"] = whole.coordinates
    headings = ["estimator", "samples", "k", "index", "Gaussian", "p of null", "fit, p"]
    rows = [
        [
            name.replace("_", " "),
            f"{estimate.num_samples:,}",
            str(estimate.k or "all"),
            _index(estimate),
            _null(estimate),
            _number(estimate.null_p_value, ".3f"),
            _p_value(estimate),
        ]
        for name, estimate in estimates.items()
        if estimate is not None
    ]
    if not rows:
        return f"<p>None: {escape(whole.verdict.text)}.</p>"
    return _table([(heading, i > 0) for i, heading in enumerate(headings)], rows)


def steps(by_step: ByStep) -> list[str]:
    """A row for each point of training, if there are several."""
    if len(by_step) == 1:
        return []
    rows = []
    for step, diagnosis in by_step:
        heavy = [x.noise.name for x in diagnosis.layers if x.verdict.label == "heavy"]
        rows.append(
            [
                f"{step:,}",
                _index(diagnosis.whole.norms.get("hill")),
                _index(diagnosis.whole.entries),
                _label(diagnosis.whole),
                f"{len(heavy)} of {len(diagnosis.layers)}",
                diagnosis.recommendation.kind,
            ]
        )
    headings = [
        ("step", False),
        ("norm: index", True),
        ("single coordinates: index", True),
        ("verdict", False),
        ("heavy layers", True),
        ("recommendation", False),
    ]
    return ["<h2>In the course of training</h2>", _table(headings, rows)]


def signal(layer: LayerDiagnosis) -> str:
    """The signal-to-noise ratio of a layer."""
    value = layer.noise.signal_to_noise
    if not layer.norms:
        return "-"
    return f"{value:.2g}" if value else "below what can be measured"


def _table(headings: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first cells are headings; the flags are for numbers."""
    names = ("number" if number else "words" for _, number in headings)
    kinds = [f' class="{name}"' for name in names]
    head = "".join(
        f'<th scope="col"{kind}>{escape(text)}</th>'
        for (text, _), kind in zip(headings, kinds, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(
            f"<td{kind}>{escape(cell)}</td>"
            for cell, kind in zip(rest, kinds[1:], strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    return (
        '<div class="wide"><table class="results">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _index(estimate: TailEstimate | None) -> str:
    if estimate is None:
        return "-"
    if estimate.index is None:
        return f"- ({(estimate.reason or '').rstrip('.')})"
    low, high = (_number(x, ".3g") for x in (estimate.low, estimate.high))
    return f"{estimate.index:.3g} [{low}, {high}]"


def _null(estimate: TailEstimate | None) -> str:
    if estimate is None or estimate.null_low is None:
        return "-"
    low, high = estimate.null_low, estimate.null_high
    return f"{_number(low, '.3g')} to {_number(high, '.3g')}"


def _p_value(estimate: TailEstimate | None) -> str:
    return "-" if estimate is None else _number(estimate.p_value, ".2f")


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _percent(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 else f"{value:.0e}"


def _groups(layer: LayerDiagnosis) -> str:
    if not layer.groups:
        return "-"
    indices = " ".join(f"{group.index:.1f}" for group in layer.groups)
    return f"{indices} (Gaussian {layer.groups[0].gaussian_index:.1f})"


def _label(layer: LayerDiagnosis) -> str:
    verdict = layer.verdict
    if verdict.confidence is None:
        return verdict.text.partition(":")[0]
    spiky = ", in a few coordinates at a time" if layer.is_spiky else ""
    text = f"{verdict.label} ({verdict.confidence:.1%})"
    return text + (spiky if verdict.label == "heavy" else "")
