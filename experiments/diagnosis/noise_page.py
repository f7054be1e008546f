"""The diagnosis as one HTML page that needs no other file."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from experiments.diagnosis import noise_figures, noise_tables
from experiments.diagnosis.noise_figures import Picture
from experiments.diagnosis.noise_tables import ByStep
from experiments.reporting import page
from optax_heavytail.diagnostics import Diagnosis


def title(config: Mapping[str, Any], by_step: ByStep) -> str:
    """Names the model and the point of its training."""
    step = by_step[-1][0]
    when = f"after step {step:,}" if step else "before training"
    return f"Gradient noise of {page.model_name(config)} {when}"


def render(
    config: Mapping[str, Any],
    by_step: ByStep,
    facts: Mapping[str, str],
    more: Sequence[Picture] = (),
    more_facts: Mapping[str, str] | None = None,
) -> str:
    """Returns the page; every text in it is escaped.

    Args:
      config: the resolved one.
      by_step: diagnoses by step; the last one is shown whole.
      facts: where the numbers come from.
      more: pictures of the curvature.
      more_facts: and what they show, in words.
    """
    diagnosis = by_step[-1][1]
    heading = escape(title(config, by_step))
    parts = [
        f"<h1>{heading}</h1>",
        f'<p class="lead">{escape(diagnosis.verdict)}</p>',
        "<h2>What to do</h2>",
        *_recommendation(diagnosis),
        "<h2>What would change the verdict</h2>",
        f"<p>{escape(diagnosis.whole.verdict.change)}</p>",
        "<h2>The noise of all layers</h2>",
        _reading(diagnosis),
        *_figures(_pictures(by_step)),
        *_curvature(more, more_facts or {}),
        "<h2>Layers</h2>",
        _explanation(),
        noise_tables.layers(diagnosis),
        noise_tables.reasons(diagnosis),
        "<h2>Every estimator, of all layers as one vector</h2>",
        noise_tables.estimators(diagnosis.whole),
        *noise_tables.steps(by_step),
        "<h2>Where the numbers come from</h2>",
        page.facts(facts),
        "<details><summary>Full config</summary>",
        f"<pre>{escape(json.dumps(config, indent=2, sort_keys=True))}</pre>",
        "</details>",
    ]
    return page.document(heading, parts)


def _recommendation(diagnosis: Diagnosis) -> list[str]:
    advice = diagnosis.recommendation
    parts = [f"<p>{escape(advice.text)}</p>"]
    if advice.clips:
        rows = {
            name: f"{clip.scope}, {clip.threshold:g}"
            for name, clip in advice.clips.items()
        }
        parts.append(page.facts({"layer": "scope, threshold", **rows}))
    if advice.code is not None:
        parts.append(f"<pre>{escape(advice.code)}</pre>")
    return parts


def _reading(diagnosis: Diagnosis) -> str:
    noise = diagnosis.whole.noise
    return (
        f"<p>{len(noise.norms):,} batches, the gradient of each against the mean of "
        "all, as one vector: the noise is the difference. Its signal-to-noise ratio is "
        f"{escape(noise_tables.signal(diagnosis.whole))}.</p>"
    )


def _pictures(by_step: ByStep) -> list[Picture]:
    diagnosis = by_step[-1][1]
    drawn = []
    if diagnosis.whole.has_index:
        drawn += noise_figures.pictures(diagnosis.whole)
    if any(layer.has_index for layer in diagnosis.layers):
        drawn.append(noise_figures.layers_picture(diagnosis))
    if len(by_step) > 1:
        drawn.append(noise_figures.course_picture(by_step))
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
