"""Progress of one run: a live bar on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic

import rich
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LIVE_SECONDS = 0.1
PLAIN_SECONDS = 5.0


@contextlib.contextmanager
def run_bar(
    label: str, total_steps: int, console: Console | None = None
) -> Iterator["RunBar"]:
    """Shows how far a run is: step, steps per second, loss and time left.

    The speed counts from the first ``update``, so compilation is left out of it.

    Args:
      label: what runs, at the start of the line.
      total_steps: the step the run ends at, 1 or more.
      console: where to show it. ``None``: standard output.

    Yields:
      A bar with ``update(step, loss=None, note="")``; ``step`` counts finished steps.
    """
    console = console or rich.get_console()
    bar = RunBar(label, total_steps, console)
    with bar.live or contextlib.nullcontext():
        bar.show()
        try:
            yield bar
        finally:
            bar.finish()


class RunBar:
    """The bar that ``run_bar`` yields."""

    def __init__(self, label: str, total_steps: int, console: Console):
        if total_steps < 1:
            raise ValueError(f"total_steps must be 1 or more, got {total_steps}")
        self._label, self._total, self._console = label, total_steps, console
        self._step, self._loss, self._note = 0, None, ""
        self._first: tuple[int, float] | None = None
        self._entered = self._now = monotonic()
        self._shown_at = self._entered
        self.live: Progress | None = None
        self._task = TaskID(0)
        # A stream that is no terminal stays plain even under FORCE_COLOR.
        if console.is_terminal and not console.is_dumb_terminal and _is_tty(console):
            live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[facts]}", markup=False),
                console=console,
                auto_refresh=False,
                expand=True,
            )
            self._task = live.add_task(f"{label:<12}", total=total_steps, facts="")
            self.live = live

    def update(self, step: int, loss: float | None = None, note: str = "") -> None:
        """Takes the number of finished steps and the newest loss, if there is one."""
        self._step, self._loss, self._note = step, loss, note
        self._now = monotonic()
        interval = LIVE_SECONDS if self.live else PLAIN_SECONDS
        is_first = self._first is None
        if self._first is None:
            self._first = (step, self._now)
        if is_first or self._now - self._shown_at >= interval:
            self.show()

    def show(self) -> None:
        """Draws the bar, or prints a line."""
        self._shown_at = self._now
        self._draw(_join(self._facts(), self._time_left(), self._note))

    def finish(self) -> None:
        """Shows the last state and the seconds that the whole run took."""
        took = f"took {as_clock(monotonic() - self._entered)}"
        if self._step < self._total:
            took = f"stopped, {took}"
        self._draw(_join(self._facts(), took, self._note))

    def _draw(self, facts: str) -> None:
        if self.live:
            self.live.update(
                self._task, completed=self._step, facts=facts, refresh=True
            )
        else:
            print(f"{self._label}  {facts}", file=self._console.file, flush=True)

    def _facts(self) -> str:
        width = len(f"{self._total:,}")
        step = f"{self._step:>{width},}/{self._total:,}"
        rate = self._rate()
        speed = "" if rate is None else f"{_three_digits(rate):>5} steps/s"
        loss = "" if self._loss is None else f"loss {self._loss:.3f}"
        return _join(step, speed, loss)

    def _time_left(self) -> str:
        if self._first is None:
            return "waiting for the first step"
        rate = self._rate()
        if rate is None:
            return ""
        return f"{as_clock((self._total - self._step) / rate)} left"

    def _rate(self) -> float | None:
        """Steps per second since the first update, ``None`` before the second."""
        if self._first is None:
            return None
        first_step, first_time = self._first
        steps, seconds = self._step - first_step, self._now - first_time
        return steps / seconds if steps > 0 and seconds > 0 else None


def _is_tty(console: Console) -> bool:
    return bool(getattr(console.file, "isatty", lambda: False)())


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def as_clock(seconds: float) -> str:
    """Writes 83 seconds as 1:23, from an hour on as 1:01:23."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")


def _join(*parts: str) -> str:
    return "  ".join(part for part in parts if part)
