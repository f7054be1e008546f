"""Text to batches of masked token windows.

Documents are split into a training and a validation part, a byte-level BPE is
trained on the training part, and `grain` turns windows of tokens into batches that
depend on the seed and the step alone.
"""

import dataclasses
import hashlib
import pydoc_data.topics
import re
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)

from experiments.common import inputs
from experiments.common.errors import UserError
from experiments.data.stream import Batch

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL_TOKENS))
VALIDATION_FRACTION = 0.1
MASKED_FRACTION = 0.15
LONGEST_RUN = 256  # bytes; the time that a vocabulary takes grows with it
BYTE_ORDER_MARK = "\ufeff"
NEEDED = "a UTF-8 text file or a folder of *.txt files"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents and what identifies them."""

    documents: tuple[str, ...]
    origin: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """Documents for training and for validation."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def load_corpus(path: str, separator: str) -> Corpus:
    """Reads the documents at ``path``.

    Args:
      path: a UTF-8 text file, cut into documents at ``separator``, or a folder whose
        ``*.txt`` files, unless their names start with a dot, are one document each.
        Empty: CPython's `pydoc_data.topics`.
      separator: what a line between the documents of a single file has, apart from
        white space around it. Empty: a blank line.

    Raises:
      UserError: nothing readable there, or no text in it.
    """
    field = "config.data.path"
    if not path:
        topics = pydoc_data.topics.topics
        documents = [topics[name] for name in sorted(topics)]
        return identified(documents, "pydoc_data.topics")
    where = inputs.local(field, path)
    with inputs.needed(f"{field}={path}", NEEDED):
        if not inputs.is_folder(where):
            return identified(separate(read(where), separator), path)
        files = sorted(f for f in where.glob("*.txt") if not f.name.startswith("."))
    if not files:
        raise UserError(f"{field}={path}: no *.txt file in this folder")
    documents = []
    for file in files:
        with inputs.needed(file, NEEDED):
            documents.append(read(file))
    return identified(documents, path)


def read(path: Path) -> str:
    """A text with line feeds as its only line ends, and no byte-order mark.

    Marks are also left where files that had them were joined; a document that begins
    with an invisible character would equal no other.

    Raises:
      OSError: not a regular file, not readable, or larger than 4 GiB.
      UserError: not UTF-8.
    """
    content = inputs.read_text(path).replace(BYTE_ORDER_MARK, "")
    return content.replace("\r\n", "\n").replace("\r", "\n")


def separate(content: str, separator: str) -> list[str]:
    """Cuts a text at the lines that are ``separator``, as `load_corpus` says.

    Raises:
      UserError: the separator has more than one line, and so is never found.
    """
    wanted = separator.strip()
    if len(wanted.splitlines()) > 1:
        raise UserError(
            f"config.data.separator={separator}: must be what one line has, or empty "
            "for blank lines"
        )
    documents: list[list[str]] = [[]]
    for line in content.split("\n"):
        if line.strip() == wanted:
            documents.append([])
        else:
            documents[-1].append(line)
    return ["\n".join(lines) for lines in documents]


def identified(documents: Sequence[str], origin: str) -> Corpus:
    """The documents that have any text, with their hash.

    Raises:
      UserError: there is none.
    """
    kept = tuple(document for document in documents if document.strip())
    if not kept:
        raise UserError(f"config.data.path={origin}: no text, only white space")
    # A zero byte stands between documents. In UTF-8 no byte is 255, so that it can
    # stand for those that a document has itself.
    content = b"\0".join(text.encode().replace(b"\0", b"\xff") for text in kept)
    return Corpus(kept, origin, hashlib.sha256(content).hexdigest())


def split_documents(documents: Sequence[str], seed: int) -> Split:
    """Holds out about a tenth of the characters, by whole documents.

    Documents may quote each other (a chapter contains its sections), so a paragraph
    that occurs in the validation part is removed from the training documents.

    Raises:
      ValueError: fewer than two distinct documents.
    """
    order = np.random.default_rng(seed).permutation(len(documents)).tolist()
    room = VALIDATION_FRACTION * sum(map(len, documents))
    held_out: set[int] = set()
    for index in order:
        if len(documents[index]) <= room:
            held_out.add(index)
            room -= len(documents[index])
    if not held_out:
        held_out.add(min(order, key=lambda index: len(documents[index])))
    validation = tuple(documents[i] for i in sorted(held_out))
    known = {normalise(p) for text in validation for p in paragraphs(text)}
    kept = (
        _without(documents[i], known)
        for i in range(len(documents))
        if i not in held_out
    )
    train = tuple(text for text in kept if text.strip())
    if not train:
        raise ValueError(
            f"the text has {len(documents)} document(s), at least two different ones "
            "are needed, one of them for validation"
        )
    return Split(train, validation)


def paragraphs(text: str) -> list[str]:
    """Splits at blank lines."""
    return re.split(r"\n[^\S\n]*\n", text)


def normalise(paragraph: str) -> str:
    """Makes paragraphs that differ in white space alone equal."""
    return " ".join(paragraph.split())


def _without(text: str, known: set[str]) -> str:
    kept = [p for p in paragraphs(text) if normalise(p) not in known]
    return "\n\n".join(kept)


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE of at most ``vocab_size`` tokens.

    No token reaches over the border of a word, nor over one that is put after every
    256 bytes of what has no such border, as a line of digits has none: merging pairs
    takes time with the square of a run's length.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Split(Regex(f".{{{LONGEST_RUN}}}"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> list[np.ndarray]:
    """Encodes each document, without special tokens."""
    encodings = plain(tokenizer).encode_batch_fast(
        list(documents), add_special_tokens=False
    )
    return [np.asarray(encoding.ids, np.int32) for encoding in encodings]


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, to which what looks like a special token is plain text.

    A tokenizer's file does not say that, so it has to be said before each use.
    """
    tokenizer.encode_special_tokens = True
    return tokenizer


def windows(encoded: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Cuts documents into rows ``[CLS] tokens [SEP]``, padded to ``length``."""
    room = length - 2
    pieces = [
        tokens[start : start + room]
        for tokens in encoded
        for start in range(0, len(tokens), room)
    ]
    rows = np.full((len(pieces), length), PAD, np.int32)
    rows[:, 0] = CLS
    for row, piece in zip(rows, pieces, strict=True):
        row[1 : 1 + len(piece)] = piece
        row[1 + len(piece)] = SEP
    return rows


def max_masked(length: int) -> int:
    """Slots for masked positions in a row of ``length`` tokens."""
    return int(np.ceil(MASKED_FRACTION * (length - 2)))


def mask_tokens(tokens: np.ndarray, rng: np.random.Generator, vocab_size: int) -> Batch:
    """Chooses 15% of the tokens; 80% become [MASK], 10% random, 10% stay.

    The number per row is rounded at random, so that 15% holds on average, and the
    slots are fixed, so that shapes are: unused slots have weight 0.

    Returns:
      ``tokens`` (batch, length) with the replacements; ``positions``, ``targets``
      and ``weights`` (batch, slots).
    """
    batch, length = tokens.shape
    slots = max_masked(length)
    eligible = tokens >= len(SPECIAL_TOKENS)
    order = np.where(eligible, rng.random((batch, length)), 2.0)
    positions = np.argsort(order, axis=1)[:, :slots].astype(np.int32)
    wanted = MASKED_FRACTION * eligible.sum(1) + rng.random(batch)
    used = np.arange(slots) < np.floor(wanted)[:, None]
    targets = np.take_along_axis(tokens, positions, axis=1)
    kind = rng.random((batch, slots))
    random = rng.integers(len(SPECIAL_TOKENS), vocab_size, (batch, slots), np.int32)
    replaced = np.where(kind < 0.8, MASK, np.where(kind < 0.9, random, targets))
    masked = tokens.copy()
    np.put_along_axis(masked, positions, np.where(used, replaced, targets), axis=1)
    return {
        "tokens": masked,
        "positions": positions,
        "targets": targets,
        "weights": used.astype(np.float32),
    }


def train_pipeline(
    rows: np.ndarray, batch_size: int, seed: int, vocab_size: int
) -> grain.MapDataset:
    """Endless batches; element ``i`` depends on ``seed`` and ``i`` alone."""
    return (
        grain.MapDataset.source(rows)  # pyright: ignore[reportArgumentType]
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size, batch_fn=np.stack)
        .random_map(lambda tokens, rng: mask_tokens(tokens, rng, vocab_size))
    )


def validation_batches(
    rows: np.ndarray, batch_size: int, seed: int, vocab_size: int
) -> list[Batch]:
    """All rows once, masks fixed; the last batch is filled up with empty rows."""
    missing = -len(rows) % batch_size
    filler = np.full((missing, rows.shape[1]), PAD, np.int32)
    rows = np.concatenate([rows, filler]).reshape(-1, batch_size, rows.shape[1])
    rng = np.random.default_rng(seed)
    return [mask_tokens(tokens, rng, vocab_size) for tokens in rows]


def frequency_cross_entropy(
    train: Sequence[np.ndarray], validation: Sequence[np.ndarray], vocab_size: int
) -> float:
    """Nats per validation token under the training frequencies (one added each)."""
    counts = np.bincount(np.concatenate(train), minlength=vocab_size)
    counts = counts[len(SPECIAL_TOKENS) :] + 1.0
    tokens = np.concatenate(validation)
    tokens = tokens[tokens >= len(SPECIAL_TOKENS)] - len(SPECIAL_TOKENS)
    return float(-np.log(counts / counts.sum())[tokens].mean())
