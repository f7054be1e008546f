"""Table, pictures and page of a comparison, from what its runs recorded."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from experiments.common import files
from experiments.common.errors import UserError
from experiments.reporting import figures, page, tables
from experiments.runs import folders, reading
from experiments.runs.reading import Run

RESULTS, PICTURE, PAGE = "results.json", "loss.png", "report.html"


def check_targets(workdir: Path) -> None:
    """Refuses a folder in which no report can be written; before the runs.

    Raises:
      UserError: naming what cannot be written.
    """
    for name in (RESULTS, PICTURE, PAGE):
        files.check_target(workdir / name)


def write_report(workdir: Path, names: Sequence[str]) -> str:
    """Writes ``loss.png``, ``results.json`` and ``report.html`` to ``workdir``.

    Diverged and interrupted runs appear with the step they came to.

    Args:
      workdir: folder of a comparison: ``config.json`` and one folder per run.
      names: the runs' folders, in the order that colours are given out.

    Returns:
      The table as text of at most 100 columns, a summary in words, and the page.

    Raises:
      UserError: no names, files missing or not as the trainer writes them, or runs
        that differ in more than the optimizer.
    """
    if not names:
        raise UserError("no runs to report; at least one optimizer name is needed")
    config = reading.read_config(workdir)
    runs = [reading.read_run(workdir / name) for name in names]
    _check_comparable(runs)
    finals = [run.final for run in runs if run.final]
    baselines = finals[0]["baselines"] if finals else {}
    rows = tables.ranked_rows(runs, baselines)
    results = {"runs": rows, "baselines": baselines}
    html = page.render(config, runs, rows, baselines)
    picture = figures.loss_png(page.title(runs), runs, baselines)
    text = json.dumps(results, indent=2) + "\n"
    files.write_atomically(workdir / RESULTS, text)
    files.write_atomically(workdir / PICTURE, picture)
    files.write_atomically(workdir / PAGE, html)
    summary = textwrap.fill(
        tables.summary(rows, baselines, runs[0].loss_unit), tables.CONSOLE_WIDTH
    )
    table = tables.text(rows, baselines, runs[0].accuracy_name)
    return f"{table}\n\n{summary}\n\n{workdir / PAGE}"


def _check_comparable(runs: Sequence[Run]) -> None:
    """Refuses a table of runs with, say, different texts."""
    first, *others = [
        {**folders.without_free(run.config), "optimizer": None} for run in runs
    ]
    for run, config in zip(runs[1:], others, strict=True):
        differing = folders.differences(first, config)
        if differing:
            raise UserError(
                f"{runs[0].name} and {run.name} differ in more than the optimizer: "
                f"{'; '.join(differing)}"
            )
