"""BERT-base finds answers to questions: SQuAD v1.1.

Command: python -m experiments.train --config=experiments/configs/squad.py \
    --workdir=runs/squad --config.optimizer.name=adamw \
    --config.data.path=<train-v1.1.json> \
    --config.data.validation_path=<dev-v1.1.json> \
    --config.data.pretrained=<work directory of a bert_base run of 384 positions>
Hardware: one GPU or TPU core with 16 GB or more (an estimate).
Expected: not measured yet. Published for BERT-base after pre-training on 3.3 billion
    words: exact match 80.8, F1 88.5 (Devlin et al., table 2).
"""

from experiments.common.types import Config
from experiments.configs import defaults, mlm_defaults, variants
from experiments.data import squad
from experiments.models import bert


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps on a few embedded questions.

    Raises:
      UserError: no such variant.
    """
    variants.check(variant)
    config = defaults.run_config()
    config.task = "squad"
    config.steps = 8_300  # 3 epochs, as published
    config.batch_size = 32
    config.log_every = 50
    config.eval_every = 1_000
    config.report = {
        "model": "BERT",
        "loss_unit": "nats per end of an answer",
        "loss_scale": "linear",
        "accuracy_name": "exact spans",
    }
    config.data = {
        "path": "",  # a SQuAD v1.1 JSON file to train on
        "validation_path": "",  # another one; empty: a tenth of the articles of path
        "sha256": "",  # refuse any other data; empty: accept and record it
        "split_seed": 0,  # which articles are held out
        "pretrained": "",  # work directory of a run of task mlm; empty: new weights
        "vocab_size": 30_522,  # of a new tokenizer; a pretrained run has its own
        "sequence_length": 384,
        "question_length": 64,
        "stride": 128,
        "answer_length": 30,
        "n_best": 20,
    }
    config.model = mlm_defaults.model("base", dtype="bfloat16")
    config.optimizer = {"name": "adamw"}
    config.optimizers = mlm_defaults.OPTIMIZERS
    config.compare = {"optimizers": tuple(mlm_defaults.OPTIMIZERS)}
    config.sweep = {"learning_rates": {}}
    # The grids of the first two have the published rates, 5e-5, 3e-5 and 2e-5; the
    # other rates are a start for a sweep.
    mlm_defaults.set_learning_rates(
        config, acclip=3e-5, acclip_literal=0.3, adamw=3e-5, momentum=0.03, gclip=0.3
    )
    mlm_defaults.set_grids(
        config,
        acclip=(1e-5, 2e-5, 3e-5, 5e-5, 1e-4),
        acclip_literal=(0.03, 0.1, 0.3, 1.0, 3.0),
        adamw=(1e-5, 2e-5, 3e-5, 5e-5, 1e-4),
        momentum=(0.003, 0.01, 0.03, 0.1, 0.3),
        gclip=(0.03, 0.1, 0.3, 1.0, 3.0),
    )
    if variant == "smoke":
        variants.shorten(config, rows=8)
        config.data.update(
            path=squad.EMBEDDED, vocab_size=300, sequence_length=64, question_length=16
        )
        config.data.update(stride=16)
        config.model.update(bert.SIZES["tiny"], dtype="float32")
    return config
