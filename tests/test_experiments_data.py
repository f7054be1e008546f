import math

import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.data import stream, text

DOCUMENTS = tuple(
    f"{word} begins here.\n\nThe {word} is followed by its {word}ness. " * 5
    for word in ("apple", "bread", "candle", "door", "engine", "feather", "glass")
)


@pytest.fixture(scope="module")
def embedded():
    return text.load_corpus("", "")


@pytest.fixture(scope="module")
def tokenizer():
    return text.train_tokenizer(DOCUMENTS, 120)


def test_embedded_text_is_many_documents_of_prose(embedded):
    assert len(embedded.documents) > 50
    assert sum(map(len, embedded.documents)) > 300_000
    assert len(embedded.sha256) == 64


def test_file_is_cut_at_separators(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("first\nstill first\n\n  \nsecond \u00e9\n\n\n", encoding="utf-8")
    corpus = text.load_corpus(str(path), "")
    assert corpus.documents == ("first\nstill first", "second \u00e9")
    corpus = text.load_corpus(str(path), "still first ")
    assert corpus.documents == ("first", "\n  \nsecond \u00e9\n\n\n")


@pytest.mark.parametrize("separator", ["(a+)+$", "(x)", "(", "[", "\\", "a|", "a.c"])
def test_separators_are_no_patterns(tmp_path, separator):
    lines = ["a" * 40 + "!", separator, "x", f"{separator} x", "abc"]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))
    found = text.load_corpus(str(path), separator)
    assert found.documents == (lines[0], "\n".join(lines[2:]))


def test_every_text_file_of_a_folder_is_a_document(tmp_path):
    for name, content in (("b.txt", "two\n\n2"), ("a.txt", "one"), ("c.md", "no")):
        (tmp_path / name).write_text(content)
    assert text.load_corpus(str(tmp_path), "x").documents == ("one", "two\n\n2")


def test_hash_depends_on_text_and_on_document_borders(tmp_path):
    hashes = set()
    contents = ("a b\n\nc", "a\n\nb c", "a b\n\nd")
    contents += ("a\0b\n\nc", "a\n\nb\n\nc", "a\n\nb\0c", "a\0b\0c", "a\n\n\0b\n\nc")
    for content in contents:
        path = tmp_path / "text.txt"
        path.write_text(content)
        hashes.add(text.load_corpus(str(path), "").sha256)
    assert len(hashes) == len(contents)


def write_nothing(path):
    path.write_text(" \n\n ")


def write_latin1(path):
    path.write_bytes("caf\u00e9 au lait".encode("latin-1"))


@pytest.mark.parametrize(
    ("prepare", "separator", "message"),
    [
        (lambda path: None, "x", "No such file"),
        (lambda path: path.mkdir(), "x", "no .*txt file"),
        (write_nothing, "x", "no text"),
        (write_latin1, "x", "not UTF-8 text .byte 3"),
        (lambda path: path.write_text("a"), "a\n\nb", r"separator=a\\n\\nb: must be"),
    ],
)
def test_bad_text_is_refused(tmp_path, prepare, separator, message):
    path = tmp_path / "input"
    prepare(path)
    with pytest.raises(UserError, match=message) as caught:
        text.load_corpus(str(path), separator)
    assert "\n" not in str(caught.value)


def test_split_holds_out_a_tenth_and_shares_no_paragraph(embedded):
    split = text.split_documents(embedded.documents, seed=0)
    held_out = sum(map(len, split.validation)) / sum(map(len, embedded.documents))
    assert 0.08 < held_out <= 0.1
    assert not set(split.train) & set(split.validation)
    train, validation = (
        {text.normalise(p) for document in part for p in text.paragraphs(document)}
        for part in (split.train, split.validation)
    )
    assert not (train & validation) - {""}
    assert len(validation) > 100


def test_training_documents_lose_only_what_validation_has(embedded):
    split = text.split_documents(embedded.documents, seed=0)
    kept = {
        text.normalise(p) for document in split.train for p in text.paragraphs(document)
    }
    held_out = {
        text.normalise(p)
        for document in split.validation
        for p in text.paragraphs(document)
    }
    everything = {
        text.normalise(p)
        for document in embedded.documents
        for p in text.paragraphs(document)
    }
    assert kept - {""} == everything - held_out - {""}


def test_split_depends_on_its_seed_alone(embedded):
    splits = [text.split_documents(embedded.documents, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0].validation != splits[2].validation


def test_smallest_of_two_long_documents_is_held_out():
    split = text.split_documents(("a " * 50, "b " * 40), seed=0)
    assert split == text.Split(train=("a " * 50,), validation=("b " * 40,))


@pytest.mark.parametrize("documents", [("one",), ("same text", "same  text")])
def test_split_needs_two_different_documents(documents):
    with pytest.raises(ValueError, match="at least two different"):
        text.split_documents(documents, seed=0)


def test_tokenizer_is_reversible_and_repeatable(tokenizer):
    (tokens,) = text.encode(tokenizer, DOCUMENTS[:1])
    assert tokenizer.decode(tokens.tolist()) == DOCUMENTS[0]
    assert tokens.min() >= len(text.SPECIAL_TOKENS)
    again = text.train_tokenizer(DOCUMENTS, 120)
    assert again.to_str() == tokenizer.to_str()


def test_special_tokens_have_the_ids_that_the_model_uses(tokenizer):
    for index, token in enumerate(text.SPECIAL_TOKENS):
        assert tokenizer.token_to_id(token) == index


def test_unseen_characters_become_unknown(tokenizer):
    (tokens,) = text.encode(tokenizer, ["\u00e9"])
    assert set(tokens.tolist()) == {text.UNK}


def test_windows_hold_every_token_once_in_order():
    encoded = [np.arange(10, 17, dtype=np.int32), np.array([99], np.int32)]
    expected = [
        [text.CLS, 10, 11, 12, text.SEP],
        [text.CLS, 13, 14, 15, text.SEP],
        [text.CLS, 16, text.SEP, text.PAD, text.PAD],
        [text.CLS, 99, text.SEP, text.PAD, text.PAD],
    ]
    np.testing.assert_array_equal(text.windows(encoded, 5), expected)


VOCABULARY = 50


@pytest.fixture(scope="module")
def masked():
    rng = np.random.default_rng(0)
    encoded = [rng.integers(5, VOCABULARY, n, np.int32) for n in (40_000, 7, 1)]
    rows = text.windows(encoded, 42)
    return rows, text.mask_tokens(rows, np.random.default_rng(1), VOCABULARY)


def test_fifteen_percent_are_masked_80_10_10(masked):
    rows, batch = masked
    used = batch["weights"] == 1
    total = used.sum()
    # 4 standard deviations of a binomial count of about 6,000.
    share = total / (rows >= len(text.SPECIAL_TOKENS)).sum()
    assert share == pytest.approx(0.15, abs=0.002)
    seen = np.take_along_axis(batch["tokens"], batch["positions"], axis=1)[used]
    targets = batch["targets"][used]
    others = VOCABULARY - len(text.SPECIAL_TOKENS)
    kept = 0.1 + 0.1 / others  # a random token may be the right one
    assert (seen == text.MASK).mean() == pytest.approx(0.8, abs=0.021)
    assert (seen == targets).mean() == pytest.approx(kept, abs=0.017)
    random = seen[(seen != text.MASK) & (seen != targets)]
    assert random.min() == len(text.SPECIAL_TOKENS)
    assert random.max() == VOCABULARY - 1


def test_masking_never_touches_special_tokens_nor_others(masked):
    rows, batch = masked
    used = batch["weights"] == 1
    np.testing.assert_array_equal(
        batch["targets"], np.take_along_axis(rows, batch["positions"], axis=1)
    )
    assert batch["targets"][used].min() >= len(text.SPECIAL_TOKENS)
    chosen = np.zeros_like(rows, bool)
    row_index = np.broadcast_to(np.arange(len(rows))[:, None], used.shape)
    chosen[row_index[used], batch["positions"][used]] = True
    assert chosen.sum() == used.sum()  # no position twice
    np.testing.assert_array_equal(batch["tokens"][~chosen], rows[~chosen])


def test_every_position_is_masked_equally_often(masked):
    _, batch = masked
    used = batch["weights"] == 1
    counts = np.bincount(batch["positions"][used], minlength=42)
    assert counts[0] == counts[-1] == 0
    # About 150 each; 5 standard deviations.
    assert np.abs(counts[1:-1] - counts[1:-1].mean()).max() < 5 * math.sqrt(150)


def test_row_without_tokens_has_no_weight():
    rows = np.array([[text.CLS, text.SEP, text.PAD, text.PAD]], np.int32)
    batch = text.mask_tokens(rows, np.random.default_rng(0), VOCABULARY)
    assert batch["weights"].sum() == 0
    np.testing.assert_array_equal(batch["tokens"], rows)


def make_rows(count):
    tokens = np.arange(5, 5 + 4 * count, dtype=np.int32)
    return text.windows([tokens], 6)


def assert_equal_batches(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_batch_depends_on_seed_and_step_alone():
    rows = make_rows(20)
    pipelines = [text.train_pipeline(rows, 8, seed, 100) for seed in (0, 0, 1)]
    from_start = stream.whole(pipelines[0], 0)
    batches = [next(from_start) for _ in range(7)]
    assert_equal_batches(batches[6], next(stream.whole(pipelines[1], 6)))
    other = next(stream.whole(pipelines[2], 6))
    assert not np.array_equal(batches[6]["tokens"], other["tokens"])


def test_each_epoch_has_every_row_once_in_a_new_order():
    rows = make_rows(20)
    batches = stream.whole(text.train_pipeline(rows, 10, 0, 100), 0)
    restored = []
    for _ in range(4):
        batch = next(batches)
        np.put_along_axis(batch["tokens"], batch["positions"], batch["targets"], axis=1)
        restored.extend(batch["tokens"][:, 1].tolist())
    first, second = restored[:20], restored[20:]
    assert sorted(first) == sorted(second) == sorted(rows[:, 1])
    assert first != second


def test_masks_change_from_epoch_to_epoch():
    rows = text.windows([np.arange(5, 45, dtype=np.int32)], 42)
    batches = stream.whole(text.train_pipeline(rows, 1, 0, 100), 0)
    positions = {tuple(sorted(next(batches)["positions"][0])) for _ in range(5)}
    assert len(positions) == 5


def test_validation_covers_every_row_with_fixed_masks():
    rows = make_rows(10)
    batches = text.validation_batches(rows, 4, 0, 100)
    assert [batch["tokens"].shape for batch in batches] == [(4, 6)] * 3
    for batch in batches:
        np.put_along_axis(batch["tokens"], batch["positions"], batch["targets"], axis=1)
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    np.testing.assert_array_equal(tokens[:10], rows)
    assert (tokens[10:] == text.PAD).all()
    assert batches[2]["weights"][2:].sum() == 0
    again = text.validation_batches(rows, 4, 0, 100)
    np.testing.assert_array_equal(again[0]["positions"], batches[0]["positions"])


def test_frequency_cross_entropy_of_a_hand_made_case():
    train = [np.array([5, 5, 6], np.int32), np.array([6, 6], np.int32)]
    validation = [np.array([5, 6, 7, text.UNK], np.int32)]
    # Counts with one added: 3, 4, 1 of 8; the unknown token does not count.
    expected = -(math.log(3 / 8) + math.log(4 / 8) + math.log(1 / 8)) / 3
    found = text.frequency_cross_entropy(train, validation, 8)
    assert found == pytest.approx(expected, rel=1e-12)
