"""What a run records while it trains."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments import distributed, folders, runs


class Recorder:
    """Makes records of a run; the main process alone writes them down."""

    def write(self, kind: str, step: int, **values: Any) -> runs.Record:
        """Returns one record."""
        return {"kind": kind, "step": step, "time": time.time(), **values}


class Writer(Recorder):
    """Appends records to ``metrics.jsonl`` and TensorBoard events.

    Args:
      workdir: folder of the run.
      step: the run goes on after it; TensorBoard drops later ones of a killed run.
    """

    def __init__(self, workdir: Path, step: int):
        self._workdir = workdir
        metrics = workdir / folders.METRICS_FILE
        self._file = metrics.open("a", encoding="utf-8")
        # Without tensorboardX's thread, which a full disk ends unnoticed.
        self._events = EventsWriter(str(workdir / "events"), f".{step}")
        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=step + 1, session_log=start))

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._events):
            # All that was recorded is on the disk; what a full one refused was said.
            with contextlib.suppress(OSError):
                file.close()

    def write(self, kind: str, step: int, **values: Any) -> runs.Record:
        """Writes one record, on the disk before this returns.

        Raises:
          UserError: the disk is full.
        """
        record = super().write(kind, step, **values)
        scalars = {k: v for k, v in values.items() if isinstance(v, float)}
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            for name, value in scalars.items():
                event = Event(wall_time=record["time"], step=step)
                event.summary.CopyFrom(summary.scalar(f"{kind}/{name}", value))
                self._events.write_event(event)
            self._events.flush()
        except OSError as error:
            raise folders.not_writable(self._workdir, error) from None
        return record


@contextlib.contextmanager
def recorder(workdir: Path, step: int) -> Iterator[Recorder]:
    """The recorder of this process, for the steps after ``step``."""
    if not distributed.is_main():
        yield Recorder()
        return
    with contextlib.closing(Writer(workdir, step)) as writer:
        yield writer
