"""Trains the same model under several optimizers and reports the result.

python -m experiments.compare --config=experiments/configs/bert_tiny.py \
    --workdir=runs/bert_tiny
"""

from pathlib import Path

from experiments import cli, distributed, folders, optimizers, report, train
from experiments.errors import UserError
from experiments.types import Config


def compare(config: Config, workdir: Path, with_changes: bool = False) -> str:
    """Runs ``config.compare.optimizers`` into ``workdir/<name>``; returns the table.

    Finished runs are used again; ``with_changes``, those of another config go on.
    A run that diverges is a result like the others.

    Raises:
      UserError: bad input, or every run diverged.
    """
    names = config.compare.optimizers
    cli.check_distinct("config.compare.optimizers", names)
    configs = {name: optimizers.select(config, name) for name in names}
    source = train.load(list(configs.values()))
    # Refuses the folder of another comparison.
    distributed.by_main(lambda: folders.finished(workdir, config, with_changes))
    ends = []
    for name, chosen in configs.items():
        final, _ = train.run(chosen, workdir / name, source, None, with_changes)
        ends.append(final["status"])
    distributed.by_main(lambda: folders.write_config(workdir, config))
    table = distributed.by_main(lambda: report.write_report(workdir, names))
    if "complete" not in ends:
        distributed.say(table)
        raise UserError(f"every run diverged; the report is in {workdir}")
    return table


def main() -> None:
    """Compares as the flags say."""
    distributed.say(compare(cli.config(), cli.workdir(), cli.RESUME_WITH_CHANGES.value))


if __name__ == "__main__":
    cli.run(main)
