r"""Trains the same model under several optimizers and reports the result.

python -m experiments.compare --config=experiments/configs/bert_tiny.py \
    --workdir=runs/bert_tiny
"""

from experiments.common import cli, distributed
from experiments.configs import fields
from experiments.training import comparison


def main() -> None:
    """Compares as the flags say."""
    table = comparison.compare(
        cli.config(), cli.workdir(), cli.RESUME_WITH_CHANGES.value
    )
    distributed.say(table)


if __name__ == "__main__":
    cli.run(main, fields.IN_COMPARISON)
