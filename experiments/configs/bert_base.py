"""BERT-base: 12 layers, width 768, 110 million parameters.

Command: python -m experiments.compare --config=experiments/configs/bert_base.py \
    --workdir=runs/bert_base --config.data.path=<folder of *.txt files>
Hardware: one GPU or TPU core with 40 GB or more (an estimate).
Expected: not measured yet. Every learning rate is a start for a sweep on your text.
"""

from experiments.common.types import Config
from experiments.configs import mlm_defaults


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps at the smallest sizes."""
    config = mlm_defaults.mlm_config()
    config.steps = 250_000
    config.batch_size = 256
    config.log_every = 100
    config.eval_every = 5_000
    config.data.vocab_size = 30_522
    config.data.sequence_length = 128
    config.model = mlm_defaults.model("base", dtype="bfloat16")
    mlm_defaults.set_learning_rates(
        config, acclip=1e-4, acclip_literal=1.0, adamw=1e-4, momentum=0.1, gclip=1.0
    )
    mlm_defaults.set_grids(
        config,
        acclip=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        acclip_literal=(0.1, 0.3, 1.0, 3.0, 10.0),
        adamw=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        momentum=(0.01, 0.03, 0.1, 0.3, 1.0),
        gclip=(0.1, 0.3, 1.0, 3.0, 10.0),
    )
    return mlm_defaults.apply_variant(config, variant)
