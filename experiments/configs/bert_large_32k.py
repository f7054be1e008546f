"""BERT-large in batches of 32,768 sequences of 128 tokens, which are 14,063 steps.

Command: python -m experiments.compare --distributed \
    --config=experiments/configs/bert_large_32k.py \
    --workdir=<shared folder>/bert_large_32k --config.data.path=<folder of *.txt files>
    on every host; docs/guide/pods.md has scripts that start it
Hardware: 64 GPUs or TPU cores with 16 GB or more each (an estimate); fewer with a
    larger config.accumulate.
Expected: not measured yet. LAMB's rate, warm-up, decay and number of steps are the
    published ones; every other learning rate is a start for a sweep on your text.
"""

from ml_collections import ConfigDict

from experiments.common.types import Config
from experiments.configs import mlm_defaults

OPTIMIZERS = {
    **{
        name: {
            "transform": name,
            "weight_decay": 0.01,
            "kwargs": {"b1": 0.9, "b2": 0.999, "eps": 1e-6},
        }
        for name in ("lambc", "lamb")
    },
    "adamw": mlm_defaults.OPTIMIZERS["adamw"],
    "acclip": mlm_defaults.OPTIMIZERS["acclip"],
}
# You et al., 2020 (https://arxiv.org/abs/1904.00962), with LAMB: 15,625 steps in
# batches of 32,768, of which the first 3,125 warm up to 5e-3. Nine tenths of them have
# 128 tokens, and these are here; the rate then falls as a cosine, not linearly.
STEPS, WARMUP_STEPS = 14_063, 3_125


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps at the smallest sizes."""
    config = mlm_defaults.mlm_config()
    config.steps = STEPS
    config.warmup_fraction = WARMUP_STEPS / STEPS
    config.batch_size = 32_768
    config.accumulate = 16  # 32 rows on each of 64 devices
    config.log_every = 10
    config.eval_every = 500
    config.target_devices = 64
    config.fsdp = 8
    config.sharding_rules = mlm_defaults.FSDP_RULES
    config.data.vocab_size = 30_522
    config.data.sequence_length = 128
    config.model = mlm_defaults.model("large", dtype="bfloat16")
    config.optimizer.name = "lambc"
    config.optimizers = ConfigDict(OPTIMIZERS)
    config.compare.optimizers = tuple(OPTIMIZERS)
    mlm_defaults.set_learning_rates(
        config, lambc=5e-3, lamb=5e-3, adamw=1e-3, acclip=1e-3
    )
    mlm_defaults.set_grids(
        config,
        lambc=(1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
        lamb=(1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
        adamw=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        acclip=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    )
    return mlm_defaults.apply_variant(config, variant)
