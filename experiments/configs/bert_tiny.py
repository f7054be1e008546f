"""BERT of two layers on the text that comes with Python.

Command: python -m experiments.compare --config=experiments/configs/bert_tiny.py \
    --workdir=runs/bert_tiny
Hardware: 2 CPU cores; how long it took on two of them is in README.md.
Expected: the best validation loss more than 1 nat below the token frequencies; figures
    in experiments/README.md.
"""

from experiments.common.types import Config
from experiments.configs import mlm_defaults


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps, ``quick`` about 60 seconds."""
    config = mlm_defaults.mlm_config()
    config.steps = 2500
    config.batch_size = 64
    config.log_every = 20
    config.eval_every = 250
    config.data.vocab_size = 256
    config.data.sequence_length = 32
    # 0.02 x sqrt(768 / 64): as strong a signal as Devlin's 0.02 gives at width 768.
    # No dropout: the run ends long before this model could overfit.
    config.model = mlm_defaults.model("tiny", init_stddev=0.07, dropout=0.0)
    # The best of each grid below: experiments/results/bert_tiny_sweep.md. But for
    # momentum, whose best, 0.6, is at the edge: the last bits decide if it diverges.
    mlm_defaults.set_learning_rates(
        config, acclip=4e-3, acclip_literal=6.0, adamw=4e-3, momentum=0.3, gclip=2.0
    )
    mlm_defaults.set_grids(
        config,
        acclip=(5e-4, 1e-3, 2e-3, 4e-3, 6e-3, 8e-3),
        acclip_literal=(0.3, 1.0, 3.0, 6.0, 10.0, 30.0),
        adamw=(5e-4, 1e-3, 2e-3, 4e-3, 6e-3, 8e-3),
        momentum=(0.03, 0.1, 0.3, 0.6, 1.0, 3.0),
        gclip=(0.3, 1.0, 2.0, 3.0, 10.0, 30.0),
    )
    # One of each kind: clipped by coordinate, Adam's, and one that stays long at the
    # plateau of the token frequencies. The other two are there for sweeps.
    config.compare.optimizers = ("acclip", "adamw", "momentum")
    if variant == "quick":
        config.steps = 800
        config.eval_every = 200
        config.compare.optimizers = ("acclip", "adamw")
    return mlm_defaults.apply_variant(config, variant, "quick")
