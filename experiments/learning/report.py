"""What a training leaves: weights, pictures, a table, and a page with them."""

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.common import files, json_files, markdown, provenance
from experiments.common.types import Config
from experiments.learning import functions, lstm, rivals
from experiments.reporting import figures, page
from experiments.runs import folders
from optax_heavytail import learned

WEIGHTS = "weights.npz"
_TEST_SEED = 1000  # no training has its functions


class Shown(NamedTuple):
    """What is said of a training."""

    headings: tuple[str, ...]
    rows: list[list[str]]
    lines: dict[str, str]  # facts
    pictures: dict[str, bytes]  # by file name
    results: dict[str, Any]
    weights: Any
    arguments: dict[str, Any]  # of the transform, beside the weights


def check_targets(workdir: Path, config: Config) -> None:
    """Refuses, before the work, a folder in which something is in the way.

    Raises:
      UserError: naming it.
    """
    pictures = {"lstm": "curves.png", "mlp": "response.png"}
    names = (WEIGHTS, "results.json", "report.md", "report.html", "meta_loss.png")
    for name in (*names, pictures[config.model]):
        files.check_target(workdir / name)


def write(workdir: Path, training: Any, state: Any) -> str:
    """Writes everything into the work directory; returns the table."""
    shown = (_of_lstm if training.config.model == "lstm" else _of_mlp)(training, state)
    history = np.asarray(state.history, np.float64)
    pictures = {"meta_loss.png": meta_loss_png(training, history), **shown.pictures}
    for name, picture in pictures.items():
        files.write_atomically(workdir / name, picture)
    about = told(training.config, shown.arguments, shown.lines)
    learned.save(workdir / WEIGHTS, shown.weights, about)
    results = {**shown.results, "history": history.tolist(), "about": about}
    files.write_atomically(
        workdir / "results.json", json_files.as_line(json_files.finite(results))
    )
    table = markdown.table(shown.headings, shown.rows)
    lines = [f"- {name}: {text}" for name, text in shown.lines.items()]
    text = "\n".join(["# A learned optimizer", "", *lines, "", table, ""])
    files.write_atomically(workdir / "report.md", text)
    files.write_atomically(workdir / "report.html", _page(shown, list(pictures)))
    return table


def told(
    config: Config, arguments: dict[str, Any], lines: dict[str, str]
) -> dict[str, Any]:
    """What a file of weights says of them."""
    return {
        "arguments": arguments,
        "training": lines,
        "config": folders.plain(config),
        "command": provenance.command(),
        "commit": provenance.commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _of_lstm(training: lstm.Training, state: lstm.State) -> Shown:
    config, family = training.config, training.family
    short, long = config.steps, 2 * config.steps
    tx = lstm.as_optimizer(family, state.best)
    number = config.test_functions
    own = rivals.fresh_curve(family, tx, long, number, _TEST_SEED)
    tuned = {
        name: rivals.tune(
            family,
            rival,
            rival.middle(config.family),
            (short, long),
            number,
            config.rates,
            (_TEST_SEED,),
        )
        for name, rival in functions.RIVALS.items()
    }
    rows = [["lstm", "", f"{own[short]:.4g}", f"{own[long]:.4g}"]]
    for name, found in tuned.items():
        noted = " or ".join(dict.fromkeys(f"{t.rate:.3g}" for t in found.values()))
        ends = [f"{found[h].curves[0, h]:.4g}" for h in (short, long)]
        rows.append([name, noted, *ends])
    curves = {"lstm": own} | {name: t[long].curves[0] for name, t in tuned.items()}
    return Shown(
        ("optimizer", "rate", f"loss after {short} steps", f"after {long}"),
        rows,
        {
            "family": config.family,
            "trained": f"{config.functions} batches of {config.batch} functions for "
            f"{short} steps, in windows of {config.window}",
            "seed": str(config.seed),
        },
        {"curves.png": curves_png(curves, short)},
        {"losses": {name: curve.tolist() for name, curve in curves.items()}},
        state.best,
        family.arguments,
    )


def _of_mlp(training: Any, state: Any) -> Shown:
    config = training.config
    nominal, best = float(training.start().best_loss), float(state.best_loss)
    weights = training.weights(state.best)
    return Shown(
        ("weights", "mean log loss of fresh trainings"),
        [["none: normalised ACClip", f"{nominal:.4f}"], ["trained", f"{best:.4f}"]],
        {
            "trained": f"{config.outer_steps} windows of {config.window} steps by "
            f"{config.workers + config.quadratics} workers, {config.estimator}",
            "episodes": f"up to {config.longest} steps",
            "seed": str(config.seed),
        },
        {"response.png": response_png(weights)},
        {"nominal": nominal, "best": best},
        weights,
        {},
    )


def curves_png(curves: dict[str, np.ndarray], trained: int) -> bytes:
    """Mean losses of fresh functions, and how long the training's functions were."""
    figure = Figure(figsize=(8.0, 4.6), dpi=150, facecolor="white", layout="tight")
    axes = figure.subplots()
    draw_curves(axes, curves, trained)
    figures.legend(axes)
    return figures.png(figure)


def draw_curves(axes: Any, curves: dict[str, np.ndarray], trained: int) -> None:
    """One line for each, in one order of colours."""
    start = next(iter(curves.values()))[0]
    for i, (name, curve) in enumerate(curves.items()):
        axes.plot(
            np.arange(len(curve)),
            np.minimum(curve, 10 * start),
            color=figures.color(i),
            label=name,
        )
    axes.axvline(trained, color=figures.MUTED, linestyle=":")
    axes.set_yscale("log")
    figures.style(axes, "step")
    axes.set_ylabel("mean loss", color=figures.INK)


def meta_loss_png(training: Any, history: np.ndarray) -> bytes:
    """The loss of the training, and that of fresh functions."""
    figure = Figure(figsize=(7.0, 4.0), dpi=150, facecolor="white", layout="tight")
    axes = figure.subplots()
    at = (1 + np.arange(len(history))) * training.total / len(history)
    for i, name in enumerate(("in training", "fresh")):
        axes.plot(at, history[:, i], marker=".", color=figures.color(i), label=name)
    figures.style(axes, "steps of the training")
    axes.set_ylabel("loss", color=figures.INK)
    if training.config.model == "lstm":
        axes.set_yscale("log")
    figures.legend(axes)
    return figures.png(figure)


def response_png(weights: learned.MLPWeights) -> bytes:
    """The direction against r_1, for some sizes of the recent gradients."""
    figure = Figure(figsize=(7.0, 4.4), dpi=150, facecolor="white", layout="tight")
    axes = figure.subplots()
    ratios = np.linspace(-1, 1, 201)
    axes.plot(ratios, ratios, color=figures.MUTED, linestyle="--", label="not learned")
    for i, log in enumerate((-2.0, 0.0, 2.0)):
        u = response(weights, ratios, log)
        label = f"$l_1 = {log:g}$"
        axes.plot(ratios, u, color=figures.color(i), label=label)
    figures.style(axes, "$r_1 = r_2 = r_3$")
    axes.set_ylabel("u", color=figures.INK)
    figures.legend(axes)
    return figures.png(figure)


def response(weights: learned.MLPWeights, ratios: np.ndarray, log: float) -> np.ndarray:
    """What the network makes of three equal ratios and a gradient of the usual size."""
    w_0, b_0, w_1, b_1, w_2, b_2 = map(np.asarray, weights)
    one = np.ones_like(ratios)
    size = np.log(2) * np.sign(ratios)
    x = [ratios] * 3 + [size, log * one, 0 * one, one] + [np.abs(ratios)] * 2
    x = np.maximum(np.stack(x, axis=-1) @ w_0 + b_0, 0)
    first, second = (np.maximum(x @ w_1 + b_1, 0) @ w_2 + b_2).T
    return ratios * np.exp(2 * np.tanh(first / 2)) + np.tanh(second) / 2


def _page(shown: Shown, pictures: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in shown.headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in shown.rows
    )
    kind = "lstm" if isinstance(shown.weights, learned.LSTMWeights) else "mlp"
    arguments = "".join(f", {k}={v!r}" for k, v in shown.arguments.items())
    rate = "1.0" if kind == "lstm" else "1e-2"
    code = (
        "from optax_heavytail import learned\n\n"
        f'weights = learned.load("{WEIGHTS}")\n'
        f"tx = optax.chain(\n    learned.scale_by_{kind}(weights{arguments}),\n"
        f"    optax.scale_by_learning_rate({rate}),\n)"
    )
    parts = [
        "<h1>A learned optimizer</h1>",
        page.facts(shown.lines),
        f'<div class="wide"><table class="results"><tr>{head}</tr>{body}</table></div>',
        f"<h2>To paste</h2><pre>{escape(code)}</pre>",
        *(f'<p><img src="{name}" width="720"></p>' for name in pictures),
    ]
    return page.document("A learned optimizer", parts)
