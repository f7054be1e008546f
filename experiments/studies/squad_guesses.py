"""Answers to questions without a model: by chance, or always the same."""

import collections
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.data.squad import Article, Example
from experiments.studies import study
from experiments.tasks import squad_answers

DRAWS = 200  # random spans of each question
PLACES = tuple(i / 10 for i in range(10))  # of a context's words
LENGTHS = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40)  # words
WORD = re.compile(r"\S+")

Guess = Callable[[Example], str]


def all_of(train: Sequence[Article], test: Sequence[Article]) -> dict[str, Any]:
    """The scores of each on the test articles, which choose nothing."""
    known = [example for article in train for example in article]
    place, length = best_span(known)
    common, count = most_common(known)
    lengths = np.array([num_words(example.answers[0].text) for example in known])
    chance = [random_scores(article, lengths) for article in test]
    fixed: dict[str, Guess] = {
        "constant span": lambda example: span(example.context, place, length),
        "constant answer": lambda example: common,
        "whole context": lambda example: example.context,
    }
    scores = {
        "random span": chance,
        **{
            name: [score(article, guess) for article in test]
            for name, guess in fixed.items()
        },
    }
    sizes = np.array([len(article) for article in test])
    return {
        "place": place,
        "length": length,
        "answer": common,
        "answer_count": count,
        "scores": {name: of_articles(rows, sizes) for name, rows in scores.items()},
    }


def of_articles(rows: Sequence[dict[str, float]], sizes: np.ndarray) -> dict[str, Any]:
    """The scores of all questions, and those of each article."""
    by_article = {name: [row[name] for row in rows] for name in rows[0]}
    whole = {name: np.average(x, weights=sizes) for name, x in by_article.items()}
    return {
        **{name: study.rounded([value])[0] for name, value in whole.items()},
        "by_article": {name: study.rounded(x) for name, x in by_article.items()},
    }


def score(examples: Sequence[Example], guess: Guess) -> dict[str, float]:
    """By the official metric."""
    return squad_answers.evaluate(examples, [guess(example) for example in examples])


def random_scores(examples: Sequence[Example], lengths: np.ndarray) -> dict[str, float]:
    """The mean over random spans: a length of ``lengths``, then any place it fits."""
    rng = np.random.default_rng(0)

    def guess(example: Example) -> str:
        words = num_words(example.context)
        length = min(int(rng.choice(lengths)), words)
        first = int(rng.integers(words - length + 1))
        return cut(example.context, first, length)

    draws = [score(examples, guess) for _ in range(DRAWS)]
    return {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}


def best_span(examples: Sequence[Example]) -> tuple[float, int]:
    """The place and the number of words whose span has the best F1 everywhere."""

    def f1(choice: tuple[float, int]) -> float:
        return score(examples, lambda e: span(e.context, *choice))["f1"]

    return max(itertools.product(PLACES, LENGTHS), key=f1)


def most_common(examples: Sequence[Example]) -> tuple[str, int]:
    """The answer that most questions have, and how many."""
    answers = [squad_answers.normalise(e.answers[0].text) for e in examples]
    return collections.Counter(answers).most_common(1)[0]


def span(context: str, place: float, length: int) -> str:
    """So many words from a place on, as a share of all words."""
    words = num_words(context)
    return cut(context, min(int(place * words), max(words - length, 0)), length)


def cut(context: str, first: int, length: int) -> str:
    """Words of a context with what is between them."""
    words = list(WORD.finditer(context))[first : first + length]
    return context[words[0].start() : words[-1].end()]


def num_words(text: str) -> int:
    """Runs of characters that are not white space."""
    return len(WORD.findall(text))
