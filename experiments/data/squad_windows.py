"""Rows ``[CLS] question [SEP] window of the context [SEP]``, and the way back.

A context that is too long for one row becomes several windows that overlap, as in the
code of Devlin et al., `BERT <https://arxiv.org/abs/1810.04805>`_, 2019.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from experiments.common.errors import UserError
from experiments.data.squad import Answer, Example
from experiments.data.stream import Batch
from experiments.data.text import CLS, PAD, SEP, plain

AROUND_QUESTION = 2  # [CLS] before it and [SEP] after it
SPECIAL = AROUND_QUESTION + 1
MOST_WINDOWS = 2**21  # 8 GB of them for validation, at 384 tokens


class Encoded(NamedTuple):
    """A text as tokens, and the characters that each token stands for."""

    tokens: np.ndarray  # (n,), int32
    begins: np.ndarray  # (n,), int32: first character that is not white space
    stops: np.ndarray  # (n,), int32: character after the last such one


class Window(NamedTuple):
    """A piece of one example's context; positions are the context's tokens."""

    example: int
    first: int
    stop: int
    owned_first: int  # from here ...
    owned_stop: int  # ... to here no other window shows more on both sides


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Encodes texts; what looks like a special token in them is plain text.

    A character of several bytes may be several tokens, which all have its place.
    """
    encodings = plain(tokenizer).encode_batch(list(texts), add_special_tokens=False)
    return [
        _trimmed(text, np.asarray(encoding.ids, np.int32), encoding.offsets)
        for text, encoding in zip(texts, encodings, strict=True)
    ]


def _trimmed(text: str, tokens: np.ndarray, offsets: list[tuple[int, int]]) -> Encoded:
    """Moves each end to the next character within that is not white space.

    A token of white space alone begins after the white space and stops before it, so
    that spans with it at an edge have none there.
    """
    begins, stops = np.asarray(offsets, np.int32).reshape(-1, 2).T
    place = np.arange(len(text) + 1, dtype=np.int32)
    is_dark = np.array([not character.isspace() for character in text], bool)
    dark_from = np.where(np.append(is_dark, True), place, len(text))
    next_dark = np.minimum.accumulate(dark_from[::-1])[::-1]
    dark_to = np.where(np.append(False, is_dark), place, 0)
    last_dark = np.maximum.accumulate(dark_to)
    return Encoded(tokens, next_dark[begins], last_dark[stops])


def answer_tokens(context: Encoded, answer: Answer) -> tuple[int, int]:
    """First and last token of the smallest token span that covers the answer."""
    begin, stop = answer.visible
    first = int(np.searchsorted(context.stops, begin, side="right"))
    return first, int(np.searchsorted(context.begins, stop, side="left")) - 1


def cut(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Windows ``[first, stop)`` of at most ``room`` tokens, ``stride`` apart."""
    windows = [(0, min(room, length))]
    while windows[-1][1] < length:
        first = windows[-1][0] + min(room, stride)
        windows.append((first, min(first + room, length)))
    return windows


def num_windows(length: int, room: int, stride: int) -> int:
    """How many windows `cut` makes."""
    return 1 + max(0, -((room - length) // min(room, stride)))


def owned(windows: Sequence[tuple[int, int]]) -> np.ndarray:
    """For each window the first token that it, and no other, shows best.

    Best is the largest minimum of the tokens left and right of it in the window; of
    equals the earlier one, which is never the shorter one of the two, so that the
    published rule's hundredth of the length has no say. A last entry has the number
    of tokens.

    Args:
      windows: what `cut` returns.
    """
    first, stop = np.asarray(windows).T
    # Token t has stop - 1 - t on its right in one window and t - first on its left in
    # the next, which is better as soon as that is more.
    changes = (stop[:-1] - 1 + first[1:]) // 2 + 1
    return np.concatenate([[0], changes, stop[-1:]])


@dataclasses.dataclass(frozen=True)
class Windows:
    """All windows of some examples; rows are made when they are asked for."""

    examples: tuple[Example, ...]
    questions: list[Encoded]
    contexts: list[Encoded]
    targets: list[tuple[int, int]]  # first and last token of the answer in the context
    windows: list[Window]
    row_length: int

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.windows)

    def row(self, index: int) -> Batch:
        """One window: what the model reads, and the answer's first and last place.

        Without the answer, or without a part of it, both places are [CLS].
        """
        window = self.windows[index]
        question = self.questions[window.example].tokens
        context = self.contexts[window.example].tokens[window.first : window.stop]
        content = [[CLS], question, [SEP], context, [SEP]]
        tokens = np.full(self.row_length, PAD, np.int32)
        length = SPECIAL + len(question) + len(context)
        tokens[:length] = np.concatenate(content)
        types = np.zeros(self.row_length, np.int32)
        types[AROUND_QUESTION + len(question) : length] = 1
        first, last = self.targets[window.example]
        is_inside = window.first <= first and last < window.stop
        shift = self.shift(index)
        return {
            "tokens": tokens,
            "token_types": types,
            "first": np.asarray(first + shift if is_inside else 0, np.int32),
            "last": np.asarray(last + shift if is_inside else 0, np.int32),
            "weights": np.ones((), np.float32),
        }

    def row_with_choice(self, index: int) -> Batch:
        """A row, and at which places an answer may begin and end."""
        window, shift = self.windows[index], self.shift(index)
        place = np.arange(self.row_length) - shift
        return {
            **self.row(index),
            "may_begin": (window.owned_first <= place) & (place < window.owned_stop),
            "may_end": (window.first <= place) & (place < window.stop),
        }

    def shift(self, index: int) -> int:
        """What to add to a token's number in the context for its place in the row."""
        window = self.windows[index]
        question = self.questions[window.example].tokens
        return AROUND_QUESTION + len(question) - window.first

    def text(self, index: int, first: int, last: int) -> str:
        """The characters of the context from place ``first`` to ``last`` of a row."""
        example, shift = self.windows[index].example, self.shift(index)
        context = self.contexts[example]
        begin, stop = context.begins[first - shift], context.stops[last - shift]
        return self.examples[example].context[begin:stop]

    def num_widened(self) -> int:
        """Answers that begin or end inside a token, so that no span is exact."""
        return sum(
            (int(context.begins[first]), int(context.stops[last]))
            != example.answers[0].visible
            for example, context, (first, last) in zip(
                self.examples, self.contexts, self.targets, strict=True
            )
        )


def build(
    tokenizer: Tokenizer,
    examples: tuple[Example, ...],
    *,
    row_length: int,
    question_length: int,
    stride: int,
) -> Windows:
    """Encodes examples and cuts their contexts.

    Args:
      tokenizer: byte-level, with the special tokens of `text.SPECIAL_TOKENS`.
      examples: at least one.
      row_length: places of a row, padding included.
      question_length: questions are cut to so many tokens.
      stride: tokens from one window of a context to the next.

    Raises:
      UserError: there would be more than `MOST_WINDOWS`.
    """
    texts = list(dict.fromkeys(example.context for example in examples))
    by_text = dict(zip(texts, encode(tokenizer, texts), strict=True))
    contexts = [by_text[example.context] for example in examples]
    questions = [
        Encoded(*(field[:question_length] for field in encoded))
        for encoded in encode(tokenizer, [example.question for example in examples])
    ]
    windows = []
    count = 0
    for number, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        room = row_length - SPECIAL - len(question.tokens)
        count += num_windows(len(context.tokens), room, stride)
        if count > MOST_WINDOWS:
            raise UserError(
                f"config.data.stride={stride}: makes more than {MOST_WINDOWS:,} "
                f"windows of contexts of up to "
                f"{max(len(c.tokens) for c in contexts):,} tokens"
            )
        pieces = cut(len(context.tokens), room, stride)
        bounds = owned(pieces).tolist()
        for i, (first, stop) in enumerate(pieces):
            windows.append(Window(number, first, stop, bounds[i], bounds[i + 1]))
    targets = [
        answer_tokens(context, example.answers[0])
        for example, context in zip(examples, contexts, strict=True)
    ]
    return Windows(examples, questions, contexts, targets, windows, row_length)
