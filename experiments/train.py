r"""Trains one model with one optimizer.

python -m experiments.train --config=experiments/configs/bert_tiny.py \
    --workdir=runs/adamw --config.optimizer.name=adamw
"""

from experiments.common import cli, distributed
from experiments.common.errors import UserError
from experiments.configs import fields
from experiments.runs import folders
from experiments.training import trainer


def main() -> None:
    """Trains as the flags say."""
    workdir = cli.workdir()
    (job,), programs = trainer.prepare([cli.config()])
    outcome = trainer.run(job, workdir, programs, cli.RESUME_WITH_CHANGES.value)
    if not outcome.is_complete:
        raise UserError(
            f"non-finite loss at step {outcome.step}; the metrics so far are in "
            f"{workdir / folders.METRICS_FILE}"
        )
    report = job.config.report
    distributed.say(
        f"validation loss {outcome.loss:.3f} {report.loss_unit}, "
        f"{report.accuracy_name} {outcome.metrics['accuracy']:.1%}, "
        f"trained {outcome.seconds:.0f} s; all of it is in {workdir}"
    )


if __name__ == "__main__":
    cli.run(main, fields.SECTIONS)
