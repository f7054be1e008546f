"""Paths of other machines, and what is no regular file."""

import os
import stat

import pytest

from experiments import compare, diagnose, follow, sweep, train
from experiments.common import inputs
from experiments.common.errors import UserError
from tests.commands import exit_code

# ml_collections loads config files in a way that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")

ZOO = "--config=experiments/configs/digits_zoo.py:smoke"


@pytest.mark.parametrize("command", [train, compare, sweep, diagnose, follow])
@pytest.mark.parametrize("scheme", ["gs", "s3", "hdfs", "file", "https"])
def test_work_directories_elsewhere_are_refused(tmp_path, monkeypatch, command, scheme):
    made = []
    monkeypatch.setattr(os, "mkdir", lambda path, *_: made.append(path))
    message = exit_code(command.main, ZOO, f"--workdir={scheme}://bucket/run")
    assert message == (
        f"error: --workdir={scheme}://bucket/run: must be a path of this machine; copy "
        "or mount what is elsewhere"
    )
    assert not made


@pytest.mark.parametrize("path", ["gs:/x", "a:b", "x/gs://y", "C:\\x", "://x", "~"])
def test_strange_paths_of_this_machine_are_paths(path):
    assert inputs.local("--workdir", path).parts


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    for name in ("file", "link"):
        assert inputs.read_bytes(tmp_path / name, limit=3) == b"abc"
    with pytest.raises(OSError, match="more than 2 bytes"):
        inputs.read_bytes(tmp_path / "file", limit=2)
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/tty0", tmp_path / "socket"):
        if os.path.exists(path):
            with pytest.raises(OSError, match=r"not a regular file|No such device"):
                inputs.read_bytes(path)
    with pytest.raises(IsADirectoryError):
        inputs.read_bytes(tmp_path)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        inputs.read_bytes(tmp_path / "loop")


def test_no_descriptor_is_left_open(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            inputs.read_bytes(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\x1b[31m\u2028", r"a\nb\r\x1b[31m\u2028"),
        ("caf\u00e9 \U0001f950 [b]", "caf\u00e9 \U0001f950 [b]"),
        ("\udce9", r"\udce9"),
        ("x" * 3000, "x" * 500 + " ... " + "x" * 500),
    ],
)
def test_errors_are_one_line_whatever_was_named(text, line):
    assert str(UserError(text)) == line
