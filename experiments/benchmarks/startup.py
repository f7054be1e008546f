"""What importing the package costs a script that imports Optax anyway.

    python -m experiments.benchmarks.startup \
        --output=experiments/results/bench_startup_cpu

Every import is made in a process of its own, one after the other in each round, and
takes CPU seconds from the interpreter's start to its end.
"""

import resource
import subprocess
import sys
from collections.abc import Callable, Sequence

from experiments.benchmarks import common
from experiments.common import markdown

REFERENCE = "import optax"
CONTESTANTS = (
    REFERENCE,
    "import optax_heavytail",
    "from optax_heavytail import diagnostics",
    "from optax_heavytail import testing",
)
HEADINGS = ("what is run", "CPU s", "ratio")


def runner(code: str) -> Callable[[], float]:
    """Runs it in a new process: its CPU seconds."""

    def run() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def row(record: common.Record, reference: common.Record) -> list[str]:
    """A row of the table."""
    seconds = record["seconds"]
    ratio = common.paired_ratio(seconds, reference["seconds"])
    shown = "-" if record is reference else str(ratio)
    return [f"`{record['contestant']}`", str(common.summarize(seconds)), shown]


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__, repeats=11)
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    runners = {code: runner(code) for code in CONTESTANTS}
    seconds = common.interleave(runners, flags.repeats)
    records = [
        {"kind": "startup", "contestant": code, "seconds": seconds[code]}
        for code in CONTESTANTS
    ]
    explanation = (
        "CPU seconds of a process that does nothing else, and their ratio to those of "
        f"`{REFERENCE}` in the same round: medians and quartiles of {flags.repeats} "
        "rounds."
    )
    table = markdown.table(HEADINGS, [row(record, records[0]) for record in records])
    common.write(flags.output, "Importing", [explanation, table], records)


if __name__ == "__main__":
    common.run(main)
