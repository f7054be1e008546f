import tracemalloc

import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.data import squad, squad_windows, text
from experiments.data.squad import Answer, Example

# Emoji of several code points, accents, combining characters, CRLF, wide and
# zero-width space, scripts without spaces, what looks like special tokens.
TEXTS = (
    "Caf\u00e9 Ren\u00e9e: na\u00efve \u2014 \u201cquoted\u201d \u2026",
    "cafe\u0301 n\u0303 e\u0301\u0323 combining",
    "one\r\ntwo\r\n\r\nthree \t four\u00a0five\u3000six\u200bseven",
    "\U0001f950 and \U0001f468\u200d\U0001f469\u200d\U0001f467, \U0001f1e9\U0001f1f0!",
    "\u4e2d\u6587\u6ca1\u6709\u7a7a\u683c \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    " leading, trailing  ",
    "[CLS] is not [PAD] nor [SEP]",
)
# Of no text above: most bytes are unknown to it.
OTHER = "the quick brown fox jumps over a lazy dog. " * 3


@pytest.fixture(scope="module", params=["same texts", "other text"])
def tokenizer(request):
    documents = TEXTS if request.param == "same texts" else (OTHER,)
    return text.train_tokenizer(documents, 400)


def test_every_span_of_tokens_comes_back_from_its_characters(tokenizer):
    for content, encoded in zip(
        TEXTS, squad_windows.encode(tokenizer, TEXTS), strict=True
    ):
        number = len(encoded.tokens)
        for first in range(number):
            for last in range(first, min(first + 6, number)):
                begin, stop = encoded.begins[first], encoded.stops[last]
                piece = content[begin:stop]
                assert piece == piece.strip()
                if not piece:
                    continue  # white space alone is no answer
                start, end = squad_windows.answer_tokens(
                    encoded, Answer(int(begin), piece)
                )
                assert content[encoded.begins[start] : encoded.stops[end]] == piece


def test_tokens_cover_all_that_is_not_white_space(tokenizer):
    for content, encoded in zip(
        TEXTS, squad_windows.encode(tokenizer, TEXTS), strict=True
    ):
        covered = {
            place
            for begin, stop in zip(encoded.begins, encoded.stops, strict=True)
            for place in range(begin, stop)
        }
        dark = {i for i, character in enumerate(content) if not character.isspace()}
        assert covered >= dark
        assert (np.diff(encoded.begins) >= 0).all()
        assert (np.diff(encoded.stops) >= 0).all()


def test_text_that_looks_special_is_text(tokenizer):
    (encoded,) = squad_windows.encode(tokenizer, TEXTS[-1:])
    special = {text.PAD, text.CLS, text.SEP, text.MASK}
    assert not special & set(encoded.tokens.tolist())


def test_answer_inside_a_token_is_widened():
    encoded = squad_windows.Encoded(
        np.arange(3), np.array([0, 4, 13]), np.array([3, 12, 21])
    )
    # "The Japanese industry": Japan is a part of one token.
    assert squad_windows.answer_tokens(encoded, Answer(4, "Japan")) == (1, 1)
    assert squad_windows.answer_tokens(encoded, Answer(8, "nese ind")) == (1, 2)
    assert squad_windows.answer_tokens(encoded, Answer(3, " Japanese ")) == (1, 1)
    assert squad_windows.answer_tokens(encoded, Answer(0, "The")) == (0, 0)


def test_windows_of_a_context():
    assert squad_windows.cut(10, 6, 2) == [(0, 6), (2, 8), (4, 10)]
    assert squad_windows.cut(11, 6, 3) == [(0, 6), (3, 9), (6, 11)]
    assert squad_windows.cut(6, 6, 2) == [(0, 6)]
    # A stride beyond the room leaves no token out.
    assert squad_windows.cut(7, 3, 100) == [(0, 3), (3, 6), (6, 7)]


def owner(windows, token):
    """The published rule, one token at a time."""
    best_score, best = None, None
    for number, (first, stop) in enumerate(windows):
        if first <= token < stop:
            score = min(token - first, stop - 1 - token) + 0.01 * (stop - first)
            if best_score is None or score > best_score:
                best_score, best = score, number
    return best


def test_each_token_belongs_to_the_window_with_most_context():
    rng = np.random.default_rng(0)
    for _ in range(200):
        length, room, stride = rng.integers(1, [120, 40, 30], endpoint=True).tolist()
        windows = squad_windows.cut(length, room, stride)
        assert len(windows) == squad_windows.num_windows(length, room, stride)
        bounds = squad_windows.owned(windows)
        owners = np.repeat(np.arange(len(windows)), np.diff(bounds))
        assert owners.tolist() == [owner(windows, token) for token in range(length)]


def test_earlier_of_equal_windows_owns():
    # Token 3 has one token to its right in the first window, one to its left in the
    # second one.
    assert squad_windows.owned([(0, 5), (2, 7)]).tolist() == [0, 4, 7]


@pytest.mark.nightly
def test_a_context_of_megabytes_takes_megabytes(monkeypatch):
    # A table of windows times tokens, as there was one, would have 40 GB.
    content = "lighthouse " * 60_000
    tokenizer = text.train_tokenizer([content[:1000]], 300)
    example = Example("1", "what", content, (Answer(0, "lighthouse"),))

    def build():
        return squad_windows.build(
            tokenizer, (example,), row_length=64, question_length=4, stride=16
        )

    tracemalloc.start()
    windows = build()
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    assert len(windows) > 3_000
    monkeypatch.setattr(squad_windows, "MOST_WINDOWS", len(windows))
    build()
    monkeypatch.setattr(squad_windows, "MOST_WINDOWS", len(windows) - 1)
    with pytest.raises(UserError, match=r"config\.data\.stride=16: makes more than"):
        build()


@pytest.fixture(scope="module")
def words():
    """One token a word."""
    content = "a b c d e f g h"
    tokenizer = text.train_tokenizer([content], 100)
    examples = (
        Example("1", "h g", content, (Answer(8, "e f"), Answer(0, "a"))),
        Example("2", "a", content, (Answer(0, "a b c d e f"),)),
    )
    windows = squad_windows.build(
        tokenizer, examples, row_length=8, question_length=1, stride=2
    )
    return tokenizer, windows


def test_rows_are_question_and_window(words):
    tokenizer, windows = words
    # 4 places beside [CLS], a question of one token, [SEP] and [SEP].
    pieces = [(0, 4), (2, 6), (4, 8)]
    assert [(w.example, w.first, w.stop) for w in windows.windows] == [
        (example, *piece) for example in (0, 1) for piece in pieces
    ]
    row = windows.row(1)
    content = [" c", " d", " e", " f"]
    (question, *_), *tokens = [
        encoded.tokens.tolist()
        for encoded in squad_windows.encode(tokenizer, ["h g", *content])
    ]
    (c,), (d,), (e,), (f,) = tokens
    expected = [text.CLS, question, text.SEP, c, d, e, f, text.SEP]
    assert row["tokens"].tolist() == expected
    assert row["token_types"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_answer_is_marked_where_all_of_it_is(words):
    _, windows = words
    marked = [
        (int(row["first"]), int(row["last"])) for row in map(windows.row, range(6))
    ]
    # e f: absent in a b c d; the last two of c d e f; the first two of e f g h. The
    # long answer fits into no window.
    assert marked == [(0, 0), (5, 6), (3, 4), (0, 0), (0, 0), (0, 0)]
    assert windows.text(1, 5, 6) == windows.text(2, 3, 4) == "e f"


def test_answers_begin_where_the_window_owns_and_end_anywhere_in_it(words):
    _, windows = words
    begins = [
        np.flatnonzero(windows.row_with_choice(i)["may_begin"]).tolist()
        for i in range(3)
    ]
    # a b c, then d e, then f g h: c has two tokens before and one after it in the first
    # window, and none before it in the second one.
    assert begins == [[3, 4, 5], [4, 5], [4, 5, 6]]
    for i in range(3):
        ends = np.flatnonzero(windows.row_with_choice(i)["may_end"])
        assert ends.tolist() == [3, 4, 5, 6]


def test_short_rows_are_padded():
    tokenizer = text.train_tokenizer(["a b"], 50)
    example = Example("1", "", "a b", (Answer(2, "b"),))
    windows = squad_windows.build(
        tokenizer, (example,), row_length=9, question_length=4, stride=2
    )
    row = windows.row_with_choice(0)
    number = len(windows.contexts[0].tokens)
    assert row["tokens"][2 + number] == text.SEP
    assert (row["tokens"][3 + number :] == text.PAD).all()
    assert (row["token_types"][3 + number :] == 0).all()
    assert np.flatnonzero(row["may_end"]).tolist() == list(range(2, 2 + number))
    assert windows.text(0, int(row["first"]), int(row["last"])) == "b"


def test_answers_inside_tokens_are_counted():
    content = "Japanese industry"
    tokenizer = text.train_tokenizer([content] * 5, 300)
    examples = tuple(
        Example(answer, "where", content, (Answer(0, answer),))
        for answer in ("Japan", "Japanese", "Japanese industry", "Japanese indus")
    )
    windows = squad_windows.build(
        tokenizer, examples, row_length=32, question_length=8, stride=8
    )
    assert windows.num_widened() == 2
    assert squad.Answer(0, "Japan").visible == (0, 5)
