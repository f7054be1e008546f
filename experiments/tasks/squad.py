"""Extractive question answering: BERT finds the answer in the context."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.data import squad, squad_windows, stream, text, tokenizer
from experiments.data.squad_windows import Windows
from experiments.models import bert
from experiments.models.losses import cross_entropy
from experiments.tasks import pretrained, squad_answers
from experiments.tasks.base import (
    Batch,
    PyTree,
    Source,
    Sums,
    Task,
    weight,
    weighted_sums,
)
from experiments.tasks.pretrained import Pretrained


def load(config: Config) -> Source:
    """Reads the questions, and the encoder to start from if there is one."""
    _check(config)
    data = config.data
    dataset = squad.load(data.path, data.validation_path, data.split_seed)
    start = _pretrained(config) if data.pretrained else None
    return Source(
        dataset.sha256, lambda workdir: _build(config, dataset, start, workdir)
    )


def _check(config: Config) -> None:
    data = config.data
    smallest = squad_windows.SPECIAL + data.question_length + 1
    if data.sequence_length < smallest:
        raise UserError(
            f"config.data.sequence_length={data.sequence_length}: must be {smallest} "
            "or more, for [CLS], config.data.question_length="
            f"{data.question_length} tokens, [SEP], a token and [SEP]"
        )
    if data.n_best > data.sequence_length:
        raise UserError(
            f"config.data.n_best={data.n_best}: must be at most "
            f"config.data.sequence_length={data.sequence_length}"
        )


def _pretrained(config: Config) -> Pretrained:
    def shapes(vocab_size: int, max_length: int) -> PyTree:
        model = bert.BertConfig(vocab_size, max_length, **config.model)
        return jax.eval_shape(lambda: _new_params(model, jax.random.key(0)))["encoder"]

    found = pretrained.read(config.data.pretrained, config.model, shapes)
    if config.data.sequence_length > found.max_length:
        raise UserError(
            f"config.data.sequence_length={config.data.sequence_length}: must be at "
            f"most {found.max_length}, the positions of the encoder in "
            f"config.data.pretrained={found.folder}"
        )
    return found


def _build(
    config: Config, dataset: squad.Dataset, start: Pretrained | None, workdir: Path
) -> Task:
    data = config.data
    tokens = start.tokenizer if start else _tokenizer(config, dataset, workdir)
    train, validation = (
        squad_windows.build(
            tokens,
            examples,
            row_length=data.sequence_length,
            question_length=data.question_length,
            stride=data.stride,
        )
        for examples in (dataset.train, dataset.validation)
    )
    model_config = bert.BertConfig(
        vocab_size=tokens.get_vocab_size(),
        max_length=start.max_length if start else data.sequence_length,
        **config.model,
    )
    size = stream.microbatch_size(config)
    examples = train_examples(train, config.seed)
    held_out = validation_batches(validation, size)
    lengths = np.concatenate([(b["tokens"] != text.PAD).sum(1) for b in held_out])
    return Task(
        **model_functions(model_config, data.n_best, data.answer_length, start),
        train_batches=lambda first: stream.batches(examples, size, first),
        eval_batches=lambda: map(stream.own_rows, held_out),
        baselines={"any token alike": float(np.log(lengths[: len(validation)]).mean())},
        description={
            "source": dataset.origin,
            "sha256": dataset.sha256,
            "vocabulary": tokens.get_vocab_size(),
            **_describe("train", train),
            **_describe("validation", validation),
            **(_origin(start) if start else {}),
        },
        save_assets=lambda folder: tokenizer.save(tokens, folder),
        score=lambda rows: score(validation, rows),
        answers=lambda rows: by_question(validation, rows),
    )


def _tokenizer(config: Config, dataset: squad.Dataset, workdir: Path) -> Tokenizer:
    contexts = dict.fromkeys(example.context for example in dataset.train)
    texts = [*contexts, *(example.question for example in dataset.train)]
    return tokenizer.read_or_train(workdir, texts, config.data.vocab_size)


def _describe(part: str, windows: Windows) -> dict[str, int]:
    return {
        f"{part}_questions": len(windows.examples),
        f"{part}_windows": len(windows),
        f"{part}_answers_inside_tokens": windows.num_widened(),
    }


def _origin(start: Pretrained) -> dict[str, str]:
    return {"encoder": start.folder, "encoder_sha256": start.sha256}


def train_examples(windows: Windows, seed: int) -> grain.MapDataset:
    """Endless rows; row ``i`` depends on ``seed`` and ``i`` alone."""
    return (
        grain.MapDataset.range(len(windows))
        .seed(seed)
        .shuffle()
        .repeat()
        .map(windows.row)
    )


def validation_batches(windows: Windows, size: int) -> list[Batch]:
    """All rows once; the last batch is filled up with rows of no weight."""
    number = len(windows)
    rows = [windows.row_with_choice(i % number) for i in range(number + -number % size)]
    for row in rows[number:]:
        row["weights"] = np.zeros((), np.float32)
    return [stream.stack(rows[i : i + size]) for i in range(0, len(rows), size)]


def score(windows: Windows, spans: dict[str, np.ndarray]) -> dict[str, float]:
    """Exact match and F1 of the best answers."""
    texts = list(by_question(windows, spans).values())
    return squad_answers.evaluate(windows.examples, texts)


def by_question(windows: Windows, spans: dict[str, np.ndarray]) -> dict[str, str]:
    """The best answer to each question by its id; no answer at all is an empty one."""
    answers = squad_answers.n_best_answers(windows, spans)
    texts = [found[0][0] if found else "" for found in answers]
    ids = [example.id for example in windows.examples]
    return dict(zip(ids, texts, strict=True))


def _new_params(config: bert.BertConfig, key: jax.Array) -> PyTree:
    model = bert.BertForQuestionAnswering(config, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(model))


def _logits(
    model: bert.BertForQuestionAnswering, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The model's outputs, with dropout by ``key`` if there is one."""
    return model(
        batch["tokens"],
        batch["tokens"] != text.PAD,
        batch["token_types"],
        deterministic=key is None,
        rngs=None if key is None else nnx.Rngs(dropout=key),
    )


def _judge(
    first: jax.Array, last: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Loss of each row, and whether both places are the most likely ones."""
    losses, hits = [], []
    for logits, place in ((first, batch["first"]), (last, batch["last"])):
        losses.append(cross_entropy(logits, place))
        hits.append(jnp.argmax(logits, axis=-1) == place)
    return (losses[0] + losses[1]) / 2, hits[0] & hits[1]


def smallest(config: Config) -> dict[str, Callable[..., Any]]:
    """The functions of a model that knows no word."""
    model = bert.BertConfig(1, config.data.sequence_length, **config.model)
    return model_functions(model, 1, 1, None)


def model_functions(
    config: bert.BertConfig, n_best: int, longest: int, start: Pretrained | None = None
) -> dict[str, Callable[..., Any]]:
    """The pure functions of a `Task`.

    Args:
      config: of the model.
      n_best: spans to return for each row.
      longest: most tokens of such a span.
      start: the encoder to start from; ``None``: new weights.
    """
    graph = nnx.graphdef(
        nnx.eval_shape(lambda: bert.BertForQuestionAnswering(config, rngs=nnx.Rngs(0)))
    )

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        params = _new_params(config, key)
        if start is not None:
            params = {**params, "encoder": start.into(params["encoder"])}
        return params, {}

    def logits(params: PyTree, batch: Batch, key: jax.Array | None):
        return _logits(nnx.merge(graph, params), batch, key)

    def loss_sum(
        params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        losses, _ = _judge(*logits(params, batch, key), batch)
        return jnp.sum(losses * batch["weights"]), model_state

    def eval_sums(params: PyTree, model_state: PyTree, batch: Batch) -> Sums:
        del model_state
        losses, is_exact = _judge(*logits(params, batch, None), batch)
        return weighted_sums(batch, losses, is_exact)

    def predict(params: PyTree, model_state: PyTree, batch: Batch):
        del model_state
        first, last = logits(params, batch, None)
        allowed = {name: batch[name] for name in ("may_begin", "may_end")}
        return squad_answers.best_spans(
            first, last, **allowed, n_best=n_best, longest=longest
        )

    return {
        "init": init,
        "weight": weight,
        "loss_sum": loss_sum,
        "eval_sums": eval_sums,
        "predict": predict,
    }
