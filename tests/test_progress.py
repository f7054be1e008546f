"""Progress: the same facts on a terminal and elsewhere, without flooding a log."""

import io
import re

import pytest
from rich.console import Console

from experiments.common import progress


class Stream(io.StringIO):
    """Counts flushes, and says whether it is a terminal."""

    def __init__(self, is_terminal=False):
        super().__init__()
        self.is_terminal, self.flushes = is_terminal, 0

    def isatty(self):
        return self.is_terminal

    def flush(self):
        self.flushes += 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def plain():
    stream = Stream()
    return stream, Console(file=stream)


def terminal(width=100):
    stream = Stream(is_terminal=True)
    console = Console(
        file=stream, force_terminal=True, width=width, _environ={"TERM": "xterm"}
    )
    return stream, console


def frames(stream):
    """What a terminal showed, one drawing after the other, without colours."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    return [frame for frame in re.split(r"[\r\n]+", text) if frame.strip()]


def run(console, clock, label="acclip", last=100):
    with progress.run_bar(label, 100, console) as bar:
        clock(30.0)  # compilation
        for step in range(10, last + 1, 10):
            bar.update(step, loss=6.0 - step / 100, note=f"val {step}")
            clock(2.0)


def test_plain_lines(clock):
    stream, console = plain()
    run(console, clock)
    assert stream.getvalue().splitlines() == [
        "acclip    0/100  waiting for the first step",
        "acclip   10/100  loss 5.900  val 10",
        "acclip   40/100   5.00 steps/s  loss 5.600  0:12 left  val 40",
        "acclip   70/100   5.00 steps/s  loss 5.300  0:06 left  val 70",
        "acclip  100/100   5.00 steps/s  loss 5.000  0:00 left  val 100",
        "acclip  100/100   5.00 steps/s  loss 5.000  took 0:50  val 100",
    ]
    assert stream.flushes >= 6


def test_many_fast_updates_make_few_lines(clock):
    stream, console = plain()
    with progress.run_bar("acclip", 10_000, console) as bar:
        for step in range(1, 10_001):
            bar.update(step, loss=1.0)
            clock(0.001)
    assert len(stream.getvalue().splitlines()) == 4  # start, first, 5 s, end


def test_terminal_shows_the_same_facts_in_one_line(clock):
    stream, console = terminal()
    run(console, clock)
    drawings = frames(stream)
    assert all(drawing.startswith("acclip ") for drawing in drawings)
    assert "40/100   5.00 steps/s  loss 5.600  0:12 left  val 40" in "".join(drawings)
    assert drawings[-1].endswith(
        "100/100   5.00 steps/s  loss 5.000  took 0:50  val 100"
    )
    assert stream.getvalue().count("\n") == 1  # drawn over, and left there at the end


def test_finished_bars_stay_above_the_next(clock):
    stream, console = terminal()
    run(console, clock, "adamw")
    run(console, clock, "gclip")
    above, below, _ = stream.getvalue().split("\n")
    assert "took 0:50" in above
    assert "adamw" not in below


def test_terminal_is_not_drawn_at_every_step(clock):
    stream, console = terminal()
    with progress.run_bar("acclip", 10_000, console) as bar:
        for step in range(1, 10_001):
            bar.update(step, loss=1.0)
            clock(0.001)
    assert len(frames(stream)) < 120  # ten a second for ten seconds, start and end


@pytest.mark.parametrize("make", [plain, terminal])
def test_a_run_that_fails_shows_where_and_raises(clock, make):
    stream, console = make()

    def fail():
        with progress.run_bar("acclip", 100, console) as bar:
            bar.update(30, loss=5.5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "30/100  loss 5.500  stopped, took 0:00" in frames(stream)[-1]
    hides, shows = "\x1b[?25l", "\x1b[?25h"
    assert stream.getvalue().count(hides) == stream.getvalue().count(shows)


def test_a_stream_that_is_no_terminal_stays_plain_under_forced_colour(clock):
    stream = Stream()
    run(Console(file=stream, force_terminal=True), clock)
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("make", [plain, terminal])
def test_labels_are_no_markup(clock, make):
    stream, console = make()
    run(console, clock, label="[red]x[/]")
    assert all(frame.startswith("[red]x[/] ") for frame in frames(stream))


def test_default_is_standard_output(capsys):
    with progress.run_bar("acclip", 1) as bar:
        bar.update(1, loss=2.0)
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith("acclip  1/1  loss 2.000")
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (83.4, "1:23"), (600, "10:00"), (3683, "1:01:23")],
)
def test_clock(seconds, text):
    assert progress.as_clock(seconds) == text


def test_no_steps():
    with (
        pytest.raises(ValueError, match="total_steps must be 1 or more, got 0"),
        progress.run_bar("acclip", 0),
    ):
        pass
