"""The same model under several optimizers."""

from pathlib import Path

from experiments.common import distributed
from experiments.common.errors import UserError, check_distinct
from experiments.common.types import Config
from experiments.reporting import report
from experiments.runs import folders
from experiments.training import optimizers, trainer


def compare(config: Config, workdir: Path, with_changes: bool = False) -> str:
    """Runs ``config.compare.optimizers`` into ``workdir/<name>``; returns the table.

    Finished runs are used again; ``with_changes``, those of another config go on.
    A run that diverges is a result like the others.

    Raises:
      UserError: bad input, or every run diverged.
    """
    names = config.compare.optimizers
    check_distinct("config.compare.optimizers", names)
    configs = {name: optimizers.select(config, name) for name in names}
    source = trainer.load(list(configs.values()))
    # Refuses the folder of another comparison.
    distributed.by_main(lambda: folders.finished(workdir, config, with_changes))
    ends = []
    for name, chosen in configs.items():
        final, _ = trainer.run(chosen, workdir / name, source, None, with_changes)
        ends.append(final["status"])
    distributed.by_main(lambda: folders.write_config(workdir, config))
    table = distributed.by_main(lambda: report.write_report(workdir, names))
    if "complete" not in ends:
        distributed.say(table)
        raise UserError(f"every run diverged; the report is in {workdir}")
    return table
