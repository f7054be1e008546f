"""A diagnosis in plain text, on a page."""

import textwrap
from collections.abc import Sequence

from optax_heavytail.diagnostics.noise._layer import LayerDiagnosis
from optax_heavytail.diagnostics.noise._recommend import Recommendation
from optax_heavytail.diagnostics.tails._tail_estimate import TailEstimate

_WIDTH = 88
_MOST_LAYERS = 20


def page(
    verdict: str,
    recommendation: Recommendation,
    layers: Sequence[LayerDiagnosis],
    whole: LayerDiagnosis,
    confidence: float,
) -> str:
    """Verdict, recommendation, and the layers with the most noise."""
    parts = [_wrapped(verdict), _wrapped(recommendation.text)]
    if recommendation.code is not None:
        parts.append(textwrap.indent(recommendation.code.rstrip(), "    "))
    parts.append(_table(layers, whole, confidence))
    return "\n\n".join(parts)


def _table(
    layers: Sequence[LayerDiagnosis], whole: LayerDiagnosis, confidence: float
) -> str:
    shown = sorted(layers, key=lambda layer: -layer.noise_share)[:_MOST_LAYERS]
    known = not whole.noise.num_nonfinite
    rows = [_row(layer, known) for layer in (*shown, whole)]
    rows.insert(0, ["size", "noise", "tail index", "verdict", "layer"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = (True, True, False, False, False)
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    if more := len(layers) - len(shown):
        lines.insert(-1, f"and {more} more with less noise, in `layers`")
    about = (
        f"Of {len(whole.noise.norms):,} batches. The tail index is that of the norm, "
        f"with an interval of {confidence:.0%} in brackets."
    )
    return "\n".join([*lines, "", _wrapped(about)])


def _row(layer: LayerDiagnosis, shares_are_known: bool) -> list[str]:
    return [
        f"{layer.noise.size:,}",
        f"{layer.noise_share:.1%}" if shares_are_known else "-",
        _index(layer.norms.get("hill")),
        layer.verdict.label,
        layer.noise.name,
    ]


def _index(estimate: TailEstimate | None) -> str:
    if estimate is None or estimate.index is None:
        return "-"
    return f"{estimate.index:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False, break_long_words=False)
