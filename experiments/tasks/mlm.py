"""Masked language modelling: BERT on windows of text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tokenizers import Tokenizer

from experiments.data import stream, text
from experiments.errors import UserError
from experiments.models import bert
from experiments.tasks.base import Batch, PyTree, Source, Sums, Task
from experiments.types import Config

TOKENIZER_FILE = "tokenizer.json"
LARGEST_VOCABULARY = 2**20  # far above that the tokenizer aborts the whole process


def load(config: Config) -> Source:
    """Reads the text that ``config.data`` names."""
    _check(config)
    corpus = text.load_corpus(config.data.path, config.data.separator)
    return Source(corpus.sha256, lambda workdir: _build(config, corpus, workdir))


def _check(config: Config) -> None:
    data, model = config.data, config.model
    if data.sequence_length < 3:
        raise UserError(
            f"config.data.sequence_length={data.sequence_length}: must be 3 or more, "
            "for [CLS], a token and [SEP]"
        )
    smallest = len(text.SPECIAL_TOKENS) + 1
    if not smallest <= data.vocab_size <= LARGEST_VOCABULARY:
        raise UserError(
            f"config.data.vocab_size={data.vocab_size}: must be in "
            f"[{smallest}, {LARGEST_VOCABULARY}]"
        )
    if data.split_seed < 0:
        raise UserError(f"config.data.split_seed={data.split_seed}: must be 0 or more")
    for name in ("num_layers", "width", "num_heads", "mlp_width"):
        if model[name] < 1:
            raise UserError(f"config.model.{name}={model[name]}: must be 1 or more")
    if model.width % model.num_heads:
        raise UserError(
            f"config.model.num_heads={model.num_heads}: must divide "
            f"config.model.width={model.width}"
        )
    if not 0 <= model.dropout < 1:
        raise UserError(f"config.model.dropout={model.dropout}: must be in [0, 1)")
    if model.dtype not in ("float32", "bfloat16"):
        raise UserError(
            f"config.model.dtype={model.dtype}: must be float32 or bfloat16"
        )


def _build(config: Config, corpus: text.Corpus, workdir: Path) -> Task:
    data = config.data
    try:
        split = text.split_documents(corpus.documents, data.split_seed)
    except ValueError as error:
        raise UserError(f"config.data.path={data.path}: {error}") from None
    tokenizer = _tokenizer(workdir / TOKENIZER_FILE, split.train, data.vocab_size)
    vocab_size = tokenizer.get_vocab_size()
    train = text.encode(tokenizer, split.train)
    validation = text.encode(tokenizer, split.validation)
    num_train, num_validation = sum(map(len, train)), sum(map(len, validation))
    for part, number in (("training", num_train), ("validation", num_validation)):
        if number < data.sequence_length - 2:
            raise UserError(
                f"config.data.path={data.path}: the text has {number} {part} tokens, "
                f"one sequence needs {data.sequence_length - 2} "
                f"(config.data.sequence_length={data.sequence_length})"
            )
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
        save_assets=lambda folder: _save_tokenizer(tokenizer, folder),
    )


def _tokenizer(path: Path, documents: tuple[str, ...], vocab_size: int) -> Tokenizer:
    if path.exists():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower class
            raise UserError(f"{path}: not a tokenizer ({error})") from None
    return text.train_tokenizer(documents, vocab_size)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    path = folder / TOKENIZER_FILE
    partial = path.with_suffix(".partial")
    tokenizer.save(str(partial))
    partial.replace(path)


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
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["targets"]
        )
        return losses, logits

    def weight(batch: Batch) -> jax.Array:
        return jnp.sum(batch["weights"])

    def loss_sum(
        params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        losses, _ = token_losses(params, batch, key)
        return jnp.sum(losses * batch["weights"]), model_state

    def eval_sums(params: PyTree, model_state: PyTree, batch: Batch) -> Sums:
        del model_state
        losses, logits = token_losses(params, batch, None)
        weights = batch["weights"]
        correct = jnp.argmax(logits, axis=-1) == batch["targets"]
        return {
            "weight": jnp.sum(weights),
            "loss": jnp.sum(losses * weights),
            "accuracy": jnp.sum(correct * weights),
        }

    return {
        "init": init,
        "weight": weight,
        "loss_sum": loss_sum,
        "eval_sums": eval_sums,
    }
