"""Tables and the figure of the study of the search for rules."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import markdown
from experiments.reporting import figures
from experiments.rule_search import proposals
from experiments.studies import comparison, intervals, unseen
from experiments.studies.intervals import Difference
from experiments.studies.study import Record

METHODS = ("evolution", "random")
GIVEN = len(proposals.WARM_START)  # rules that evolution starts with
MARKS = (50, 100, 150, 200)  # rules, at which both are compared
BASELINE = "adamw"
RANGE = 1.0  # of the scores in the figure: the worst are far above


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    return {
        "language": _language(_only(records, "language")),
        "bits": _bits(_only(records, "language")),
        "cheats": _cheats(_only(records, "cheats")),
        "speed": _speed(_all(records, "speed")),
        "methods": _methods(_all(records, "search")),
        "found": _found(_all(records, "search")),
        **{f"unseen_{i}": block for i, block in enumerate(_unseen(records), 1)},
    }


def _all(records: Sequence[Record], measure: str) -> list[dict[str, Any]]:
    return [r["result"] for r in records if r["settings"]["measure"] == measure]


def _only(records: Sequence[Record], measure: str) -> dict[str, Any]:
    (result,) = _all(records, measure)
    return result


def _language(result: dict[str, Any]) -> str:
    rows = [
        ["published rules that are read, printed and computed", result["published"]],
        ["known rules, likewise", result["known"]],
        ["random rules that are read as they were printed", result["round_trips"]],
        ["random trees beside them that are no rules", result["no_rules"]],
    ]
    return markdown.table(["", "number"], [[a, f"{b:,}"] for a, b in rows])


def _bits(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(f"{found[way]:.1e}" if found[way] else "0" for way in ("eager", "jit")),
        ]
        for name, found in result["differences"].items()
    ]
    return markdown.table(["rule", "without jit", "with jit"], rows)


def _cheats(result: dict[str, Any]) -> str:
    rows = [
        [name, f"`{found['rule']}`", found["refused"] or "not refused"]
        for name, found in result.items()
    ]
    return markdown.table(["", "rule", "refused for"], rows)


def _speed(results: Sequence[dict[str, Any]]) -> str:
    times = {
        name: np.array([result[name] for result in results])
        for name in ("interpreted", "compiled_each", "compiling_once")
    }
    ratio = np.log(times["compiled_each"] / times["interpreted"])
    rows = [
        ["interpreted", _mean(60 / times["interpreted"], ".0f"), "1"],
        [
            "compiled each",
            _mean(60 / times["compiled_each"], ".1f"),
            intervals.with_interval(
                [float(np.exp(x)) for x in intervals.mean_interval(ratio)], ".0f"
            ),
        ],
    ]
    once = _mean(times["compiling_once"], ".1f")
    rows.append(["compiling the interpreter once", f"{once} s", ""])
    headings = ["way", "rules a minute of processor time", "times as long"]
    return markdown.table(headings, rows)


def _mean(values: np.ndarray, form: str) -> str:
    return intervals.with_interval(intervals.mean_interval(values), form)


def _curves(
    results: Sequence[dict[str, Any]], method: str, first: int = 0
) -> np.ndarray:
    """(seeds, rules), the best score so far, of rules from the ``first`` on."""
    scores = np.array([result["scores"][method] for result in results])
    return np.minimum.accumulate(scores[:, first:], axis=1)


def _methods(results: Sequence[dict[str, Any]]) -> str:
    rows: list[list[Any]] = []
    for first in (0, GIVEN):
        for mark in MARKS:
            at = [_curves(results, m, first)[:, mark - first - 1] for m in METHODS]
            rows.append(
                [
                    f"{mark}, without the first {first}" if first else f"{mark}",
                    *(f"{x.mean():.3f} ± {x.std(ddof=1):.3f}" for x in at),
                    Difference(at[0] - at[1], "+.3f"),
                ]
            )
    return intervals.table(["rules", *METHODS, "evolution - random"], rows)


def _found(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for seed, result in enumerate(results):
        best = result["best"]
        rows.append(
            [
                f"{seed}",
                f"`{best['rule']}`",
                f"{best['nodes']}",
                f"{best['first']:.3f}",
                f"{best['second']:.3f}",
                f"{len(best['refused'])}",
                *(f"{result['proposed'][method]:,}" for method in METHODS),
            ]
        )
    headings = ["search", "best rule", "nodes", "tier 1", "tier 2"]
    headings += ["unlike in float64", *(f"proposals of {m}" for m in METHODS)]
    return markdown.table(headings, rows)


def _unseen(records: Sequence[Record]) -> list[str]:
    return [_on(records, problem) for problem in unseen.PROBLEMS]


def _on(records: Sequence[Record], problem: str) -> str:
    """Rivals and found rules on a problem, the seeds paired with the baseline's."""
    results = {
        record["settings"]["optimizer"]: record["result"]
        for record in records
        if record["settings"]["measure"] == "rival"
        and record["settings"]["problem"] == problem
    }
    searches = [result["unseen"][problem] for result in _all(records, "search")]
    results |= {f"rule of search {seed}": r for seed, r in enumerate(searches)}
    base = np.array(results[BASELINE]["losses"])
    rows: list[list[Any]] = []
    for name, result in results.items():
        losses = np.array(result["losses"])
        versus = "" if name == BASELINE else comparison.difference(losses, base)
        accuracy = f"{np.mean(result['accuracies']):.1%}"
        named = comparison.named(name, result)
        rate = f"{result['rate']:.3g}"
        rows.append([named, rate, comparison.spread(losses), versus, accuracy])
    means = np.array([np.mean(np.subtract(r["losses"], base)) for r in searches])
    rows.append(["mean of the searches", "", "", Difference(means, "+.3f"), ""])
    headings = ["optimizer", "rate", "loss", f"minus {BASELINE}'s", "right"]
    return intervals.table(headings, rows)


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The best score so far of both methods, every seed, and without what was given."""
    figure = Figure(figsize=(7.5, 4.4), dpi=150, facecolor="white", layout="tight")
    axes = figure.subplots()
    results = _all(records, "search")
    shown = [(method, method, 0) for method in METHODS]
    shown.append((f"evolution without its first {GIVEN}", "evolution", GIVEN))
    for i, (label, method, first) in enumerate(shown):
        curves = _curves(results, method, first)
        places = np.arange(first + 1, first + curves.shape[1] + 1)
        color = figures.color(i)
        axes.plot(places, curves.mean(axis=0), label=label, color=color, linewidth=2.5)
        axes.plot(places, curves.T, color=color, linewidth=0.6, alpha=0.6)
    lowest = min(float(_curves(results, method).min()) for method in METHODS)
    axes.set_ylim(lowest - 0.05, lowest + RANGE)
    axes.set_ylabel("best score of tier 1 so far", color=figures.INK)
    figures.style(axes, "distinct rules evaluated")
    figures.legend(axes)
    return {"rule_search.png": figures.png(figure)}
