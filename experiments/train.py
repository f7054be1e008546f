"""Trains one model with one optimizer.

python -m experiments.train --config=experiments/configs/bert_tiny.py \
    --workdir=runs/adamw --config.optimizer.name=adamw
"""

from experiments.common import cli, distributed
from experiments.common.errors import UserError
from experiments.runs import folders
from experiments.training import trainer


def main() -> None:
    """Trains as the flags say."""
    config = cli.config()
    source = trainer.load([config])
    final, _ = trainer.run(
        config, cli.workdir(), source, None, cli.RESUME_WITH_CHANGES.value
    )
    if final["status"] == "diverged":
        raise UserError(
            f"non-finite loss at step {final['step']}; the metrics so far are in "
            f"{cli.workdir() / folders.METRICS_FILE}"
        )
    distributed.say(
        f"validation loss {final['loss']:.3f} {config.report.loss_unit}, "
        f"{config.report.accuracy_name} {final['accuracy']:.1%}, "
        f"trained {final['train_seconds']:.0f} s"
    )


if __name__ == "__main__":
    cli.run(main)
