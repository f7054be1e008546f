"""The learning rate of each optimizer on the grids of a config."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.common import fields, files, json_files, markdown, provenance
from experiments.common.errors import UserError, check_distinct
from experiments.common.types import Config
from experiments.configs import fields as tables
from experiments.runs import reading
from experiments.training import optimizers, trainer
from experiments.training.job import Job

# What RESULTS.jsonl has of each run; what they share is at the head of RESULTS.md.
POINT = (
    "optimizer",
    "learning_rate",
    "status",
    "step",
    "loss",
    "accuracy",
    "train_seconds",
)


def sweep(
    config: Config, workdir: Path, names: Sequence[str], with_changes: bool = False
) -> list[reading.Record]:
    """Runs the grid of each optimizer into ``workdir/<name>/<rate>``.

    Finished runs are used again; ``with_changes``, those of another config go on.
    The steps are compiled once per optimizer.

    Returns:
      The final record of every run.
    """
    fields.check(config, {**tables.RUN, **tables.SWEEP})
    optimizers.check_names(config)
    check_distinct("--optimizers", names)
    configs = [chosen for name in names for chosen in grid_configs(config, name)]
    jobs, programs = trainer.prepare(configs)
    return [
        trainer.run(job, workdir / _folder(job), programs, with_changes).record
        for job in jobs
    ]


def _folder(job: Job) -> str:
    return f"{job.config.optimizer.name}/{job.learning_rate:g}"


def grid_configs(config: Config, name: str) -> list[Config]:
    """One config per learning rate of the optimizer's grid."""
    grids = config.sweep.learning_rates
    if name not in grids:
        raise UserError(
            f"optimizer {name}: config.sweep.learning_rates has {', '.join(grids)}"
        )
    field = f"sweep.learning_rates.{name}"
    fields.check(config, {field: tables.RATES})
    chosen = optimizers.select(config, name)
    fields.check(chosen, {f"optimizers.{name}.learning_rate": tables.RATE})
    folders = [f"{rate:g}" for rate in grids[name]]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(
                f"config.{field}: has the rate {folder} twice; each has a folder, "
                "named by six digits"
            )
    configs = []
    for rate in grids[name]:
        chosen = optimizers.select(config, name)
        entry = chosen.optimizers[name]
        with entry.ignore_type():  # an integer is a rate too
            entry.learning_rate = float(rate)
        configs.append(chosen)
    return configs


def best(finals: Sequence[reading.Record]) -> dict[str, reading.Record]:
    """The run with the lowest validation loss, by optimizer."""
    found: dict[str, reading.Record] = {}
    for final in finals:
        name = final["optimizer"]
        if name not in found or _loss(final) < _loss(found[name]):
            found[name] = final
    return found


def at_edge(finals: Sequence[reading.Record]) -> list[str]:
    """Optimizers whose best learning rate is the first or the last of their grid."""
    grids: dict[str, list[float]] = {}
    for final in finals:
        grids.setdefault(final["optimizer"], []).append(final["learning_rate"])
    return [
        name
        for name, final in best(finals).items()
        if final["learning_rate"] in (min(grids[name]), max(grids[name]))
    ]


def _loss(final: reading.Record) -> float:
    return final["loss"] if final["status"] == "complete" else math.inf


def page(finals: Sequence[reading.Record], config: Config) -> str:
    """The table of all runs, with where it comes from."""
    last, bests = finals[-1], best(finals)
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items())
    baselines = ", ".join(f"{k} give {v:.3f}" for k, v in last["baselines"].items())
    lines = [
        f"Command: `{provenance.command()}`\n",
        f"{time.strftime('%Y-%m-%d', time.gmtime(last['time']))}, "
        f"{last['hardware']}; {versions}; data {last['data']['source']}, "
        f"SHA-256 {last['data']['sha256']}.\n",
        f"Validation loss in {config.report.loss_unit} after "
        f"{max(final['step'] for final in finals):,} steps; {baselines}. "
        "The best of each optimizer is in bold.\n",
    ]
    rows = []
    for final in finals:
        cells = _cells(final)
        if final is bests[final["optimizer"]]:
            cells = [f"**{cell}**" for cell in cells]
        rows.append(cells)
    headings = ("optimizer", "learning rate", "validation loss")
    lines.append(markdown.table([*headings, config.report.accuracy_name], rows))
    edge = at_edge(finals)
    lines.append(
        f"\nThe best learning rate is at the edge of the grid for: {', '.join(edge)}."
        if edge
        else "\nNo best learning rate is at the edge of its grid."
    )
    return "\n".join(lines) + "\n"


def _cells(final: reading.Record) -> list[str]:
    name, rate = final["optimizer"], f"{final['learning_rate']:g}"
    if final["status"] == "diverged":
        return [name, rate, f"diverged at step {final['step']:,}", ""]
    accuracy = f"{final['accuracy']:.1%}"
    return [name, rate, f"{final['loss']:.3f}", accuracy]


def write(
    finals: Sequence[reading.Record], table: str, targets: Sequence[Path]
) -> None:
    """Writes the table and its points, beside each other."""
    points = [{key: final.get(key) for key in POINT} for final in finals]
    for target in targets:
        page, lines = files.table_and_lines(target)
        files.write_atomically(page, table)
        files.write_atomically(lines, json_files.as_lines(points))
