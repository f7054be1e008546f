"""From logits to answers, and the score of SQuAD v1.1."""

import collections
import re
import string
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.squad import Example
from experiments.data.squad_windows import Windows

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def best_spans(
    begin_logits: jax.Array,
    end_logits: jax.Array,
    may_begin: jax.Array,
    may_end: jax.Array,
    *,
    n_best: int,
    longest: int,
) -> dict[str, jax.Array]:
    """The ``n_best`` spans of each row among its best begins times its best ends.

    The published code takes the best places first and drops those that are not allowed
    then; here only allowed places count among the best, so that they are not crowded
    out.

    Args:
      begin_logits: (rows, length), as are the three after it.
      end_logits: scores of the last places.
      may_begin: where a span may begin.
      may_end: where it may end.
      n_best: how many begins, ends and spans, at most the length.
      longest: most places of a span.

    Returns:
      "score" (rows, n_best), best first, with "first" and "last" places; a score of
      minus infinity or NaN is no span.
    """
    begins, firsts = jax.lax.top_k(jnp.where(may_begin, begin_logits, -jnp.inf), n_best)
    ends, lasts = jax.lax.top_k(jnp.where(may_end, end_logits, -jnp.inf), n_best)
    length = lasts[:, None, :] - firsts[:, :, None] + 1
    is_span = (length >= 1) & (length <= longest)
    scores = jnp.where(is_span, begins[:, :, None] + ends[:, None, :], -jnp.inf)
    score, index = jax.lax.top_k(scores.reshape(len(scores), -1), n_best)
    return {
        "score": score,
        "first": jnp.take_along_axis(firsts, index // n_best, axis=1),
        "last": jnp.take_along_axis(lasts, index % n_best, axis=1),
    }


def n_best_answers(
    windows: Windows, spans: dict[str, np.ndarray]
) -> list[list[tuple[str, float]]]:
    """For each example its best different answers over all windows, best first.

    Args:
      windows: what the rows were made of, in the rows' order.
      spans: what `best_spans` gave; rows after the last window are filler.

    Returns:
      Texts, cut from the contexts, with their scores; none where no span is allowed.
    """
    n_best = spans["score"].shape[1]
    candidates: list[list[tuple[float, int, int]]] = [[] for _ in windows.examples]
    for row, window in enumerate(windows.windows):
        scores = spans["score"][row].tolist()
        candidates[window.example] += [
            (score, row, k) for k, score in enumerate(scores) if score > -np.inf
        ]
    answers = []
    for found in candidates:
        texts: dict[str, float] = {}
        for score, row, k in sorted(found, key=lambda item: -item[0]):
            first, last = int(spans["first"][row, k]), int(spans["last"][row, k])
            texts.setdefault(windows.text(row, first, last), score)
            if len(texts) == n_best:
                break
        answers.append(list(texts.items()))
    return answers


def normalise(text: str) -> str:
    """Lower case without ASCII punctuation, then articles, then extra white space.

    Punctuation is deleted, not replaced, so "well-known" is one word, and other
    punctuation than ASCII's stays.
    """
    bare = text.lower().translate(WITHOUT_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", bare).split())


def f1(prediction: str, truth: str) -> float:
    """Harmonic mean of precision and recall over words, each as often as it occurs.

    It is 0 where no word is shared, even of two texts without any word.
    """
    predicted, true = normalise(prediction).split(), normalise(truth).split()
    shared = collections.Counter(predicted) & collections.Counter(true)
    # Equal to 2pr / (p + r) with p = shared / predicted and r = shared / true.
    total = len(predicted) + len(true)
    return 2 * shared.total() / total if total else 0.0


def evaluate(
    examples: Sequence[Example], predictions: Sequence[str]
) -> dict[str, float]:
    """Exact match and F1 in percent, each example at the best of its answers."""
    exact = match = 0.0
    for example, prediction in zip(examples, predictions, strict=True):
        truths = [answer.text for answer in example.answers]
        exact += any(normalise(prediction) == normalise(truth) for truth in truths)
        match += max(f1(prediction, truth) for truth in truths)
    percent = 100 / len(examples)
    return {"exact_match": percent * exact, "f1": percent * match}
