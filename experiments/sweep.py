"""Finds the learning rate of each optimizer on the grids of a config.

python -m experiments.sweep --config=experiments/configs/bert_tiny.py \
    --workdir=runs/bert_tiny_sweep --results=experiments/results/bert_tiny_sweep
"""

import functools

from absl import flags

from experiments.common import cli, distributed, files, inputs
from experiments.training import sweeps

OPTIMIZERS = flags.DEFINE_list(
    "optimizers", None, "Subset of config.compare.optimizers; default: all."
)
RESULTS = flags.DEFINE_string(
    "results", None, "Also write the tables to RESULTS.md and RESULTS.jsonl."
)


def main() -> None:
    """Sweeps as the flags say."""
    config = cli.config()
    names = OPTIMIZERS.value or config.compare.optimizers
    targets = [cli.workdir() / "sweep"]
    targets += [inputs.local("--results", RESULTS.value)] if RESULTS.value else []
    for target in targets:  # before the runs, not after
        distributed.by_main(functools.partial(files.make_folder, target.parent))
    finals = sweeps.sweep(config, cli.workdir(), names, cli.RESUME_WITH_CHANGES.value)
    table = sweeps.page(finals, config)
    distributed.say(table)
    distributed.by_main(lambda: sweeps.write(finals, table, targets))


if __name__ == "__main__":
    cli.run(main)
