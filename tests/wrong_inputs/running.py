"""Runs a command on a wrong input, in this process, and says how it ended."""

import contextlib
import dataclasses
import itertools
import os
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from experiments.common import memory
from tests.commands import ROOT, fresh_flags
from tests.wrong_inputs import permissions, preparations

FOLDER = Path(__file__).parent
# Where commands write that were not told another place.
WRITTEN = (ROOT / "docs", ROOT / "experiments" / "results")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One wrong input.

    Attributes:
      command: a module of `experiments`.
      arguments: what follows its name; ``{given}`` is a folder with what was prepared,
        ``{work}`` the work directory and ``{configs}`` where the configs are; a
        ``{name}`` is too long for a file, and ``{long}`` is a number of 5,000 digits.
      prepare: a function of `preparations`, which fills ``{given}``.
      expected: what the one line has in it.
      is_slow: whether more is done than reading flags, configs and small files.
    """

    command: str
    arguments: tuple[str, ...]
    prepare: str
    expected: str
    is_slow: bool

    def __str__(self) -> str:
        """Its name as a test."""
        words = " ".join(self.arguments[-1:]).removeprefix("--config.")
        return f"{self.command} {self.prepare} {words}"[:120]


def entries() -> list[Entry]:
    """All of them, in the order of the files."""
    found = []
    for path in sorted(FOLDER.glob("*.toml")):
        for group in tomllib.loads(path.read_text(encoding="utf-8"))["group"]:
            commands = group["command"]
            commands = [commands] if isinstance(commands, str) else commands
            for command, (arguments, *prepared, expected) in itertools.product(
                commands, group["rows"]
            ):
                words = [*group.get("before", ()), *shlex.split(arguments)]
                prepare = [*prepared, group.get("prepare", "nothing")][0]
                found.append(
                    Entry(
                        command,
                        tuple(words),
                        prepare,
                        expected,
                        group.get("slow", False),
                    )
                )
    return found


@dataclasses.dataclass(frozen=True)
class Ending:
    """What a command left behind."""

    status: int
    stderr: str
    strays: list[str]  # files outside the work directory that it made or changed


def run(entry: Entry, folder: Path, capture: pytest.CaptureFixture) -> Ending:
    """Runs the command in an empty folder, as ``python -m`` does."""
    given, here, work = (folder / name for name in ("given", "here", "work"))
    for path in (given, here):
        path.mkdir()
    preparations.BY_NAME[entry.prepare](given, work)
    words = [
        word.format(
            given=given,
            work=work,
            configs=ROOT / "experiments" / "configs",
            name="a" * 300,
            long="9" * 5000,
        )
        for word in entry.arguments
    ]
    before = _contents(folder, work)
    ours = {path: _contents(path, work) for path in WRITTEN}
    capture.readouterr()
    with permissions.as_others():
        code = exit_code(f"experiments.{entry.command}", words, here)
    stderr = capture.readouterr().err
    if isinstance(code, str):  # which the interpreter prints, with status 1
        stderr, code = f"{stderr}{code}\n", 1
    after = _contents(folder, work)
    strays = sorted(name for name in after if after[name] != before.get(name))
    strays += [str(path) for path in WRITTEN if _contents(path, work) != ours[path]]
    return Ending(code or 0, stderr, strays)


def exit_code(module: str, words: list[str], here: Path) -> str | int | None:
    with _as_new(module), fresh_flags(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *words])
        patch.setattr(memory, "keep_freed", lambda: None)
        patch.chdir(here)
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            return end.code
    return 0


@contextlib.contextmanager
def _as_new(module: str) -> Iterator[None]:
    """Takes away the flags of all commands, as if none had been imported."""
    registry = vars(flags.FLAGS)
    saved = {name: _copied(value) for name, value in registry.items()}
    for owner, owned in list(flags.FLAGS.flags_by_module_dict().items()):
        if owner.startswith("experiments.") and "common" not in owner.split("."):
            for flag in owned.copy():
                delattr(flags.FLAGS, flag.name)
    imported = sys.modules.pop(module, None)
    # ml_collections would fill up the module of the config before this one.
    sys.modules.pop("config_config", None)
    try:
        yield
    finally:
        registry.update(saved)
        if imported is not None:
            sys.modules[module] = imported


def _copied(value: Any) -> Any:
    """Lists and dicts are new, what is in them is the same."""
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    return value.copy() if isinstance(value, list | set) else value


def _contents(folder: Path, work: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything but the work directory; of folders the name alone."""
    found = {}
    for path in folder.rglob("*"):
        if path != work and work not in path.parents:
            about = os.lstat(path)
            own = (0, 0) if path.is_dir() else (about.st_size, about.st_mtime_ns)
            found[str(path.relative_to(folder))] = own
    return found
