"""What real texts have in them, and what stands where a text should."""

import json
import os
import time

import pytest

from experiments.common.errors import LONGEST, UserError
from experiments.data import squad, squad_sample, text, tokenizer

# Special tokens that are spelled in the text.

SPELLED = (
    "BERT replaces words by [MASK] and fills up with [PAD] .",
    "[CLS] a question [SEP] a context [SEP]",
    "[PAD]" * 50,
    "what[MASK]ever [UNK]s",
)


@pytest.fixture(params=["trained", "read from its file"])
def spelled(request, tmp_path):
    found = text.train_tokenizer(SPELLED * 20, 300)
    if request.param == "trained":
        return found
    tokenizer.save(found, tmp_path)
    return tokenizer.read(tmp_path / tokenizer.FILE)


@pytest.mark.parametrize("document", SPELLED)
def test_special_tokens_in_a_text_are_plain_text(spelled, document):
    (tokens,) = text.encode(spelled, [document])
    assert tokens.min() >= len(text.SPECIAL_TOKENS)
    assert spelled.decode(tokens.tolist(), skip_special_tokens=False) == document
    row = text.windows([tokens], 200)[0]
    assert (row[: len(tokens) + 2] == text.PAD).sum() == 0


# Byte-order marks.

MARK = b"\xef\xbb\xbf"
QUOTED = "A paragraph that both documents have."


def test_a_byte_order_mark_hides_no_paragraph(tmp_path):
    longer = b"\n\nMore of the first document, which is much longer than the other."
    (tmp_path / "a.txt").write_bytes(MARK + QUOTED.encode() + longer)
    (tmp_path / "b.txt").write_text(QUOTED)
    corpus = text.load_corpus(str(tmp_path), "")
    assert not any("\ufeff" in document for document in corpus.documents)
    split = text.split_documents(corpus.documents, 0)
    assert split.validation == (QUOTED,)
    assert not any(QUOTED in document for document in split.train)


def test_marks_where_files_were_joined_are_none_of_the_text(tmp_path):
    path = tmp_path / "joined.txt"
    path.write_bytes(MARK + b"one\n\n" + MARK + b"two\n" + MARK + b"\nthree")
    assert text.load_corpus(str(path), "").documents == ("one", "two", "three")


def test_a_mark_alone_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(MARK)
    with pytest.raises(UserError, match="no text, only white space"):
        text.load_corpus(str(tmp_path / "a.txt"), "")


def test_line_ends_of_other_systems_end_lines(tmp_path):
    hashes = set()
    for ends in (b"\n", b"\r\n", b"\r"):
        path = tmp_path / "text.txt"
        path.write_bytes(b"one" + ends + b"1" + ends + ends + b"two")
        corpus = text.load_corpus(str(path), "")
        assert corpus.documents == ("one\n1", "two")
        hashes.add(corpus.sha256)
    assert len(hashes) == 1


def test_a_mark_before_questions_is_no_damage(tmp_path):
    path = tmp_path / "squad.json"
    content = json.dumps(squad_sample.document()).encode()
    path.write_bytes(MARK + content)
    assert squad.load(str(path), "", 0).sha256 == squad.load("embedded", "", 0).sha256


# Two contents, one hash.


def test_a_zero_byte_in_a_text_is_no_border(tmp_path):
    def digest(content):
        path = tmp_path / "text.txt"
        path.write_bytes(content)
        return text.load_corpus(str(path), "").sha256

    contents = (
        b"a\0b\n\nc",
        b"a\n\nb\n\nc",
        b"a\n\nb\0c",
        b"a\0b\0c",
        b"a\n\n\0b\n\nc",
    )
    assert len({digest(content) for content in contents}) == len(contents)
    # "\u00ff" is two other bytes than the one that stands for zero.
    assert digest("a\u00ffb".encode()) != digest(b"a\0b")


def test_questions_that_move_to_validation_change_the_hash(tmp_path):
    articles = squad_sample.document()["data"]

    def digest(border):
        for name, part in (("t", articles[:border]), ("v", articles[border:])):
            (tmp_path / name).write_text(json.dumps({"data": part}))
        return squad.load(str(tmp_path / "t"), str(tmp_path / "v"), 0).sha256

    assert digest(1) != digest(2)


# Runs without a border.


def seconds(document):
    before = time.process_time()
    found = text.train_tokenizer([document], 1000)
    took = time.process_time() - before
    (tokens,) = text.encode(found, [document])
    assert found.decode(tokens.tolist()) == document
    return took


def letters(number):
    return "".join("abcdefghij"[i * i % 7919 % 10] for i in range(number))


@pytest.mark.parametrize(
    "document",
    [letters, lambda n: "a" * n, lambda n: "-=" * (n // 2), lambda n: " \t" * (n // 2)],
    ids=["letters", "one letter", "signs", "white space"],
)
def test_a_vocabulary_takes_time_with_the_length_of_a_run(document):
    # Without borders 500,000 random letters take 44 s, and twice as many 4 times that.
    assert seconds(document(500_000)) < 20


def test_words_are_cut_at_256_bytes_and_no_sooner():
    document = "b" + "a" * 255 + "\u00e9" * 200
    split = text.train_tokenizer([document], 300).pre_tokenizer
    pieces = [piece for piece, _ in split.pre_tokenize_str(document)]
    assert [len(piece) for piece in pieces] == [256, 256, 144]


# What is no text.


@pytest.fixture(params=["text", "questions"])
def load(request):
    if request.param == "text":
        return lambda path: text.load_corpus(str(path), "")
    return lambda path: squad.load(str(path), "", 0)


def test_pipes_and_devices_are_refused(tmp_path, load):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match=f"path={path}: not a regular file; a "):
            load(path)


def test_a_pipe_in_a_folder_of_texts_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(UserError, match=r"b\.txt: not a regular file; a UTF-8 text"):
        text.load_corpus(str(tmp_path), "")


def test_hidden_files_of_a_folder_are_no_documents(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "._a.txt").write_bytes(b"\0\5\xff")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints/a-checkpoint.txt").write_text("a")
    assert text.load_corpus(str(tmp_path), "").documents == ("a",)


def test_files_of_gigabytes_are_not_read(tmp_path, load):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**32 + 1)
    with pytest.raises(UserError, match="huge: more than 4,294,967,296 bytes; a "):
        load(tmp_path / "huge")


def test_too_long_remote_and_impossible_paths_are_refused(load):
    with pytest.raises(UserError, match="File name too long; a "):
        load("x" * 5000)
    with pytest.raises(UserError, match=r"path=gs://b/t\.txt: must be a path of this"):
        load("gs://b/t.txt")
    with pytest.raises(UserError, match=r"a path has no zero byte"):
        load("a\0b")


@pytest.mark.parametrize("number", [13, 1])
def test_closed_folders_and_files_are_named(tmp_path, load, monkeypatch, number):
    # Root may read everything, so no mode would do.
    def closed(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    (tmp_path / "file").write_text("a")
    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(UserError, match=f"path=.*file: {os.strerror(number)}; a "):
        load(tmp_path / "file")


# Names with anything in them.


def test_question_ids_with_line_breaks_and_markup_make_one_line(tmp_path):
    document = squad_sample.document()
    document["data"][0]["paragraphs"][0]["qas"][0].update(id="a\n\x1b[1m[red]\u2028b")
    document["data"] *= 2
    (tmp_path / "s\n.json").write_text(json.dumps(document))
    with pytest.raises(UserError) as caught:
        squad.load(str(tmp_path / "s\n.json"), "", 0)
    assert r"question id a\n\x1b[1m[red]\u2028b occurs twice" in str(caught.value)
    (tmp_path / "s\n.json").write_text("[]")
    with pytest.raises(UserError, match=r"/s\\n\.json: must be a JSON object"):
        squad.load(str(tmp_path / "s\n.json"), "", 0)


@pytest.mark.parametrize(
    "change",
    [{"id": "x" * 10**6}, {"answers": [{"answer_start": 0, "text": "y" * 999}]}],
)
def test_long_texts_make_no_long_line(change):
    document = squad_sample.document()
    document["data"][0]["paragraphs"][0]["qas"][0].update(change)
    if "id" in change:
        document["data"][0]["paragraphs"][0]["qas"][0].update(answers=[])
    with pytest.raises(UserError) as caught:
        squad.parse(document, "file")
    assert len(str(caught.value)) < LONGEST + 10
    assert str(caught.value).startswith("file: data[0].paragraphs[0].qas[0]")
