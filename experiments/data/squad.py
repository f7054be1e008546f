"""Questions with answers in their context, as SQuAD v1.1 has them.

The format of Rajpurkar et al., `SQuAD <https://arxiv.org/abs/1606.05250>`_, 2016:
``data[].paragraphs[].{context, qas[].{id, question, answers[].{answer_start,
text}}}``, where ``answer_start`` counts code points.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common import inputs
from experiments.common.errors import UserError
from experiments.data import squad_sample

EMBEDDED = "embedded"
VALIDATION_FRACTION = 0.1


@dataclasses.dataclass(frozen=True)
class Answer:
    """A piece of a context that an annotator chose."""

    start: int
    text: str

    @property
    def visible(self) -> tuple[int, int]:
        """Begin and end in the context, without white space at the edges."""
        begin = self.start + len(self.text) - len(self.text.lstrip())
        return begin, self.start + len(self.text.rstrip())


@dataclasses.dataclass(frozen=True)
class Example:
    """A question, its context and one or more answers to it."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]

    @property
    def sha256(self) -> bytes:
        """Identifies the content, whatever the file's layout and other keys."""
        answers = [[answer.start, answer.text] for answer in self.answers]
        content = json.dumps([self.id, self.question, self.context, answers])
        return hashlib.sha256(content.encode()).digest()


Article = tuple[Example, ...]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Questions for training and for validation, and what identifies them."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    origin: str
    sha256: str


def load(path: str, validation_path: str, split_seed: int) -> Dataset:
    """Reads one or two files.

    Args:
      path: a SQuAD v1.1 JSON file, or ``"embedded"`` for a few written paragraphs.
      validation_path: the file to validate on. Empty: about a tenth of the questions
        of ``path``, by whole articles.
      split_seed: which articles these are.

    Raises:
      UserError: not in the format, with the place; ids that occur twice; nothing to
        split.
    """
    articles = _articles(path, "config.data.path")
    if validation_path:
        held_out = _articles(validation_path, "config.data.validation_path")
        train, validation = _joined(articles), _joined(held_out)
    else:
        train, validation = split(articles, split_seed, path)
    examples = (*train, *validation)
    _check_ids(examples)
    digest = hashlib.sha256(b"".join(example.sha256 for example in examples))
    digest.update(str(len(train)).encode())
    origin = f"{path} and {validation_path}" if validation_path else path
    return Dataset(train, validation, origin, digest.hexdigest())


def split(
    articles: Sequence[Article], seed: int, path: str
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Holds out about a tenth of the questions, and at least one article.

    Raises:
      UserError: fewer than two articles.
    """
    if len(articles) < 2:
        raise UserError(
            f"config.data.path={path}: has questions in {len(articles)} article, two "
            "are needed, one of them for validation; or set config.data.validation_path"
        )
    order = np.random.default_rng(seed).permutation(len(articles)).tolist()
    room = VALIDATION_FRACTION * sum(map(len, articles))
    held_out: set[int] = set()
    for index in order:
        if len(articles[index]) <= room:
            held_out.add(index)
            room -= len(articles[index])
    if not held_out:
        held_out.add(min(order, key=lambda index: len(articles[index])))
    train = [a for i, a in enumerate(articles) if i not in held_out]
    return _joined(train), _joined([articles[i] for i in sorted(held_out)])


def _joined(articles: Sequence[Article]) -> tuple[Example, ...]:
    return tuple(example for article in articles for example in article)


def _check_ids(examples: Sequence[Example]) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise UserError(f"config.data: the question id {example.id} occurs twice")
        seen.add(example.id)


def _articles(path: str, field: str) -> list[Article]:
    if not path:
        raise UserError(
            f"{field}=: must name a SQuAD v1.1 JSON file, or be {EMBEDDED} for a few "
            "paragraphs that come with the code"
        )
    if path == EMBEDDED:
        return parse(squad_sample.document(), path)
    with inputs.needed(f"{field}={path}", "a SQuAD v1.1 JSON file"):
        content = inputs.read_text(inputs.local(field, path))
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    return parse(document, path)


def parse(document: Any, path: str) -> list[Article]:
    """Checks a document and returns its articles that have questions.

    Raises:
      UserError: the first place where it differs from the format.
    """
    if not isinstance(document, dict):
        raise UserError(
            f"{path}: must be a JSON object with the key data, is {_kind(document)}"
        )
    articles = [
        tuple(
            example
            for i, paragraph in enumerate(_get(article, "paragraphs", list, place))
            for example in _examples(paragraph, f"{place}.paragraphs[{i}]")
        )
        for number, article in enumerate(_get(document, "data", list, path))
        for place in [f"{path}: data[{number}]"]
    ]
    articles = [article for article in articles if article]
    if not articles:
        raise UserError(f"{path}: no question in it")
    return articles


def _examples(paragraph: Any, place: str) -> list[Example]:
    context = _text(paragraph, "context", place)
    found = []
    for number, entry in enumerate(_get(paragraph, "qas", list, place)):
        inside = f"{place}.qas[{number}]"
        identity = _text(entry, "id", inside)
        answers = tuple(
            _answer(answer, context, f"{inside}.answers[{i}] (id {identity})")
            for i, answer in enumerate(_get(entry, "answers", list, inside))
        )
        if not answers:
            raise UserError(
                f"{inside} (id {identity}): no answer; SQuAD v1.1 has one or more"
            )
        question = _text(entry, "question", inside)
        found.append(Example(identity, question, context, answers))
    return found


def _answer(entry: Any, context: str, place: str) -> Answer:
    text, start = _text(entry, "text", place), _get(entry, "answer_start", int, place)
    if not text.strip():
        raise UserError(f"{place}: text={text!r}: must be more than white space")
    there = context[start : start + len(text)] if start >= 0 else ""
    if there != text:
        raise UserError(
            f"{place}: answer_start={start}: the context has {there!r} there, the "
            f"answer is {text!r}"
        )
    return Answer(start, text)


def _text(node: Any, key: str, place: str) -> str:
    text = _get(node, key, str, place)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: {key} has half of a surrogate pair at character {error.start}"
        ) from None
    return text


def _get(node: Any, key: str, kind: type, place: str) -> Any:
    if not isinstance(node, dict):
        raise UserError(f"{place}: must be a JSON object, is {_kind(node)}")
    if key not in node:
        raise UserError(f"{place}: has no key {key}")
    value = node[key]
    if type(value) is not kind:  # a bool is an int
        raise UserError(f"{place}: {key} must be {KINDS[kind]}, is {_kind(value)}")
    return value


KINDS = {
    str: "a string",
    int: "an integer",
    list: "an array",
    dict: "an object",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return KINDS[type(value)]
