import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import squad_windows, text
from experiments.data.squad import Answer, Example
from experiments.tasks import squad_answers
from tests.in_time import only


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("The  Cat,\tsat.", "cat sat"),
        ("a an the A AN THE", ""),
        ("another theatre, Anna", "another theatre anna"),
        # Punctuation is deleted before articles are looked for.
        ("well-known", "wellknown"),
        ("U.S.A.", "usa"),
        ("(the) a.m. 'A'", "am"),
        ("a-b the.", "ab"),
        # Other punctuation than ASCII's stays, and is no part of a word.
        ("\u201cthe end\u201d", "\u201c end\u201d"),
        ("1990\u20131995", "1990\u20131995"),
        ("the_end $5", "theend 5"),
        ("\u00c9t\u00e9\u00a0\u3000Z", "\u00e9t\u00e9 z"),
    ],
)
def test_normal_form(raw, normal):
    assert squad_answers.normalise(raw) == normal


@pytest.mark.parametrize(
    ("prediction", "truth", "score"),
    [
        ("The cat sat.", "cat sat", 1.0),
        ("cat sat", "cat sat down", 4 / 5),  # precision 1, recall 2/3
        ("big cat sat here", "cat sat down", 4 / 7),  # 1/2 and 2/3
        ("dog dog", "dog", 2 / 3),  # 1/2 and 1: a word counts as often as it occurs
        ("dog dog", "dog dog cat", 4 / 5),
        ("sat cat", "cat sat", 1.0),  # the order does not matter
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "a", 0.0),  # equal, but no word is shared
    ],
)
def test_f1_by_hand(prediction, truth, score):
    assert squad_answers.f1(prediction, truth) == pytest.approx(score, abs=1e-12)


def asked(*truths):
    return Example("id", "?", "", tuple(Answer(0, truth) for truth in truths))


def test_each_question_has_the_best_of_its_truths():
    examples = [
        asked("red car", "a blue car"),  # both by the second
        asked("x y z", "x w", "v"),  # F1 4/5 by the first, of 3 words, 2 are given
        asked("cat"),
        asked("the"),  # exact without a shared word: F1 is 0
    ]
    predictions = ["Blue car", "x y", "", "an"]
    assert squad_answers.evaluate(examples, predictions) == pytest.approx(
        {"exact_match": 100 * 2 / 4, "f1": 100 * (1 + 4 / 5) / 4}
    )


def test_each_question_needs_one_prediction():
    with pytest.raises(ValueError, match="shorter"):
        squad_answers.evaluate([asked("a"), asked("b")], ["a"])


def all_spans(begin, end, may_begin, may_end, n_best, longest):
    """Pairs of the best begins and ends, one at a time, best first."""

    def best(logits, allowed):
        places = [place for place in range(len(logits)) if allowed[place]]
        return sorted(places, key=lambda place: -logits[place])[:n_best]

    return sorted(
        (
            (float(begin[i]) + float(end[j]), i, j)
            for i in best(begin, may_begin)
            for j in best(end, may_end)
            if i <= j < i + longest
        ),
        reverse=True,
    )


@pytest.mark.parametrize(
    ("n_best", "longest"), only({(5, 4)}, [(1, 3), (5, 4), (12, 12)])
)
def test_best_spans_are_those_of_a_loop_over_pairs(n_best, longest):
    rng = np.random.default_rng(n_best)
    # Multiples of 1/1024, so that sums are exact in float32 and, mostly, differ.
    logits = rng.integers(-(2**18), 2**18, (2, 40, 12)).astype(np.float32) / 1024
    allowed = rng.random((2, 40, 12)) < 0.6
    allowed[:, 0] = False
    found = squad_answers.best_spans(
        *map(jnp.asarray, (*logits, *allowed)), n_best=n_best, longest=longest
    )
    assert found["score"].shape == (40, n_best)
    seen = 0
    for row in range(40):
        expected = all_spans(*logits[:, row], *allowed[:, row], n_best, longest)[
            :n_best
        ]
        number = len(expected)
        seen += number
        kept = [np.asarray(found[name][row]) for name in ("score", "first", "last")]
        assert expected == [
            tuple(values[k].item() for values in kept) for k in range(number)
        ]
        assert (kept[0][number:] == -np.inf).all()
    assert seen > 10


TEXT = "red green blue red green"


def two_windows():
    """One token a word; windows red green blue | blue red green, and a question."""
    examples = (asked_in("blue"), asked_in("green"))
    tokenizer = text.train_tokenizer([TEXT] * 9, 300)
    return squad_windows.build(
        tokenizer, examples, row_length=7, question_length=1, stride=2
    )


def asked_in(truth):
    return Example(truth, "red", TEXT, (Answer(TEXT.index(truth), truth),))


def spans(*rows):
    """Rows of (score, first, last), as arrays."""
    columns = np.moveaxis(np.array(rows, float), -1, 0)
    score, first, last = columns
    return {"score": score, "first": first.astype(int), "last": last.astype(int)}


def test_answers_are_the_best_over_all_windows_of_a_question():
    windows = two_windows()
    assert [(w.example, w.first, w.stop) for w in windows.windows] == [
        (0, 0, 3),
        (0, 2, 5),
        (1, 0, 3),
        (1, 2, 5),
    ]
    none = (-np.inf, 0, 0)
    found = squad_answers.n_best_answers(
        windows,
        spans(
            [(2.0, 3, 4), (1.0, 5, 5), none],
            [(3.0, 3, 4), (2.5, 4, 5), (2.4, 4, 4)],
            [none] * 3,
            [(np.nan, 3, 3), none, none],
            [(9.0, 3, 3)] * 3,  # filler after the last window
        ),
    )
    # "red green" twice, counted once with its better score.
    assert found == [[("blue red", 3.0), ("red green", 2.5), ("red", 2.4)], []]


def test_question_without_any_span_has_an_empty_answer():
    windows = two_windows()
    none = [(-np.inf, 0, 0)]
    found = squad_answers.n_best_answers(windows, spans(none, none, none, none))
    assert found == [[], []]
