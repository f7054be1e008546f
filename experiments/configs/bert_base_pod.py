"""BERT-base on a pod: the batch over all devices, the parameters over groups of four.

Command: python -m experiments.compare --distributed \
    --config=experiments/configs/bert_base_pod.py \
    --workdir=<shared folder>/bert_base_pod --config.data.path=<folder of *.txt files>
    on every host; docs/guide/pods.md has scripts that start it
Hardware: 32 GPUs or TPU cores with 16 GB or more each (an estimate).
Expected: not measured yet. As many examples as bert_base.py has; every learning rate
    is a start for a sweep on your text.
"""

from experiments.common.types import Config
from experiments.configs import bert_base, mlm_defaults


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps at the smallest sizes."""
    config = bert_base.get_config()
    config.steps = 31_250
    config.batch_size = 2048
    config.eval_every = 1_000
    config.target_devices = 32
    config.fsdp = 4
    config.sharding_rules = mlm_defaults.FSDP_RULES
    # About sqrt(2048 / 256) times those of bert_base.py.
    mlm_defaults.set_learning_rates(
        config, acclip=3e-4, acclip_literal=3.0, adamw=3e-4, momentum=0.3, gclip=3.0
    )
    return mlm_defaults.apply_variant(config, variant)
