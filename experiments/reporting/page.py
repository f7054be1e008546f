"""The report as one HTML page that needs no other file."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.reporting import figures, tables
from experiments.reporting.tables import Column, Row
from experiments.runs.reading import Run

STYLE = Path(__file__).with_name("report.css")


def title(runs: Sequence[Run]) -> str:
    """Names the model and how many optimizers trained it."""
    plural = "" if len(runs) == 1 else "s"
    return f"{model_name(runs[0].config)} under {len(runs)} optimizer{plural}"


def model_name(config: Mapping[str, Any]) -> str:
    """Names the model of a run."""
    name, model = config["report"]["model"], config["model"]
    layers = f" with {model['num_layers']} layers" if "num_layers" in model else ""
    return f"{name}{layers} of width {model['width']}"


def render(
    config: Mapping[str, Any],
    runs: Sequence[Run],
    rows: Sequence[Row],
    baselines: Mapping[str, float],
) -> str:
    """Returns the page; every text in it is escaped."""
    heading = escape(title(runs))
    summary = tables.summary(rows, baselines, runs[0].loss_unit)
    parts = [
        f"<h1>{heading}</h1>",
        f'<p class="lead">{escape(summary)}</p>',
        '<div class="curves">',
        _figure("eval", runs, baselines),
        _figure("train", runs, baselines),
        "</div>",
        "<h2>Results</h2>",
        _results(runs, rows, baselines),
        "<h2>Settings</h2>",
        facts(_settings(config, runs)),
        "<h2>Versions and hardware</h2>",
        facts(_environment(runs)),
        "<h2>Command</h2>",
        *(f"<pre>{escape(line)}</pre>" for line in _distinct(runs, "command")),
        "<details><summary>Full config</summary>",
        f"<pre>{escape(json.dumps(config, indent=2, sort_keys=True))}</pre>",
        "</details>",
    ]
    return document(heading, parts)


def document(heading: str, parts: Sequence[str]) -> str:
    """A whole page of escaped parts."""
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _figure(
    kind: figures.Kind, runs: Sequence[Run], baselines: Mapping[str, float]
) -> str:
    caption = escape(figures.caption(kind, runs))
    svg = figures.loss_svg(kind, runs, baselines)
    return f"<figure><figcaption>{caption}</figcaption>\n{svg}</figure>"


def _results(
    runs: Sequence[Run], rows: Sequence[Row], baselines: Mapping[str, float]
) -> str:
    columns = tables.columns(baselines, runs[0].accuracy_name)
    colors = {run.name: figures.color(i) for i, run in enumerate(runs)}
    head = "".join(
        f'<th scope="col"{_class(column)}>{escape(column.heading)}</th>'
        for column in columns
    )
    body = "\n".join(
        f"<tr>{_first_cell(row, columns[0], colors[row['optimizer']])}"
        f"{''.join(_cell(row, column) for column in columns[1:])}</tr>"
        for row in rows
    )
    return (
        '<div class="wide"><table class="results">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _first_cell(row: Row, column: Column, color: str) -> str:
    dot = f'<span class="dot" style="background: {figures.PAGE_COLORS[color]}"></span>'
    return f'<th scope="row">{dot}{escape(column.cell(row))}</th>'


def _cell(row: Row, column: Column) -> str:
    value, shown = column.value(row), escape(column.cell(row))
    if column.heading == "transform":
        parts = (f"<span>{part}</span>" for part in shown.split(" "))
        shown = f"<code>{' '.join(parts)}</code>"
    if column.spec and value is not None:
        shown = f'<data value="{value!r}" title="{value!r}">{shown}</data>'
    return f"<td{_class(column)}>{shown}</td>"


def _class(column: Column) -> str:
    return ' class="number"' if column.spec else ""


def _settings(comparison: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, str]:
    """What all the runs share, and which optimizers of the config are not here."""
    config = runs[0].config
    training = {k: v for k, v in config.items() if not isinstance(v, dict)}
    if "sequence_length" in config["data"]:
        training["sequence_length"] = config["data"]["sequence_length"]
    facts = {"training": listing(training), "model": listing(config["model"])}
    for final in (run.final for run in runs):
        if final:
            facts["parameters"] = f"{final['parameters']:,}"
            facts |= {k: _number(v) for k, v in final["data"].items()}
            break
    names = {run.name for run in runs}
    others = [name for name in comparison["optimizers"] if name not in names]
    if others:
        facts["optimizers of the config that were not run"] = ", ".join(others)
    return facts


def _environment(runs: Sequence[Run]) -> dict[str, str]:
    hardware = "; ".join(_distinct(runs, "hardware"))
    facts = {"hardware": hardware or "not recorded: every run was interrupted"}
    for final in (run.final for run in runs):
        if final:
            pairs = (f"{name} {version}" for name, version in final["versions"].items())
            facts["versions"] = ", ".join(pairs)
            break
    return facts


def _distinct(runs: Sequence[Run], key: str) -> list[str]:
    """The different values in the runs' final records."""
    return list(dict.fromkeys(run.final[key] for run in runs if run.final))


def facts(values: Mapping[str, str]) -> str:
    """A table of names and values."""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(_words(name))}</th><td>{escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="facts"><tbody>\n{rows}\n</tbody></table>'


def listing(values: Mapping[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{_words(name)} {_number(v)}" for name, v in values.items())


def _number(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
