"""What a search leaves: pictures, a table, and a page with the line to paste."""

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common import files, json_files, markdown, provenance
from experiments.reporting import figures, page
from experiments.rule_search.search import Candidate, Search, Trace
from experiments.tasks import problems
from optax_heavytail import rules

FILES = (
    "rules.md",
    "progress.png",
    "front.png",
    "results.json",
    "best.txt",
    "report.html",
)
_METHODS = ("evolution", "random", "enumerate", "given")


class Found(NamedTuple):
    """The end of a search."""

    best: list[Candidate]  # best first, by the second tier
    anchors: dict[str, Candidate]
    refused: dict[str, str]  # text: why, of what looked good and was not
    held: dict[int, list[tuple[int, float]]]  # of the first method's seeds: at, score


def check_targets(workdir: Path) -> None:
    """Refuses, before the work, files that could not be written after it.

    Raises:
      UserError: a folder is in the place of one, or it is not writable.
    """
    for name in FILES:
        files.check_target(workdir / name)


def write(search: Search, traces: Sequence[Trace], found: Found) -> str:
    """Writes everything into the work directory; returns the table."""
    folder = search.workdir
    rows = table_rows(search, found)
    headings = ("rule", "nodes", "state", "rate", "search", "second", "holdout", "is")
    table = markdown.table(headings, rows)
    summary = _summary(search, traces, found)
    text = f"# Rules\n\n{summary}\n\n{table}\n\n{_refusals(found)}"
    files.write_atomically(folder / "rules.md", text)
    files.write_atomically(folder / "progress.png", progress_png(traces, found))
    files.write_atomically(folder / "front.png", front_png(search, found))
    results = {
        "best": [_record(search, candidate) for candidate in found.best],
        "anchors": {
            name: _record(search, candidate)
            for name, candidate in found.anchors.items()
        },
        "traces": [trace._asdict() for trace in traces],
        "held": {str(seed): points for seed, points in found.held.items()},
    }
    files.write_atomically(folder / "results.json", json_files.as_line(results))
    if found.best:
        files.write_atomically(folder / "best.txt", f"{found.best[0].text}\n")
    files.write_atomically(folder / "report.html", _page(search, summary, rows, found))
    return table


def _record(search: Search, candidate: Candidate) -> dict[str, Any]:
    tiers = [t for t in (1, 2, 3) if (t, candidate.word) in search.archive]
    return {
        "rule": candidate.text,
        "fingerprint": candidate.word,
        "fitness": {str(t): search.fitness(t, candidate.word) for t in tiers},
        "rate": _rate(search, candidate),
    }


def _rate(search: Search, candidate: Candidate) -> float | None:
    rates = search.archive[(2, candidate.word)]["rates"]
    return float(np.exp(np.mean(np.log(rates)))) if rates else None


def table_rows(search: Search, found: Found) -> list[list[str]]:
    """Found rules and anchors, best first."""
    named = {c.word: name for name, c in found.anchors.items()}
    known = {
        rules.fingerprint(k.text, vocabulary=k.vocabulary): name
        for name, k in rules.KNOWN.items()
    }
    everyone = {c.word: c for c in (*found.best, *found.anchors.values())}
    rows = []
    for word, candidate in everyone.items():
        scores = [
            search.fitness(t, word) if (t, word) in search.archive else float("nan")
            for t in (1, 2, 3)
        ]
        rate = _rate(search, candidate)
        nodes, arrays = rules.cost(rules.decode(candidate.program))
        cells = [f"`{candidate.text}`", str(nodes), str(arrays)]
        cells.append("" if rate is None else f"{rate:.2g}")
        cells += [f"{score:.3f}" for score in scores]
        rows.append((scores[1], [*cells, named.get(word) or known.get(word) or ""]))
    return [cells for _, cells in sorted(rows, key=lambda row: row[0])]


def _summary(search: Search, traces: Sequence[Trace], found: Found) -> str:
    lines = [
        f"`{provenance.command()}`, commit {provenance.commit()}, "
        f"{provenance.hardware()}.",
        "",
        "The lower a score, the better: a mean of logarithms of validation losses, "
        "each at its best rate, and 0.002 for each node. Tier 1 is "
        f"{', '.join(problems.FIRST)}; tier 2 {', '.join(problems.SECOND)}; the "
        f"holdout, which nothing was chosen by, {', '.join(problems.HOLDOUT)}.",
        "",
    ]
    for trace in traces:
        best = min(trace.fitness, default=np.nan)
        lines.append(
            f"- {trace.method}, seed {trace.seed}: {len(trace.words)} rules in "
            f"{trace.proposals} proposals, best {best:.3f}"
        )
    if found.best:
        own = search.fitness(3, found.best[0].word)
        rival = min(found.anchors.values(), key=lambda c: search.fitness(3, c.word))
        lines += [
            "",
            f"The best of the search has {own:.3f} in the holdout, and the best "
            f"anchor, `{rival.text}`, {search.fitness(3, rival.word):.3f}.",
        ]
    return "\n".join(lines)


def _refusals(found: Found) -> str:
    if not found.refused:
        return "Nothing of the best was refused in float64.\n"
    rows = [[f"`{text}`", why] for text, why in found.refused.items()]
    return f"Refused:\n\n{markdown.table(('rule', 'why'), rows)}\n"


def progress_png(traces: Sequence[Trace], found: Found) -> bytes:
    """Best so far against rules evaluated; below it what the holdout says."""
    figure = Figure(figsize=(8.0, 6.4), dpi=150, facecolor="white", layout="tight")
    above, below = figure.subplots(2, 1, sharex=True)
    for method in _METHODS:
        curves = [
            list(itertools.accumulate(trace.fitness, min))
            for trace in traces
            if trace.method == method and trace.fitness
        ]
        if not curves:
            continue
        color = figures.color(_METHODS.index(method))
        shortest = min(map(len, curves))
        stack = np.array([curve[:shortest] for curve in curves])
        steps = np.arange(1, shortest + 1)
        above.plot(steps, stack.mean(axis=0), color=color, label=method)
        above.fill_between(
            steps, stack.min(axis=0), stack.max(axis=0), color=color, alpha=0.15, lw=0
        )
    for seed, points in found.held.items():
        at, scores = zip(*points, strict=True)
        below.plot(
            at,
            scores,
            marker=".",
            color=figures.color(0),
            alpha=0.7,
            label=f"seed {seed}",
        )
    above.set_ylabel("best score of tier 1", color=figures.INK)
    below.set_ylabel("its score in the holdout", color=figures.INK)
    figures.style(above, "")
    figures.style(below, "distinct rules evaluated")
    figures.legend(above)
    if len(found.held) > 1:
        figures.legend(below)
    return figures.png(figure)


def front_png(search: Search, found: Found) -> bytes:
    """The score of tier 1 against nodes: everything, the front, the anchors."""
    figure = Figure(figsize=(8.0, 5.2), dpi=150, facecolor="white", layout="tight")
    axes = figure.subplots()
    records = [
        r for r in search.archive.records if r["tier"] == 1 and r["refused"] is None
    ]
    nodes = np.array([r["nodes"] for r in records])
    scores = np.array([r["fitness"] for r in records])
    axes.scatter(nodes, scores, s=8, color=figures.MUTED, alpha=0.35, lw=0)
    front = [
        min((r for r in records if r["nodes"] == n), key=lambda r: r["fitness"])
        for n in sorted(set(nodes.tolist()))
    ]
    lowest = list(itertools.accumulate([r["fitness"] for r in front], min))
    kept = [r for r, low in zip(front, lowest, strict=True) if r["fitness"] == low]
    axes.plot(
        [r["nodes"] for r in kept],
        [r["fitness"] for r in kept],
        marker="o",
        color=figures.color(0),
        label="the front",
    )
    _mark(axes, search, found.anchors)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("score of tier 1", color=figures.INK)
    figures.style(axes, "nodes of the rule")
    figures.legend(axes)
    return figures.png(figure)


def _mark(axes: Axes, search: Search, anchors: Mapping[str, Candidate]) -> None:
    """Anchors with their names, which are moved up where they would lie on others."""
    low, high = axes.get_ylim()
    color, free = figures.color(1), -np.inf
    places = {
        name: (
            search.fitness(1, candidate.word),
            rules.decode(candidate.program).nodes,
        )
        for name, candidate in anchors.items()
    }
    for name, (score, nodes) in sorted(places.items(), key=lambda pair: pair[1]):
        axes.plot(nodes, score, marker="D", ls="", color=color)
        height = max(score, free)
        axes.annotate(
            f"  {name}",
            (nodes, height),
            color=color,
            fontsize=8,
            va="center",
            annotation_clip=False,
        )
        free = height + 0.04 * (high - low)


def _page(search, summary, rows, found) -> str:
    head = "".join(
        f"<th>{name}</th>"
        for name in ("rule", "nodes", "state", "rate", "1", "2", "holdout", "is")
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(cell.strip('`'))}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    parts = ["<h1>A search for update rules</h1>"]
    parts += [f"<p>{escape(line)}</p>" for line in summary.splitlines() if line]
    if found.best:
        best = found.best[0]
        rate = _rate(search, best) or 0.0
        code = (
            "from optax_heavytail import rules\n\n"
            f"tx = optax.chain(\n    rules.transform({best.text!r}),\n"
            f"    optax.scale_by_learning_rate({rate:.2g}),\n)"
        )
        parts += ["<h2>To paste</h2>", f"<pre>{escape(code)}</pre>"]
    parts += [
        "<h2>Rules</h2>",
        f'<div class="wide"><table class="results"><tr>{head}</tr>{body}</table></div>',
        '<h2>Pictures</h2><p><img src="progress.png" width="720"></p>',
        '<p><img src="front.png" width="720"></p>',
    ]
    return page.document("A search for update rules", parts)
