"""A small BERT on WikiText-2's test part, evaluated on its valid part."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import text
from experiments.models import bert
from experiments.studies import datasets
from experiments.studies.training import Problem, PyTree
from experiments.studies.tuning import Protocol
from experiments.tasks import mlm

PROTOCOL = Protocol(
    points=9, rate_factor=2**0.5, tuning_seeds=(0,), fresh_seeds=(10, 11, 12)
)
STEPS = 2000
BATCH_SIZE = 32
LENGTH = 32  # tokens of a sequence
VOCABULARY = 256
VALIDATION_ROWS = 2048
ARTICLE = re.compile(r"\n(?= = [^=])")  # what is before the title of the next one
PARTS = ("wikitext2/test.txt", "wikitext2/valid.txt")
MODEL = bert.BertConfig(
    vocab_size=VOCABULARY,
    max_length=LENGTH,
    num_layers=2,
    num_heads=2,
    width=64,
    mlp_width=256,
    dropout=0.0,
    # 0.02 x sqrt(768 / 64): as strong a signal as Devlin's 0.02 gives at width 768.
    init_stddev=0.07,
    dtype="float32",
)


@functools.cache
def load(folder: Path) -> tuple[np.ndarray, PyTree, float]:
    """Rows of tokens for training, masked rows for validation, and a baseline.

    The baseline is the cross entropy of the frequencies of the training tokens.

    Raises:
      UserError: a file is missing or another one.
    """
    train, held_out = (
        [article for article in ARTICLE.split(text.read(path)) if article.strip()]
        for path in (datasets.find(folder, part) for part in PARTS)
    )
    tokenizer = text.train_tokenizer(train, VOCABULARY)
    encoded, unseen = (text.encode(tokenizer, part) for part in (train, held_out))
    rows, validation = text.windows(encoded, LENGTH), text.windows(unseen, LENGTH)
    order = np.random.default_rng(0).permutation(len(validation))
    validation = validation[order[:VALIDATION_ROWS]]
    (batch,) = text.validation_batches(validation, len(validation), 0, VOCABULARY)
    baseline = text.frequency_cross_entropy(encoded, unseen, VOCABULARY)
    return rows, batch, baseline


def problem(folder: Path, steps: int = STEPS) -> Problem:
    """The network on the text in ``folder``."""
    rows, validation, _ = load(folder)
    return of_rows(rows, validation, steps, BATCH_SIZE, evaluations=10)


def of_rows(
    rows: np.ndarray, validation: PyTree, steps: int, batch_size: int, evaluations: int
) -> Problem:
    """The network on rows of tokens, evaluated on one batch of masked ones."""
    functions = mlm.model_functions(MODEL)
    no_dropout = jax.random.key(0)

    def loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
        del data
        total, state = functions["loss_sum"](params, state, batch, no_dropout)
        return total / functions["weight"](batch), state

    def evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
        sums = functions["eval_sums"](params, state, data)
        return sums["loss"] / sums["weight"], sums["accuracy"] / sums["weight"]

    def batches(seed: int) -> PyTree:
        pipeline = text.train_pipeline(rows, batch_size, seed, VOCABULARY)
        batches = [pipeline[step] for step in range(steps)]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)

    return Problem(
        steps,
        functions["init"],
        loss,
        evaluate,
        jax.tree.map(jnp.asarray, validation),
        batches,
        evaluations=evaluations,
    )
