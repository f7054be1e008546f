"""Masked language modelling: BERT on windows of text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.data import stream, text, tokenizer
from experiments.models import bert
from experiments.models.losses import cross_entropy
from experiments.tasks.base import (
    Batch,
    PyTree,
    Source,
    Sums,
    Task,
    weight,
    weighted_sums,
)


def load(config: Config) -> Source:
    """Reads the text that ``config.data`` names."""
    corpus = text.load_corpus(config.data.path, config.data.separator)
    return Source(corpus.sha256, lambda workdir: _build(config, corpus, workdir))


def _build(config: Config, corpus: text.Corpus, workdir: Path) -> Task:
    data = config.data
    try:
        split = text.split_documents(corpus.documents, data.split_seed)
    except ValueError as error:
        raise UserError(
            f"config.data.path={data.path}, config.data.separator={data.separator}: "
            f"{error}"
        ) from None
    tokens = tokenizer.read_or_train(workdir, split.train, data.vocab_size)
    vocab_size = tokens.get_vocab_size()
    train = text.encode(tokens, split.train)
    validation = text.encode(tokens, split.validation)
    num_train, num_validation = sum(map(len, train)), sum(map(len, validation))
    _check_lengths(config, training=num_train, validation=num_validation)
    pipeline = text.train_pipeline(
        text.windows(train, data.sequence_length),
        stream.microbatch_size(config),
        config.seed,
        vocab_size,
    )
    held_out = text.validation_batches(
        text.windows(validation, data.sequence_length),
        stream.microbatch_size(config),
        data.split_seed,
        vocab_size,
    )
    if not sum(batch["weights"].sum() for batch in held_out):
        raise UserError(
            f"config.data.path={data.path}: {num_validation} validation tokens are too "
            "few to mask one of them"
        )
    model_config = bert.BertConfig(
        vocab_size=vocab_size, max_length=data.sequence_length, **config.model
    )
    return Task(
        **model_functions(model_config),
        train_batches=lambda start: stream.whole(pipeline, start),
        eval_batches=lambda: map(stream.own_rows, held_out),
        baselines={
            "token frequencies": text.frequency_cross_entropy(
                train, validation, vocab_size
            )
        },
        description={
            "source": corpus.origin,
            "sha256": corpus.sha256,
            "vocabulary": vocab_size,
            "train_documents": len(split.train),
            "train_tokens": num_train,
            "validation_documents": len(split.validation),
            "validation_tokens": num_validation,
        },
        save_assets=lambda folder: tokenizer.save(tokens, folder),
    )


def _check_lengths(config: Config, **numbers: int) -> None:
    """Refuses parts of a text that have too few tokens for one sequence."""
    data = config.data
    for part, number in numbers.items():
        if number < data.sequence_length - 2:
            raise UserError(
                f"config.data.path={data.path}: the text has {number} {part} tokens, "
                f"one sequence needs {data.sequence_length - 2} "
                f"(config.data.sequence_length={data.sequence_length})"
            )


def smallest(config: Config) -> dict[str, Callable[..., Any]]:
    """The functions of a model that knows no word."""
    return model_functions(
        bert.BertConfig(1, config.data.sequence_length, **config.model)
    )


def model_functions(config: bert.BertConfig) -> dict[str, Callable[..., Any]]:
    """The pure functions of a `Task`."""
    graph = nnx.graphdef(
        nnx.eval_shape(lambda: bert.BertForMaskedLM(config, rngs=nnx.Rngs(0)))
    )

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        model = bert.BertForMaskedLM(config, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(model)), {}

    def token_losses(params: PyTree, batch: Batch, key: jax.Array | None):
        model = nnx.merge(graph, params)
        logits = model(
            batch["tokens"],
            batch["tokens"] != text.PAD,
            batch["positions"],
            deterministic=key is None,
            rngs=None if key is None else nnx.Rngs(dropout=key),
        )
        return cross_entropy(logits, batch["targets"]), logits

    def loss_sum(
        params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        losses, _ = token_losses(params, batch, key)
        return jnp.sum(losses * batch["weights"]), model_state

    def eval_sums(params: PyTree, model_state: PyTree, batch: Batch) -> Sums:
        del model_state
        losses, logits = token_losses(params, batch, None)
        correct = jnp.argmax(logits, axis=-1) == batch["targets"]
        return weighted_sums(batch, losses, correct)

    return {
        "init": init,
        "weight": weight,
        "loss_sum": loss_sum,
        "eval_sums": eval_sums,
    }
