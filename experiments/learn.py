r"""Trains a learned optimizer, and says how it does beside tuned ones.

python -m experiments.learn --config=experiments/configs/learn_lstm.py \
    --workdir=runs/learn_lstm

``learn_mlp.py`` trains the other model; ``:short`` is the whole of either in about a
minute. Stopped, it goes on where it was. Leaves ``weights.npz``, which
`optax_heavytail.learned.load` reads, ``report.html``, ``report.md``, ``results.json``
and pictures.
"""

import jax

from experiments.common import cli, fields
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.configs import learn_lstm, learn_mlp
from experiments.learning import loop, report
from experiments.runs import folders

FIELDS = {"lstm": learn_lstm.FIELDS, "mlp": learn_mlp.FIELDS}
SECTIONS = {f"a training of the {model}": table for model, table in FIELDS.items()}


def check(config: Config) -> None:
    """Refuses a config that cannot be trained.

    Raises:
      UserError: naming the field.
    """
    fields.check(config, {"model": fields.choice(*FIELDS)})
    fields.check(config, FIELDS[config.model])
    if config.model == "lstm" and config.steps % config.window:
        raise UserError(
            f"config.window={config.window}: must divide config.steps={config.steps}"
        )
    if config.model == "lstm" and config.rates % 2 == 0:
        raise UserError(f"config.rates={config.rates}: must be odd")
    total = config.functions if config.model == "lstm" else config.outer_steps
    if config.evaluations > total:
        raise UserError(
            f"config.evaluations={config.evaluations}: must be at most {total}, the "
            "steps of the training"
        )


def main() -> None:
    """Trains as the config says."""
    if jax.process_count() > 1:
        raise UserError("a training is the work of one process; leave --distributed")
    config, workdir = cli.config(), cli.workdir()
    check(config)
    with folders.locked(workdir):
        folders.claim_same(workdir, config, "training")
        report.check_targets(workdir, config)
        training = loop.make(config, config.seed)
        state = loop.run(training, workdir)
        table = report.write(workdir, training, state)
    print(table)
    print(f"\nreport: {workdir / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, SECTIONS, resumes_with_changes=False)
