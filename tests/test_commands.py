"""What every command has: help, an end in one line, and a name."""

import os
from pathlib import Path

import pytest

from experiments.common import commands, fields, files
from experiments.common.errors import UserError
from experiments.configs import fields as tables
from experiments.configs import search_rules
from tests.commands import ROOT, python
from tests.wrong_inputs import running

WITH_CONFIG = ("train", "compare", "sweep", "diagnose", "follow")
FLAGS = {
    "train": ["--workdir=", "--config=", "--[no]resume_with_changes"],
    "sweep": ["--optimizers=", "--results="],
    "diagnose": ["--checkpoint=", "--batches=", "Default: 512.", "--[no]curvature"],
    "follow": ["--spectra=", "--points=", "--loss_batches=", "--lanczos_steps="],
}
ALL = sorted(
    ".".join(path.relative_to(ROOT / "experiments").with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text()
)


def helped(command, capsys, *before):
    """What a command prints when it is asked for help."""
    entry = running.Entry(command, (*before, "--help"), "nothing", "", False)
    capsys.readouterr()
    code = running.exit_code(f"experiments.{command}", entry.arguments, Path.cwd())
    assert not code
    done = capsys.readouterr()
    assert not done.err
    return done.out


@pytest.mark.parametrize("command", ALL)
def test_help_is_printed_and_no_error(command, capsys):
    """Without the flags that are required."""
    text = helped(command, capsys)
    assert max(map(len, text.splitlines())) <= 100
    if command in WITH_CONFIG:
        assert all(flag in text for flag in FLAGS.get(command, FLAGS["train"]))
        for section in tables.SECTIONS.values():
            for name, field in section.items():
                lines = [x for x in text.splitlines() if x.startswith(f"  {name} ")]
                words = " ".join(text.split())
                assert lines
                assert " ".join(field.allowed.split()) in words
        assert ("\n  compare.optimizers" in text) == (command == "compare")
        assert ("\n  sweep.learning_rates" in text) == (command == "sweep")
    else:
        assert "--" in text


def test_help_of_a_search_has_the_fields_of_its_config(capsys):
    text = helped("search_rules", capsys)
    for name, field in search_rules.FIELDS.items():
        assert f"\n  {name}" in text
        assert " ".join(field.allowed.split()) in " ".join(text.split())


@pytest.mark.parametrize("command", ["diagnose", "follow", "search_rules"])
def test_a_command_that_trains_no_run_does_not_go_on_with_one(command, capsys):
    assert "resume_with_changes" not in helped(command, capsys)


def test_help_does_not_need_a_config_that_is_there(capsys):
    assert "--workdir=" in helped("train", capsys, "--config=no/such.py")


def test_a_module_without_a_command_says_so():
    done = python("-m", "experiments.diagnosis.curvature")
    assert done.returncode == 1
    assert done.stderr.startswith("error: experiments.diagnosis.curvature has no comm")
    assert done.stderr.count("\n") == 1
    assert done.stderr.count("experiments.") == len(ALL) + 1


@pytest.mark.parametrize(
    "argv",
    [
        ["-m", "experiments.reporting.report"],
        ["-um", "experiments.diagnosis.trajectory"],
        ["-W", "error", "-mexperiments.common.cli", "--help"],
    ],
)
def test_wherever_the_module_is_named(argv):
    with pytest.raises(SystemExit, match=r"error: experiments\.\w+\.\w+ has no comm"):
        commands.refuse_other_modules(["python", *argv])


@pytest.mark.parametrize(
    "argv",
    [
        *(["-m", f"experiments.{name}"] for name in ALL),
        ["-m", "pytest", "experiments.common.cli"],
        ["-c", "import experiments"],
        ["-m"],
        [],
    ],
)
def test_what_is_a_command_or_is_not_ours_goes_on(argv):
    commands.refuse_other_modules(["python", *argv])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a\nb"), r"error: a\\nb"),
        (PermissionError(13, "Permission denied", "x\ny"), r"error: x\\ny: Permission"),
        (BrokenPipeError(32, "Broken pipe"), "error: a file: Broken pipe"),
        (MemoryError("262 GiB"), "error: not enough memory: 262 GiB"),
        (MemoryError(), "error: not enough memory: an array does not fit"),
    ],
)
def test_what_can_be_mended_ends_in_one_line(error, line):
    with (
        pytest.raises(SystemExit, match=f"^{line}") as caught,
        commands.one_line_errors(),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), commands.one_line_errors():
        raise ZeroDivisionError


def test_a_target_is_refused_before_the_work(tmp_path):
    (tmp_path / "table").mkdir()
    with pytest.raises(UserError, match=r"table: Is a directory; a file is to be wri"):
        files.check_target(tmp_path / "table")
    (tmp_path / "kept").write_text("kept")
    files.check_target(tmp_path / "kept")
    files.check_target(tmp_path / "new" / "name")
    assert (tmp_path / "kept").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["kept", "new", "table"]
    assert not os.listdir(tmp_path / "new")


@pytest.mark.parametrize("name", ["table", "a" * 300])
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, name):
    (tmp_path / "table").mkdir()
    with pytest.raises(OSError, match=r"directory|too long"):
        files.write_atomically(tmp_path / name, "new")
    assert os.listdir(tmp_path) == ["table"]


def test_a_field_may_be_a_word():
    field = fields.number(0).or_text("inf")
    assert [field.accepts(x) for x in (1.0, "inf", "nan", -1)] == [1, 1, 0, 0]
    assert field.allowed == "a finite number, 0 or more, or inf"
