"""What the benchmarks share: flags, interleaved timing, ratios, tables and files.

It imports nothing that JAX, Optax and the package do not need, so that a benchmark also
runs on an accelerator's machine that has no more than these.
"""

import argparse
import functools
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import optax_heavytail as oht
from experiments.benchmarks import trees
from experiments.common import commands, files, inputs, json_files, memory, provenance
from experiments.common.errors import UserError
from experiments.common.json_files import Record

LONGEST_NUMBER = 9  # digits
PACKAGES = ("jax", "jaxlib", "optax", "numpy")


class Parser(commands.Parser):
    """Flags of a benchmark."""

    def __init__(self, doc: str | None, repeats: int | None = None):
        super().__init__(doc)
        self.add_argument(
            "--output",
            type=functools.partial(inputs.local, "--output"),
            required=True,
            help="Writes OUTPUT.md, the table, and OUTPUT.jsonl, every timing.",
        )
        if repeats is not None:
            self.add_argument(
                "--repeats",
                type=positive,
                default=repeats,
                help="Rounds of the interleaved run (%(default)s).",
            )

    def add_tree(self, default: str, what: str = "One") -> None:
        """The flag of one of the trees of parameters."""
        self.add_argument(
            "--tree",
            type=one_of(list(trees.TREES)),
            default=default,
            help=f"{what} of {', '.join(trees.TREES)} (%(default)s).",
        )

    def add_contestants(
        self, known: Iterable[str], help: str, default: Iterable[str] | None = None
    ) -> None:
        """The flag of some of the known ones; by default all."""
        self.add_argument(
            "--contestants",
            type=lambda text: several(text, one_of(list(known))),
            default=list(known if default is None else default),
            help=help,
        )


def positive(text: str) -> int:
    """An integer of 1 or more."""
    is_short = text.isdecimal() and len(text) <= LONGEST_NUMBER
    if not is_short or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r:.60} must be an integer of 1 or more, of at most "
            f"{LONGEST_NUMBER} digits"
        )
    return int(text)


def several(text: str, item: Callable[[str], Any]) -> list[Any]:
    """Items between commas, each once; a comma before a space is part of a name."""
    items = [item(part) for part in re.split(r",(?! )", text)]
    if len(set(items)) < len(items):
        raise argparse.ArgumentTypeError(f"{text!r} must have each item once")
    return items


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """An item that must be among ``names``."""

    def item(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"{text!r} must be among {', '.join(names)}"
            )
        return text

    return item


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Calls ``main`` with the command line; bad input ends in one line."""
    memory.keep_freed()
    with commands.one_line_errors():
        main(sys.argv[1:])


# Timing


class Summary(NamedTuple):
    """A median with its quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        """The median, and the quartiles in brackets."""
        return f"{self.median:.4g} [{self.low:.4g}, {self.high:.4g}]"


def summarize(values: Sequence[float]) -> Summary:
    """The quartiles of at least one number."""
    return Summary(*(float(q) for q in np.quantile(values, [0.25, 0.5, 0.75])))


def paired_ratio(times: Sequence[float], reference: Sequence[float]) -> Summary:
    """Quartiles of the ratios of times of the same round.

    What slows the machine for a while slows both of a pair, and cancels.
    """
    return summarize([a / b for a, b in zip(times, reference, strict=True)])


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes, until all its results are there."""
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def interleave(
    timers: Mapping[str, Callable[[], float]], repeats: int, *, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Calls each timer once per round, after rounds that do not count.

    Every other round goes backwards, so that none always follows the same one.
    """
    for timer in list(timers.values()) * warm_ups:
        timer()
    names = list(timers)
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else names[::-1]:
            times[name].append(timers[name]())
    return times


# Origin and files


def header() -> dict[str, str]:
    """Where numbers come from."""
    versions = provenance.versions(PACKAGES)
    return {
        "command": provenance.command(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "hardware": provenance.hardware(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
        "commit": f"optax_heavytail {oht.__version__}, {provenance.commit()}",
    }


def check_writable(output: Path) -> None:
    """Refuses a bad output; called before the measurements, not after."""
    if not output.name:
        raise UserError(f"--output={output}: must be a path with a name")
    for file in files.table_and_lines(output):
        files.check_target(file)


def write(
    output: Path, title: str, parts: Sequence[str], records: Sequence[Record]
) -> None:
    """Prints the page, and writes it and the records, each whole or not at all."""
    facts = header()
    lines = [f"- {name}: {_quoted(name, value)}" for name, value in facts.items()]
    page = "\n\n".join([f"# {title}", "\n".join(lines), *parts]) + "\n"
    print(f"\n{page}", flush=True)
    origin = {"kind": "header", **facts}
    rows = json_files.as_lines(map(json_files.finite, (origin, *records)))
    for file, content in zip(files.table_and_lines(output), (page, rows), strict=True):
        files.write_atomically(file, content)
    print(f"written: {', '.join(map(str, files.table_and_lines(output)))}", flush=True)


def _quoted(name: str, value: str) -> str:
    return f"`{value}`" if name == "command" else value
