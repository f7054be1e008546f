"""How a run ended."""

import dataclasses
from typing import Literal

from experiments.common.json_files import Record

Status = Literal["complete", "diverged", "interrupted"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      status: "complete", "diverged" (a loss was not finite) or "interrupted".
      step: the last one, or the one that ended the run early.
      metrics: those of the last step's evaluation; none of a run that is not complete.
      seconds: of training.
      is_stopped: whether SIGTERM has come in the last step.
      record: the final record, once it is written.
    """

    status: Status
    step: int
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    is_stopped: bool = False
    record: Record = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, record: Record) -> "Outcome":
        """What a final record tells."""
        names = [] if record["loss"] is None else ["loss", "accuracy"]
        metrics = {name: record[name] for name in names if name in record}
        seconds = record.get("train_seconds", 0.0)
        return cls(record["status"], record["step"], metrics, seconds, record=record)

    @property
    def is_complete(self) -> bool:
        """Whether the run got to its last step."""
        return self.status == "complete"

    @property
    def loss(self) -> float | None:
        """The last validation loss of a complete run."""
        return self.metrics.get("loss")

    def __str__(self) -> str:
        """In words, with the step unless it is the last."""
        if self.is_complete:
            return self.status
        return f"{self.status} at step {self.step:,}"
