"""Every benchmark that an accelerator is for, in one go and within its time.

    python -m experiments.benchmarks.gpu --output=experiments/results/gpu

writes the tables of steps, of many small leaves, of memory and of whole training steps
into a folder, each by its own command in a process of its own: what one of them keeps
or breaks is no other's. A benchmark that the time does not suffice for is stopped, and
said so; the rest stand. Importance goes first. On a bare machine, with the wheels
beside the checkout:

    python3 -m venv .venv
    .venv/bin/pip install --no-index --find-links=wheels ".[experiments]"
    .venv/bin/python -m experiments.benchmarks.gpu --output=OUT
"""

import functools
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks import common
from experiments.common import commands, files, inputs, markdown
from experiments.common.errors import UserError

MINUTES = 9.0
HEADINGS = ("benchmark", "seconds", "how it ended")


class Part(NamedTuple):
    """A benchmark's module, its flags, and those that try it in seconds."""

    module: str
    flags: tuple[str, ...]
    small: tuple[str, ...]


PARTS: Mapping[str, Part] = {
    "step": Part(
        "step",
        ("--trees=bert_base,bert_large", "--repeats=7"),
        ("--trees=tiny", "--repeats=1", "--contestants=oht.acclip"),
    ),
    "throughput": Part(
        "throughput",
        ("--configs=bert_base,resnet50_imagenet", "--dtype=bfloat16"),
        ("--configs=bert_tiny", "--rows=2", "--repeats=1", "--dtype=float32"),
    ),
    "leaves": Part(
        "leaves",
        ("--counts=300", "--builds=1", "--repeats=7"),
        ("--counts=2", "--builds=1", "--repeats=1", "--contestants=oht.acclip"),
    ),
    "memory": Part("memory", ("--tree=bert_base",), ("--tree=tiny",)),
}


def run_part(part: Part, output: Path, flags: Sequence[str], seconds: float) -> str:
    """Runs a benchmark's command; how it ended."""
    name = f"experiments.benchmarks.{part.module}"
    command = [sys.executable, "-m", name, f"--output={output}", *flags]
    if seconds <= 0:
        return "not begun: no time was left"
    try:
        done = subprocess.run(command, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped: {seconds:.0f} s were left for it"
    return "complete" if done.returncode == 0 else f"failed: status {done.returncode}"


def main(argv: Sequence[str]) -> None:
    """Runs the parts as the flags say."""
    parser = commands.Parser(__doc__)
    parser.add_argument(
        "--output",
        type=functools.partial(inputs.local, "--output"),
        required=True,
        help="The folder of the tables.",
    )
    parser.add_argument(
        "--parts",
        type=lambda text: common.several(text, common.one_of(list(PARTS))),
        default=list(PARTS),
        help=f"Some of {', '.join(PARTS)}, in this order (all).",
    )
    parser.add_argument(
        "--seconds",
        type=common.positive,
        default=int(60 * MINUTES),
        help="For everything (%(default)s).",
    )
    parser.add_argument(
        "--small", action="store_true", help="Tries every part in seconds."
    )
    flags = parser.parse_args(argv)
    # Refused before the minutes that the parts take.
    files.check_target(
        flags.output / "README.md" if flags.output.name else flags.output
    )
    end, rows = time.monotonic() + flags.seconds, []
    for name in flags.parts:
        part, started = PARTS[name], time.monotonic()
        chosen = part.small if flags.small else part.flags
        print(f"{name}: {end - started:.0f} s left", flush=True)
        ended = run_part(part, flags.output / name, chosen, end - started)
        rows.append([name, f"{time.monotonic() - started:.0f}", ended])
    table = markdown.table(HEADINGS, rows)
    files.write_atomically(flags.output / "README.md", f"# What was run\n\n{table}\n")
    print(table)
    if any(row[-1] != "complete" for row in rows):
        raise UserError(f"not every benchmark is complete: see {flags.output}")


if __name__ == "__main__":
    common.run(main)
