"""Files of JSON, Markdown and measurements: what is written, and what is refused."""

import json

import pytest

from experiments.common import files, json_files, markdown
from experiments.common.errors import UserError
from experiments.common.measurements import Measurements

DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{oops\n", r":1: not JSON \(Expecting property name"),
        (b'{"a": 1}\n[1]\n', r":2: a JSON object is needed, found \[1\]"),
        (b'\n{"a": 1}\n', ":1: not JSON"),
        (b"\x89PNG\xff\x00", ": its last line is no part of a record"),
        (b'{"a": NaN}\n', ":1: not JSON .NaN is not a JSON number"),
        (b"\x89PNG\x00\xff\n", ":1: not JSON .'utf-8' codec"),
        (b'{"a": ' + DEEP + b"\n", ":1: not a record .nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", ":1: not JSON"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}{message}") as error:
        json_files.read_lines(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_folder_is_no_file(tmp_path):
    for read in (json_files.read_lines, json_files.read_object):
        with pytest.raises(UserError, match=f"^{tmp_path}: Is a directory$"):
            read(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        json_files.read_object(tmp_path / "none")
    assert json_files.read_lines(tmp_path / "none") == ([], False)


def test_what_a_killed_process_wrote_in_part_is_cut_off(tmp_path):
    path = tmp_path / "file.jsonl"
    json_files.append(path, {"a": 1})
    json_files.append(path, {"a": 2})
    path.write_bytes(path.read_bytes() + b'{"a": 3')
    assert json_files.read_lines(path) == ([{"a": 1}, {"a": 2}], True)
    json_files.append(path, {"a": 4})
    assert json_files.read_lines(path) == ([{"a": 1}, {"a": 2}, {"a": 4}], False)
    path.write_bytes(path.read_bytes() + b"\0\0\n")
    assert json_files.read_lines(path) == ([{"a": 1}, {"a": 2}, {"a": 4}], True)
    path.write_bytes(b'{"a"')  # the first one
    json_files.append(path, {"a": 5})
    assert json_files.read_lines(path) == ([{"a": 5}], False)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_files.append(path, {"a": float("nan")})
    assert path.read_bytes() == before


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, "old")

    def full(descriptor):
        raise OSError("full")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"


def test_measurements_are_found_by_what_they_are_of(tmp_path):
    path = tmp_path / "new" / "made.jsonl"
    made = Measurements(path, lambda record: record["of"])
    made.add({"of": "a", "value": 1})
    made.add({"of": "b", "value": 2})
    again = Measurements(path, lambda record: record["of"])
    assert again.missing(["c", "a"]) == ["c"]
    assert again["b"]["value"] == 2
    assert again.records == made.records
    json_files.append(path, {"kind": "train"})
    with pytest.raises(UserError, match=r"made.jsonl:3: not a measurement .*'of'"):
        Measurements(path, lambda record: record["of"])


def test_measurements_need_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    made = Measurements(tmp_path / "file" / "made.jsonl", json.dumps)
    with pytest.raises(UserError, match="a writable folder is needed"):
        made.add({})


def test_tables_keep_their_cells():
    made = markdown.table(["a", "b"], [["x|y", 1], ["two\nlines", ""]])
    assert made.splitlines() == [
        "| a | b |",
        "| --- | --- |",
        r"| x\|y | 1 |",
        "| two lines |  |",
    ]
    with pytest.raises(ValueError, match="2 cells"):
        markdown.table(["a", "b"], [["x"]])
