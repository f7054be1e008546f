"""A finished run that someone damaged says what is gone, and makes it again or not."""

import json
import math
import shutil
import time

import pytest

from experiments.common.errors import UserError
from experiments.reporting import report
from experiments.runs import folders, reading, seals
from tests.toy_runs import (
    arrays_of,
    assert_ends_like,
    assert_same,
    cut_short,
    go,
    interrupted_at,
    read,
    saved,
    timeless,
    toy,
)

# As a step on the other side of a folder that is gone would have it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and its program."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    _, built = go(toy(), workdir)
    return workdir, built


@pytest.fixture
def run(tmp_path, whole):
    """A copy of it."""
    return shutil.copytree(whole[0], tmp_path / "run")


def largest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def flip(folder):
    path = largest(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[:-1])


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_bytes(b"")


DAMAGES = {
    "gone": (shutil.rmtree, "params is gone"),
    "flipped": (flip, "params is not what was saved"),
    "cut": (cut, "params is not what was saved"),
    "a file": (a_file, "params is not what was saved"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_parameters_are_made_again_from_the_checkpoint(run, whole, capsys, name):
    damage, message = DAMAGES[name]
    damage(run / "params")
    outcome, _ = go(toy(), run, whole[1])
    assert outcome["status"] == "complete"
    warning = capsys.readouterr().err
    assert warning == (
        f"warning: {run}: {message}; it is made again from the checkpoint of step 12\n"
    )
    assert_same(*(flat(read(folder / "params")) for folder in (run, whole[0])))
    assert timeless(run) == timeless(whole[0])
    go(toy(), run, whole[1])
    done = capsys.readouterr()
    assert "already complete" in done.out
    assert not done.err


def flat(params):
    return params["dense"]


def test_parameters_that_nothing_can_make_again_are_refused(run, whole):
    flip(run / "params")
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="params is not what was saved, and no checkp"):
        go(toy(), run, whole[1])
    assert (run / "metrics.jsonl").read_bytes() == before


def lines_of(run):
    return (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("kept", [None, 0, 1, 3])
def test_records_that_are_gone_are_counted(run, whole, capsys, kept):
    lines = lines_of(run)
    there = (len(lines) - 1, kept or 0)
    (run / "metrics.jsonl").unlink()
    if kept is not None:
        (run / "metrics.jsonl").write_bytes(b"".join(lines[:kept]))
    outcome, _ = go(toy(), run, whole[1])
    assert capsys.readouterr().err == (
        f"warning: {run}/metrics.jsonl has {there[1]} of the {there[0]} records up to "
        "step 12; the others cannot be made again\n"
    )
    assert outcome["loss"] == reading.read_run(whole[0]).final["loss"]
    assert timeless(run) == [*timeless(whole[0])[: there[1]], timeless(whole[0])[-1]]
    # A page can be made of what is left.
    folders.write_config(run.parent, toy())
    report.write_report(run.parent, ["run"])


@pytest.mark.parametrize("place", [0, 2, -1])
def test_a_changed_record_is_refused(run, whole, place):
    lines = lines_of(run)
    record = json.loads(lines[place])
    lines[place] = json.dumps({**record, "time": record["time"] + 1}).encode() + b"\n"
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"metrics.jsonl is not what was .* without"):
        go(toy(), run, whole[1])
    del lines[place]
    if place != -1:
        (run / "metrics.jsonl").write_bytes(b"".join(lines))
        with pytest.raises(UserError, match=r"metrics.jsonl is not what was saved"):
            go(toy(), run, whole[1])


def test_a_tokenizer_counts_too(run):
    final = {**reading.read_run(run).final}
    (run / "tokenizer.json").write_text("{}")
    del final["seal"]
    lines = lines_of(run)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    final["seal"] = seals.take(run, final)
    (run / "metrics.jsonl").write_bytes(
        b"".join(lines[:-1]) + json.dumps(final).encode() + b"\n"
    )
    assert folders.damage(run, final) == ""
    (run / "tokenizer.json").unlink()
    assert folders.damage(run, final) == "tokenizer.json is gone"
    (run / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer.json is not .* from the ch"):
        folders.damage(run, final)


def test_a_run_of_a_version_without_seals_is_used_again(run, whole, capsys):
    *lines, last = lines_of(run)
    final = json.loads(last)
    del final["seal"]
    lines.append(json.dumps(final).encode() + b"\n")
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    assert go(toy(), run, whole[1])[0] == final
    shutil.rmtree(run / "params")
    go(toy(), run, whole[1])
    assert "params is gone" in capsys.readouterr().err


def test_an_unfinished_run_without_checkpoints_starts_anew(tmp_path, whole):
    cut_short(toy(), tmp_path / "run", whole[1], 9)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    go(toy(), tmp_path / "run", whole[1])
    assert_ends_like(tmp_path / "run", whole[0])
    assert (tmp_path / "run" / "interrupted-1").is_dir()


def test_checkpoints_that_vanish_while_it_runs_are_written_anew(tmp_path, whole):
    run = tmp_path / "run"

    def vanish():
        while saved(run) != [4]:  # in the background
            time.sleep(0.01)
        shutil.rmtree(run / "checkpoints")

    go(toy(), run, interrupted_at(whole[1], 2 * 7, vanish))
    assert_ends_like(run, whole[0])


def test_a_not_a_number_in_a_config_is_what_it_was(tmp_path, whole, capsys):
    def config():
        return toy(note=math.nan)

    cut_short(config(), tmp_path, whole[1], 9)
    assert folders.plain_text(config()).count("NaN") == 1
    go(config(), tmp_path, whole[1])
    go(config(), tmp_path, whole[1])
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"config.note was nan, now 1.0"):
        go(toy(note=1.0), tmp_path, whole[1])
    assert_same(arrays_of(tmp_path, 12), arrays_of(whole[0], 12))
