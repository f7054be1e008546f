"""The conformance kit on optimizers, as tables for the documentation.

    python -m experiments.conformance [word ...]
    python -m experiments.conformance --third-party
    python -m experiments.conformance --factory=package:function --kwargs='{"b1": 0.5}'

Without flags it judges all optimizers of Optax, and with --third-party those of the
packages on a list that are installed here; both write their part of
docs/conformance.md. With words it only prints the reports of the optimizers whose names
contain one of them. With --factory it judges any optimizer that is installed, prints
its report and table, and writes the table to --output. Every optimizer has a process of
its own, and one that dies is reported.
"""

import argparse
import ast
import functools
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks import kit_choice, kit_judge, kit_tables
from experiments.benchmarks.kit_subjects import PARAMS, Subject
from experiments.common import commands, files, inputs, markdown
from experiments.common.errors import UserError
from optax_heavytail import testing

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "conformance.md"


def parser() -> commands.Parser:
    """The flags."""
    made = commands.Parser(__doc__)
    made.add_argument("words", nargs="*", help="parts of names")
    made.add_argument("--third-party", action="store_true", help="other packages")
    made.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PACKAGE=PYTHON",
        help="another interpreter for a package that this one cannot import",
    )
    made.add_argument("--factory", help="package:function")
    made.add_argument(
        "--kwargs", default="{'learning_rate': 0.1}", help="its arguments, a dict"
    )
    made.add_argument("--extra-args", default="{}", help="of its update, a dict")
    made.add_argument(
        "--static-args", default="", help="names that are never arrays, with commas"
    )
    made.add_argument("--params", choices=PARAMS, default="kit", help="parameters")
    made.add_argument(
        "--output",
        type=functools.partial(inputs.local, "--output"),
        help="file for the table",
    )
    made.add_argument("--timeout", type=_seconds, default=3600, help="seconds for each")
    made.add_argument("--only", help=argparse.SUPPRESS)  # the process of one optimizer
    made.add_argument("--laws", help=argparse.SUPPRESS)
    made.add_argument("--to", type=pathlib.Path, help=argparse.SUPPRESS)
    return made


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r:.60} must be a number above 0")
    return value


def subjects(given: argparse.Namespace) -> dict[str, Subject]:
    """Those that the flags ask for."""
    if given.factory is None:
        others = kit_choice.interpreters(given.python)
        return kit_choice.choose(given.words, given.third_party, others)
    subject = Subject(
        given.factory,
        _dict("--kwargs", given.kwargs),
        _dict("--extra-args", given.extra_args),
        tuple(filter(None, given.static_args.split(","))),
        PARAMS[given.params],
    )
    return {given.factory.replace(":", " "): subject}


def _dict(flag: str, text: str) -> Mapping[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{flag} must be a dict of names and values, got {text!r}")
    return value


def write(block: str, text: str | None) -> None:
    """Replaces one block of the page, if there is a text, and leaves the others."""
    page = PAGE.read_text(encoding="utf-8")
    blocks = {name: markdown.block(page, name) for name in ("optax", "third_party")}
    if text is not None:
        blocks[block] = text
    files.write_atomically(PAGE, markdown.fill(page, blocks))


def run(given: argparse.Namespace, argv: Sequence[str]) -> None:
    """Judges one optimizer after the other, and writes what was asked for."""
    block = "third_party" if given.third_party else "optax"
    others = kit_choice.interpreters(given.python)
    versions = kit_choice.origin(given.third_party, others)
    if given.output is not None:
        files.check_target(given.output)
    elif given.factory is None and not given.words:
        write(block, None)  # a page without marks is found before the work
    pythons = kit_choice.by_optimizer(others)
    reports: dict[str, testing.Report] = {}
    for name, subject in subjects(given).items():
        if given.factory is not None:
            subject.found()  # a wrong name is an error, and no report
        started = time.monotonic()
        python = pythons.get(name) or sys.executable
        command = [python, "-m", "experiments.conformance", *argv]
        reports[name] = kit_judge.in_a_process(
            [*command, "--only", name], given.timeout
        )
        seconds = time.monotonic() - started
        print(f"{name}, {seconds:.0f} s\n{reports[name]}\n", flush=True)
    text = f"{versions}\n\n{kit_tables.tables(reports)}"
    if given.output is not None:
        files.write_atomically(given.output, f"{text}\n")
        print(f"the table is in {given.output}")
    elif given.factory is not None:
        print(text)
    elif not given.words:
        write(block, text)
        print(f"the tables are in {PAGE}")


def main(argv: Sequence[str]) -> None:
    """Judges as the flags say."""
    given = parser().parse_args(argv)
    if given.only:
        kit_judge.judge(subjects(given)[given.only], given.laws.split(","), given.to)
    else:
        run(given, argv)


if __name__ == "__main__":
    with commands.one_line_errors():
        main(sys.argv[1:])
