import copy
import json

import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.data import squad, squad_sample


def examples_of(document):
    return [e for article in squad.parse(document, "file") for e in article]


def test_embedded_set_is_in_the_format():
    examples = examples_of(squad_sample.document())
    assert len(examples) == 14
    assert len({example.id for example in examples}) == 14
    assert len({example.context for example in examples}) == 4
    for example in examples:
        begin, stop = example.answers[0].visible
        assert example.context[begin:stop] == example.answers[0].text


def paragraph(document):
    return document["data"][1]["paragraphs"][0]


def question(document):
    return paragraph(document)["qas"][2]


def answer(document):
    return question(document)["answers"][0]


PLACE = r"file: data\[1\].paragraphs\[0\].qas\[2\]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("data"), "^file: has no key data"),
        (lambda d: d.update(data={}), "^file: data must be an array, is an object"),
        (lambda d: d.update(data=[]), "^file: no question"),
        (
            lambda d: d["data"].insert(0, 3),
            r"^file: data\[0\]: must be a JSON object, is an integer",
        ),
        (lambda d: d["data"][1].pop("paragraphs"), r"data\[1\]: has no key paragraphs"),
        (
            lambda d: paragraph(d).pop("context"),
            r"data\[1\].paragraphs\[0\]: has no key context",
        ),
        (lambda d: question(d).pop("id"), PLACE + ": has no key id"),
        (lambda d: question(d).pop("question"), PLACE + ": has no key question"),
        (lambda d: question(d).update(answers=[]), PLACE + ".*bakery-0-2.*no answer"),
        (lambda d: answer(d).pop("text"), r"answers\[0\] .id bakery-0-2.: .* key text"),
        (lambda d: answer(d).update(text=None), "text must be a string, is null"),
        (lambda d: answer(d).update(text=" "), "must be more than white space"),
        (lambda d: answer(d).update(answer_start="7"), "an integer, is a string"),
        (lambda d: answer(d).update(answer_start=True), "an integer, is true or false"),
        (
            lambda d: answer(d).update(answer_start=4),
            r"\(id bakery-0-2\): answer_start=4",
        ),
        (lambda d: answer(d).update(answer_start=10**9), "has '' there"),
        # What is there, counted from the end of the context.
        (
            lambda d: answer(d).update(answer_start=-4, text="ee"),
            "answer_start=-4",
        ),
        (lambda d: question(d).update(question="\ud83d"), "half of a surrogate pair"),
    ],
)
def test_what_differs_from_the_format_is_named(change, message):
    document = squad_sample.document()
    change(document)
    with pytest.raises(UserError, match=message) as caught:
        squad.parse(document, "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.data.path=.*No such file"),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not UTF-8 text .byte 0"),
        (b"[]", "must be a JSON object with the key data, is an array"),
        (json.dumps({"data": [{"paragraphs": []}]}).encode(), "no question"),
    ],
)
def test_bad_file_is_refused(tmp_path, content, message):
    path = tmp_path / "squad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        squad.load(str(path), "", 0)
    assert "\n" not in str(caught.value)


def write(path, document, **kwargs):
    path.write_text(json.dumps(document, **kwargs), encoding="utf-8")
    return str(path)


def test_hash_is_of_the_content_alone(tmp_path):
    document = squad_sample.document()
    bare = copy.deepcopy(document)
    del bare["version"], bare["data"][0]["title"]
    moved = copy.deepcopy(document)
    moved["data"][2]["paragraphs"][0]["context"] += " "
    hashes = [
        squad.load(write(tmp_path / "file.json", content, indent=indent), "", 0).sha256
        for content, indent in ((document, None), (bare, 1), (moved, None))
    ]
    assert hashes[0] == hashes[1] == squad.load("embedded", "", 0).sha256
    assert hashes[0] != hashes[2]


def test_articles_are_held_out_whole(tmp_path):
    # 40 articles of 1, 2, 3, 4, 1, ... questions, 100 in all.
    pattern = squad_sample.document()["data"][0]["paragraphs"][0]
    articles = []
    for number in range(40):
        entries = [
            {**entry, "id": f"{number}-{i}"}
            for i, entry in enumerate(pattern["qas"][: 1 + number % 4])
        ]
        articles.append({"paragraphs": [{**pattern, "qas": entries}]})
    path = write(tmp_path / "file.json", {"data": articles})

    def held_out(seed):
        dataset = squad.load(path, "", seed)
        train, validation = (
            {example.id.split("-")[0] for example in part}
            for part in (dataset.train, dataset.validation)
        )
        assert not train & validation
        assert len(train | validation) == 40
        assert len(dataset.train) + len(dataset.validation) == 100
        return dataset.validation

    assert 8 <= len(held_out(0)) <= 10
    assert held_out(0) == held_out(0) != held_out(1)


def test_two_files_are_training_and_validation(tmp_path):
    document = squad_sample.document()
    parts = [{"data": document["data"][:1]}, {"data": document["data"][1:]}]
    paths = [write(tmp_path / f"{i}.json", part) for i, part in enumerate(parts)]
    dataset = squad.load(*paths, split_seed=0)
    assert dataset.train == tuple(examples_of(parts[0]))
    assert dataset.validation == tuple(examples_of(parts[1]))
    with pytest.raises(UserError, match="id lighthouse-0-0 occurs twice"):
        squad.load(paths[0], paths[0], 0)
    with pytest.raises(UserError, match="in 1 article, two are needed"):
        squad.load(paths[0], "", 0)
    with pytest.raises(UserError, match=r"validation_path=.*No such file"):
        squad.load(paths[0], str(tmp_path / "none.json"), 0)


def test_identity_changes_with_every_part():
    example = examples_of(squad_sample.document())[0]
    others = [
        squad.Example("x", example.question, example.context, example.answers),
        squad.Example(example.id, "x", example.context, example.answers),
        squad.Example(example.id, example.question, "x", example.answers),
        squad.Example(example.id, example.question, example.context, ()),
    ]
    assert len({other.sha256 for other in [example, *others]}) == 5


def test_white_space_at_the_edges_of_an_answer_is_not_visible():
    assert squad.Answer(3, " a b\n").visible == (4, 7)
    assert np.array_equal(squad.Answer(0, "ab").visible, (0, 2))
