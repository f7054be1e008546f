"""The diagnosis as one HTML page that needs no other file."""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from experiments import diagnosis_figures, page
from experiments.diagnosis_figures import Picture
from optax_heavytail.diagnostics import Diagnosis, LayerDiagnosis, TailEstimate

Found = Sequence[tuple[int, Diagnosis]]


class Column(NamedTuple):
    """A column of the table of layers."""

    heading: str
    cell: Callable[[LayerDiagnosis], str]
    is_number: bool = True


COLUMNS = (
    Column("verdict", lambda x: _label(x), is_number=False),
    Column("coordinates", lambda x: f"{x.noise.size:,}"),
    Column("share of noise", lambda x: _percent(x.noise_share)),
    Column("signal to noise", lambda x: _signal(x)),
    Column("norm: index", lambda x: _index(x.norms.get("hill"))),
    Column("Gaussian", lambda x: _null(x.norms.get("hill"))),
    Column("fit, p", lambda x: _p_value(x.norms.get("hill"))),
    Column("single coordinates: index", lambda x: _index(x.entries)),
    Column("by quarter, quiet to loud", lambda x: _groups(x)),
    Column("within an iteration: index", lambda x: _index(x.coordinates)),
)


def title(config: Mapping[str, Any], found: Found) -> str:
    """Names the model and the point of its training."""
    step = found[-1][0]
    when = f"after step {step:,}" if step else "before training"
    return f"Gradient noise of {page.model_name(config)} {when}"


def render(
    config: Mapping[str, Any],
    found: Found,
    facts: Mapping[str, str],
    more: Sequence[Picture] = (),
    more_facts: Mapping[str, str] | None = None,
) -> str:
    """Returns the page; every text in it is escaped.

    Args:
      config: the resolved one.
      found: diagnoses by step; the last one is shown whole.
      facts: where the numbers come from.
      more: pictures of the curvature.
      more_facts: and what they show, in words.
    """
    diagnosis = found[-1][1]
    heading = escape(title(config, found))
    parts = [
        f"<h1>{heading}</h1>",
        f'<p class="lead">{escape(diagnosis.verdict)}</p>',
        "<h2>What to do</h2>",
        *_recommendation(diagnosis),
        "<h2>What would change the verdict</h2>",
        f"<p>{escape(diagnosis.whole.verdict.change)}</p>",
        "<h2>The noise of all layers</h2>",
        _reading(diagnosis),
        *_figures(_pictures(found)),
        *_curvature(more, more_facts or {}),
        "<h2>Layers</h2>",
        _explanation(),
        _layers(diagnosis),
        _reasons(diagnosis),
        "<h2>Every estimator, of all layers as one vector</h2>",
        _estimators(diagnosis.whole),
        *_steps(found),
        "<h2>Where the numbers come from</h2>",
        page.facts(facts),
        "<details><summary>Full config</summary>",
        f"<pre>{escape(json.dumps(config, indent=2, sort_keys=True))}</pre>",
        "</details>",
    ]
    return page.document(heading, parts)


def _recommendation(diagnosis: Diagnosis) -> list[str]:
    found = diagnosis.recommendation
    parts = [f"<p>{escape(found.text)}</p>"]
    if found.clips:
        rows = {
            name: f"{clip.scope}, {clip.threshold:g}"
            for name, clip in found.clips.items()
        }
        parts.append(page.facts({"layer": "scope, threshold", **rows}))
    if found.code is not None:
        parts.append(f"<pre>{escape(found.code)}</pre>")
    return parts


def _reading(diagnosis: Diagnosis) -> str:
    noise = diagnosis.whole.noise
    return (
        f"<p>{len(noise.norms):,} batches, the gradient of each against the mean of "
        "all, as one vector: the noise is the difference. Its signal-to-noise ratio is "
        f"{escape(_signal(diagnosis.whole))}.</p>"
    )


def _pictures(found: Found) -> list[Picture]:
    diagnosis = found[-1][1]
    drawn = []
    if diagnosis.whole.has_index:
        drawn += diagnosis_figures.pictures(diagnosis.whole)
    if any(layer.has_index for layer in diagnosis.layers):
        drawn.append(diagnosis_figures.layers_picture(diagnosis))
    if len(found) > 1:
        drawn.append(diagnosis_figures.course_picture(found))
    return drawn


def _figures(pictures: Sequence[Picture]) -> list[str]:
    return [
        '<div class="curves">',
        *(
            f'<figure class="{"dense" if p.is_dense else "loose"}">'
            f"<figcaption>{escape(p.caption)}</figcaption>\n{p.svg}</figure>"
            for p in pictures
        ),
        "</div>",
    ]


def _curvature(pictures: Sequence[Picture], facts: Mapping[str, str]) -> list[str]:
    if not pictures and not facts:
        return []
    return ["<h2>Curvature</h2>", page.facts(facts), *_figures(pictures)]


def _explanation() -> str:
    return (
        "<p>A tail index a means that sizes beyond x come with a probability that "
        "falls as x to the power -a: below 2 there is no variance, and averages over "
        "batches do not settle. In brackets the interval, and beside it what Gaussian "
        "noise of the same size and dependence would have. The norm and the single "
        "coordinates are followed across iterations; within an iteration the "
        "coordinates are compared with each other, each in units of its own typical "
        "size.</p>"
    )


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


def _layers(diagnosis: Diagnosis) -> str:
    headings = [("layer", False), *((c.heading, c.is_number) for c in COLUMNS)]
    return _table(
        headings,
        [
            [layer.noise.name, *(column.cell(layer) for column in COLUMNS)]
            for layer in (*diagnosis.layers, diagnosis.whole)
        ],
    )


def _reasons(diagnosis: Diagnosis) -> str:
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


def _estimators(whole: LayerDiagnosis) -> str:
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


def _steps(found: Found) -> list[str]:
    """A row for each point of training, if there are several."""
    if len(found) == 1:
        return []
    rows = []
    for step, diagnosis in found:
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


def _signal(layer: LayerDiagnosis) -> str:
    value = layer.noise.signal_to_noise
    if not layer.norms:
        return "-"
    return f"{value:.2g}" if value else "below what can be measured"


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
