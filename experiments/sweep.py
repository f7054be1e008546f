r"""Finds the learning rate of each optimizer on the grids of a config.

python -m experiments.sweep --config=experiments/configs/bert_tiny.py \
    --workdir=runs/bert_tiny_sweep --results=experiments/results/bert_tiny_sweep
"""

import functools

from absl import flags

from experiments.common import cli, distributed, fields, files, inputs
from experiments.common.errors import UserError
from experiments.configs import fields as tables
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
    if not OPTIMIZERS.value:
        fields.check(config, {**tables.RUN, **tables.COMPARE})
    names = OPTIMIZERS.value or config.compare.optimizers
    targets = [cli.workdir() / "sweep"]
    if RESULTS.value is not None:
        targets.append(inputs.local("--results", RESULTS.value))
        if not targets[-1].name:
            raise UserError(f"--results={RESULTS.value}: must be a path with a name")
    written = [file for target in targets for file in files.table_and_lines(target)]
    for file in written:  # before the runs, not after
        distributed.by_main(functools.partial(files.check_target, file))
    finals = sweeps.sweep(config, cli.workdir(), names, cli.RESUME_WITH_CHANGES.value)
    table = sweeps.page(finals, config)
    distributed.say(table)
    distributed.by_main(lambda: sweeps.write(finals, table, targets))
    distributed.say(f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    cli.run(main, tables.IN_SWEEP)
