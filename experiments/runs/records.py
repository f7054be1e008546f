"""What a run records while it trains."""

import contextlib
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from experiments.common import distributed, files, json_files
from experiments.runs import folders, reading, seals

# Type checkers cannot see the classes that protobuf makes.
_proto: Any = event_pb2


class Recorder:
    """Makes records of a run; the main process alone writes them down."""

    def write(self, kind: str, step: int, **values: Any) -> reading.Record:
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
        self._metrics = workdir / folders.METRICS_FILE
        self._metrics.touch()  # an interruption before the first record is one too
        # Without the thread of tensorboardX, which a full disk ends unnoticed.
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{step}"
        self._events = RecordWriter(str(workdir / name))
        self._write_event(file_version="brain.Event:2")
        start = _proto.SessionLog(status=_proto.SessionLog.START)
        self._write_event(step=step + 1, session_log=start)

    def _write_event(self, **fields: Any) -> None:
        event = _proto.Event(wall_time=time.time(), **fields)
        self._events.write(event.SerializeToString())

    def close(self) -> None:
        """Closes the events."""
        # All that was recorded is on the disk; what a full one refused was said.
        with contextlib.suppress(OSError):
            self._events.close()

    def write(self, kind: str, step: int, **values: Any) -> reading.Record:
        """Writes one record, on the disk before this returns.

        Raises:
          UserError: the disk is full.
        """
        record = super().write(kind, step, **values)
        if kind == "final":
            record[seals.FIELD] = seals.take(self._workdir, record)
        scalars = {k: v for k, v in values.items() if isinstance(v, float)}
        try:
            json_files.append(self._metrics, record)
            for name, value in scalars.items():
                # Names with a group of their own stay in it.
                tag = name if "/" in name else f"{kind}/{name}"
                scalar = summary.scalar(tag, value)
                self._write_event(step=step, summary=scalar)
            self._events.flush()
        except OSError as error:
            raise files.not_writable(self._workdir, error) from None
        return record


@contextlib.contextmanager
def recorder(workdir: Path, step: int) -> Iterator[Recorder]:
    """The recorder of this process, for the steps after ``step``."""
    if not distributed.is_main():
        yield Recorder()
        return
    with contextlib.closing(Writer(workdir, step)) as writer:
        yield writer
