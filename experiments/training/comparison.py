"""The same model under several optimizers."""

from pathlib import Path

from experiments.common import distributed, fields
from experiments.common.errors import UserError, check_distinct
from experiments.common.types import Config
from experiments.configs import fields as tables
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
    fields.check(config, {**tables.RUN, **tables.COMPARE})
    names = config.compare.optimizers
    check_distinct("config.compare.optimizers", names)
    chosen = [optimizers.select(config, name) for name in names]
    jobs, programs = trainer.prepare(chosen)
    distributed.by_main(lambda: report.check_targets(workdir))
    # Refuses the folder of another comparison.
    distributed.by_main(lambda: folders.finished(workdir, config, with_changes))
    outcomes = [
        trainer.run(job, workdir / name, programs, with_changes)
        for name, job in zip(names, jobs, strict=True)
    ]
    distributed.by_main(lambda: folders.write_config(workdir, config))
    table = distributed.by_main(lambda: report.write_report(workdir, names))
    if not any(outcome.is_complete for outcome in outcomes):
        distributed.say(table)
        raise UserError(f"every run diverged; the report is in {workdir}")
    return table
