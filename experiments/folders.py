"""The folder of one run: which config it belongs to, and its records."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from experiments import distributed, runs
from experiments.errors import UserError
from experiments.types import Config

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
PARAMS_FOLDER = "params"
MODEL_STATE_FOLDER = "model_state"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is whole or not there; text as UTF-8."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes ``workdir`` and keeps the processes of other runs out of it.

    Raises:
      UserError: not writable, or another process trains there.
    """
    with contextlib.ExitStack() as stack:
        distributed.by_main(lambda: _lock(workdir, stack))
        yield


def _lock(workdir: Path, stack: contextlib.ExitStack) -> None:
    make(workdir)
    handle = os.open(workdir, os.O_RDONLY)
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--workdir={workdir}: another process trains there") from None


def finished(workdir: Path, config: Config) -> runs.Record | None:
    """Returns the final record of a finished run of ``config``, if one is there.

    Raises:
      UserError: ``workdir`` is the folder of another config, or not of this program.
    """
    metrics = workdir / METRICS_FILE
    if not (workdir / CONFIG_FILE).exists():
        if metrics.exists():
            raise UserError(
                f"{workdir}: has {METRICS_FILE} without {CONFIG_FILE}; choose a folder "
                "of this program or an empty one"
            )
        return None
    differing = differences(runs.read_config(workdir), json.loads(_json(config)))
    if differing:
        raise UserError(
            f"--workdir={workdir}: holds a run of another config; choose another "
            f"folder or undo these changes: {'; '.join(differing)}"
        )
    return _final_record(metrics) if metrics.exists() else None


def check_same(config: Config) -> None:
    """Refuses processes that would each train something else.

    Raises:
      UserError: the fields in which one of them differs from the main process.
    """
    first, *others = distributed.gather(json.loads(_json(config)))
    for index, other in enumerate(others, 1):
        differing = differences(first, other)
        if differing:
            raise UserError(
                f"process {index} has another config than process 0: "
                f"{'; '.join(differing)}"
            )


def claim(workdir: Path, config: Config) -> None:
    """Makes ``workdir`` the folder of ``config``, before anything else is in it.

    What an interrupted run left there is moved to ``interrupted-<n>``.

    Raises:
      UserError: not writable.
    """
    make(workdir)
    has_metrics = (workdir / METRICS_FILE).exists()
    try:
        write_atomically(workdir / CONFIG_FILE, _json(config))
        if has_metrics:
            _set_aside(workdir)
    except OSError as error:
        raise _not_writable(workdir, error) from None


def make(folder: Path) -> None:
    """Makes a folder, with those it lies in.

    Raises:
      UserError: not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from None


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: {error.strerror}; a writable folder is needed")


def _json(config: Config) -> str:
    return config.to_json(indent=2, sort_keys=True) + "\n"


def _final_record(metrics: Path) -> runs.Record | None:
    """The record that ends a run; what a killed run left has none."""
    *_, last, _ = [b"", *metrics.read_bytes().split(b"\n")]
    try:
        record = json.loads(last)
    except ValueError:
        return None
    return record if record.get("kind") == "final" else None


def differences(old: Any, new: Any, name: str = "config") -> list[str]:
    """Names the fields in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in differences(
                old.get(key, "none"), new.get(key, "none"), f"{name}.{key}"
            )
        ]
    return [] if old == new else [f"{name} was {old}, now {new}"]


def _set_aside(workdir: Path) -> None:
    number = 1
    while (workdir / f"interrupted-{number}").exists():
        number += 1
    folder = workdir / f"interrupted-{number}"
    folder.mkdir()
    for pattern in (
        "events.out.tfevents*",
        PARAMS_FOLDER,
        MODEL_STATE_FOLDER,
        METRICS_FILE,
    ):
        for path in workdir.glob(pattern):
            path.rename(folder / path.name)


class Recorder:
    """Makes records of a run; the main process alone writes them down."""

    def write(self, kind: str, step: int, **values: Any) -> runs.Record:
        """Returns one record."""
        return {"kind": kind, "step": step, "time": time.time(), **values}


class Writer(Recorder):
    """Appends records to ``metrics.jsonl`` and TensorBoard events."""

    def __init__(self, workdir: Path):
        self._file = (workdir / METRICS_FILE).open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir))

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._events.close()

    def write(self, kind: str, step: int, **values: Any) -> runs.Record:
        """Writes one record, on the disk before this returns."""
        record = super().write(kind, step, **values)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float):
                self._events.add_scalar(f"{kind}/{name}", value, step)
        return record


@contextlib.contextmanager
def recorder(workdir: Path) -> Iterator[Recorder]:
    """The recorder of this process."""
    if not distributed.is_main():
        yield Recorder()
        return
    with contextlib.closing(Writer(workdir)) as writer:
        yield writer
