"""The folder of one run: which config it belongs to, and its records."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.common import distributed, files, json_files
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.runs import reading, seals
from experiments.runs.seals import (
    METRICS_FILE,
    MODEL_STATE_FOLDER,
    PARAMS_FOLDER,
    PREDICTIONS_FILE,
)

CONFIG_FILE = "config.json"
CHECKPOINTS_FOLDER = "checkpoints"
# Fields that leave a run the same in exact arithmetic, and may change when it goes on.
FREE = (
    "parallel",
    "num_devices",
    "target_devices",
    "fsdp",
    "sharding_rules",
    "checkpoint",
    "monitor",  # its state is looked at where one is read
)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes ``workdir`` and keeps the processes of other runs out of it.

    Raises:
      UserError: not writable, or another process works there.
    """
    with contextlib.ExitStack() as stack:
        distributed.by_main(lambda: _lock(workdir, stack))
        yield


def _lock(workdir: Path, stack: contextlib.ExitStack) -> None:
    files.make_folder(workdir)
    handle = os.open(workdir, os.O_RDONLY)
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--workdir={workdir}: another process works there") from None


def finished(
    workdir: Path, config: Config, with_changes: bool | None = False
) -> reading.Record | None:
    """Returns the final record of a finished run of ``config``, if one is there.

    Raises:
      UserError: ``workdir`` is not of this program, or the folder of another config,
        and ``with_changes`` does not say that the run is to go on with this one, or is
        ``None``, as a command has it that never does.
    """
    metrics = workdir / METRICS_FILE
    if not (workdir / CONFIG_FILE).exists():
        if metrics.exists():
            raise UserError(
                f"{workdir}: has {METRICS_FILE} without {CONFIG_FILE}; choose a folder "
                "of this program or an empty one"
            )
        return None
    if changes(workdir, config, with_changes):
        return None
    return final_record(workdir)


def changes(workdir: Path, config: Config, with_changes: bool | None) -> list[str]:
    """Returns what `check_same` does, of the config in ``workdir`` and ``config``."""
    found = reading.read_config(workdir)
    return check_same(f"--workdir={workdir}", found, plain(config), with_changes)


def check_same(
    where: object, old: dict[str, Any], new: dict[str, Any], with_changes: bool | None
) -> list[str]:
    """Returns the fields that change a run, where that is wanted.

    Raises:
      UserError: it is not wanted.
    """
    differing = differences(without_free(old), without_free(new))
    if differing and not with_changes:
        ways = ["choose another folder", "undo these changes"]
        if with_changes is not None:
            ways.append("go on with them by --resume_with_changes")
        raise UserError(
            f"{where}: holds a run of another config; {', or '.join(ways)}: "
            f"{'; '.join(differing)}"
        )
    return differing


def without_free(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that may not change."""
    return {name: value for name, value in config.items() if name not in FREE}


def check_agreement(config: Config) -> None:
    """Refuses processes that would each train something else.

    Raises:
      UserError: the fields in which one of them differs from the main process.
    """
    first, *others = distributed.gather(plain(config))
    for index, other in enumerate(others, 1):
        differing = differences(first, other)
        if differing:
            raise UserError(
                f"process {index} has another config than process 0: "
                f"{'; '.join(differing)}"
            )


def claim(workdir: Path, config: Config) -> None:
    """Makes ``workdir`` the folder of ``config``, before anything else is in it.

    Raises:
      UserError: not writable.
    """
    files.make_folder(workdir)
    if not (workdir / CONFIG_FILE).exists():
        write_config(workdir, config)


def claim_same(workdir: Path, config: Config, what: str) -> None:
    """As `claim`, of a folder that is to hold but one config's search or training.

    Raises:
      UserError: not writable, or the folder of another config, whose numbers would be
        mixed with these.
    """
    claim(workdir, config)
    before, now = reading.read_config(workdir), plain(config)
    names = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    if names:
        raise UserError(
            f"{workdir}: has a {what} of another config, which differs in "
            f"{', '.join(names)}"
        )


def write_config(workdir: Path, config: Config) -> None:
    """Writes the config of ``workdir``.

    Raises:
      UserError: not writable.
    """
    try:
        files.write_atomically(workdir / CONFIG_FILE, plain_text(config))
    except OSError as error:
        raise files.not_writable(workdir, error) from None


def write_predictions(workdir: Path, answers: dict[str, str]) -> None:
    """Writes the answers by question, as SQuAD's own evaluation reads them.

    Raises:
      UserError: not writable.
    """
    try:
        content = json.dumps(answers, indent=2) + "\n"
        files.write_atomically(workdir / PREDICTIONS_FILE, content)
    except OSError as error:
        raise files.not_writable(workdir, error) from None


def damage(workdir: Path, final: reading.Record) -> str:
    """What a finished run has lost that its checkpoint has too; empty: nothing.

    Raises:
      UserError: what has changed is nowhere else.
    """
    found = seals.broken(workdir, final)
    if final["status"] == "complete" and not (workdir / PARAMS_FOLDER).exists():
        found.setdefault(PARAMS_FOLDER, "is gone")  # of a run without a seal
    for name, how in found.items():
        if name not in (PARAMS_FOLDER, MODEL_STATE_FOLDER) and how != "is gone":
            is_metrics = name == METRICS_FILE
            then = "does without it" if is_metrics else "makes it from the checkpoint"
            raise UserError(
                f"{workdir / name} {how}; choose another folder, or delete the file, "
                f"and the same command {then}"
            )
    return ", ".join(f"{name} {how}" for name, how in found.items())


def start(workdir: Path, config: Config, step: int | None) -> int:
    """Gets ``workdir`` ready for a run that goes on after ``step``, or starts anew.

    Records of later steps are dropped, and the parameters of a finished run that is
    made longer. Of a run that starts anew, whatever an interrupted one left is moved to
    ``interrupted-<n>``.

    Returns:
      How many records are left.

    Raises:
      UserError: not writable.
    """
    left = 0
    try:
        if step is None:
            _set_aside(workdir)
        else:
            left = _cut_back(workdir, step)
    except OSError as error:
        raise files.not_writable(workdir, error) from None
    # Last: with the final record of another config, this one would count as finished.
    write_config(workdir, config)
    return left


def _cut_back(workdir: Path, step: int) -> int:
    metrics = workdir / METRICS_FILE
    kept = [
        record
        for record in reading.read_records(metrics).records
        if record["step"] <= step and record["kind"] != "final"
    ]
    files.write_atomically(metrics, json_files.as_lines(kept))
    for name in (PARAMS_FOLDER, MODEL_STATE_FOLDER, PREDICTIONS_FILE):
        if (workdir / name).is_dir():
            shutil.rmtree(workdir / name)
        else:
            (workdir / name).unlink(missing_ok=True)
    return len(kept)


def plain_text(config: Config) -> str:
    """A config as the content of ``config.json``."""
    return config.to_json(indent=2, sort_keys=True) + "\n"


def plain(config: Config) -> dict[str, Any]:
    """A config as it is read back from ``config.json``."""
    return json.loads(plain_text(config))


def final_record(workdir: Path) -> reading.Record | None:
    """The record that ends a run; what a killed run left has none.

    Raises:
      UserError: something that is no record of a run.
    """
    *_, last = [{}, *reading.read_records(workdir / METRICS_FILE).records]
    return last if last.get("kind") == "final" else None


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
    # As JSON, where a NaN is what it was.
    same = old == new or json.dumps(old) == json.dumps(new)
    return [] if same else [f"{name} was {old}, now {new}"]


def numbered(workdir: Path, name: str) -> Path:
    """The first of ``<name>-1``, ``<name>-2``, ... that is not there."""
    number = 1
    while (workdir / f"{name}-{number}").exists():
        number += 1
    return workdir / f"{name}-{number}"


def _set_aside(workdir: Path) -> None:
    if not (workdir / METRICS_FILE).exists():
        return
    folder = numbered(workdir, "interrupted")
    folder.mkdir()
    for pattern in (
        "events.out.tfevents*",
        PARAMS_FOLDER,
        MODEL_STATE_FOLDER,
        PREDICTIONS_FILE,
        METRICS_FILE,
    ):
        for path in workdir.glob(pattern):
            path.rename(folder / path.name)
