"""What every field of a config may be: types, bounds and choices.

What several fields must be together is checked where they are used.
"""

import math
from collections.abc import Mapping

from experiments.common.fields import (
    LARGEST_SEED,
    Field,
    choice,
    flag,
    integer,
    mapping,
    number,
    several,
    text,
)
from experiments.common.types import Config
from experiments.data import decoding, images
from experiments.data.text import SPECIAL_TOKENS
from experiments.data.tokenizer import LARGEST_VOCABULARY
from experiments.models import bert, resnet

Fields = Mapping[str, Field]
MOST_STEPS = 10**7  # a plan has some bytes for each
MOST_LAYERS = 1_000  # a program has a copy of its instructions for each
MOST_POSITIONS = 2**20  # of a row of tokens
SEED = integer(0, LARGEST_SEED)
SHARE = number(0, 1)
RATE = number(0, above=True)
COMPUTED_IN = choice("float32", "bfloat16")

RUN: Fields = {
    "task": text(),
    "seed": SEED,
    "steps": integer(1, MOST_STEPS),
    "batch_size": integer(1),
    "max_batch_size": integer(0),
    "accumulate": integer(1),
    "warmup_fraction": SHARE,
    "log_every": integer(1),
    "eval_every": integer(1),
    "checkpoint.every": integer(1),
    "checkpoint.keep": integer(1),
    "monitor": flag(),
    "aggregation.name": text(),
    "aggregation.kwargs": mapping(),
    "parallel": choice("jit", "shard_map", "pmap"),
    "num_devices": integer(0),
    "target_devices": integer(1),
    "fsdp": integer(1),
    "report.model": text(),
    "report.loss_unit": text(),
    "report.loss_scale": choice("linear", "log"),
    "report.accuracy_name": text(),
    "optimizer.name": text(),
    "optimizers": mapping(),
}

# An entry of `config.optimizers`, and those of its arguments that Optax takes as any.
OPTIMIZER: Fields = {
    "transform": text(),
    "learning_rate": RATE,
    "weight_decay": number(0).or_missing(),
    "kwargs": mapping(),
    "skip_if_unsafe": mapping().or_missing(),
}
DECAY = number(0, 1, below=True).or_none().or_missing()
KWARGS: Fields = {
    "b1": DECAY,
    "b2": DECAY,
    "decay": DECAY,
    "eps": number(0).or_none().or_missing(),
}

DATA: Fields = {"data.path": text(), "data.sha256": text(), "data.split_seed": SEED}
VOCABULARY: Fields = {
    "data.vocab_size": integer(len(SPECIAL_TOKENS) + 1, LARGEST_VOCABULARY)
}
BERT: Fields = {
    "model.num_layers": integer(1, MOST_LAYERS),
    "model.width": integer(1),
    "model.num_heads": integer(1),
    "model.mlp_width": integer(1),
    "model.dropout": number(0, 1, below=True),
    "model.init_stddev": number(0),
    "model.dtype": COMPUTED_IN,
    "model.attention": flag().or_missing(),
    "model.inputs": choice(*bert.INPUTS).or_missing(),
}
MLM: Fields = {
    **DATA,
    **VOCABULARY,
    **BERT,
    "data.separator": text(),
    # [CLS], a token and [SEP]
    "data.sequence_length": integer(3, MOST_POSITIONS),
}
SQUAD: Fields = {
    **DATA,
    **VOCABULARY,
    **BERT,
    "data.validation_path": text(),
    "data.pretrained": text(),
    "data.sequence_length": integer(1, MOST_POSITIONS),
    "data.question_length": integer(1),
    "data.stride": integer(1),
    "data.answer_length": integer(1),
    "data.n_best": integer(1),
}
IMAGES: Fields = {
    **DATA,
    "data.image_size": integer(1, math.isqrt(decoding.LARGEST_IMAGE)),
    "data.augment": choice(*images.AUGMENTATIONS),
    "data.flip": flag(),
    "data.mean": several(number(-3e38), least=1),
    "data.std": several(number(0, above=True), least=1),
    "label_smoothing": number(0, 1, below=True),
    "model.name": choice("perceptron", "resnet"),
    "model.width": integer(1),
}
RESNET: Fields = {
    "model.block": choice(*resnet.BLOCKS),
    "model.stem": choice(*resnet.STEMS),
    "model.dtype": COMPUTED_IN,
    "model.stages": several(integer(1, MOST_LAYERS), least=1),
}
PERCEPTRON: Fields = {"model.num_layers": integer(0, MOST_LAYERS)}
RATES = several(RATE, least=1)
COMPARE: Fields = {"compare.optimizers": several(text(), least=1)}
SWEEP: Fields = {"sweep.learning_rates": mapping()}

# What the commands say of a config, given as --config.NAME=VALUE.
SECTIONS: Mapping[str, Fields] = {
    "Fields of every config, changed by --config.NAME=VALUE": RUN,
    "Fields of config.optimizers.NAME": OPTIMIZER,
    "Fields of config.optimizers.NAME.kwargs, where the optimizer has them": KWARGS,
    "Fields with config.task=mlm": MLM,
    "Fields with config.task=squad": SQUAD,
    "Fields with config.task=images": IMAGES,
    "Further fields with config.model.name=resnet": RESNET,
    "Further fields with config.model.name=perceptron": PERCEPTRON,
}
IN_COMPARISON: Mapping[str, Fields] = {**SECTIONS, "Fields of a comparison": COMPARE}
IN_SWEEP: Mapping[str, Fields] = {
    **SECTIONS,
    "Fields of a sweep": {**SWEEP, "sweep.learning_rates.NAME": RATES},
}


def of_task(config: Config) -> Fields:
    """The fields of the data and the model of ``config.task``."""
    if config.task == "images":
        is_resnet = config.get("model", {}).get("name") == "resnet"
        return {**IMAGES, **(RESNET if is_resnet else PERCEPTRON)}
    return {"mlm": MLM, "squad": SQUAD}.get(config.task, {})
