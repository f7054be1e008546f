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
import importlib.metadata
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from experiments.benchmarks import kit_judge, kit_tables
from experiments.benchmarks.kit_subjects import OPTAX, PACKAGES, PARAMS, Subject
from experiments.common import commands, files, markdown
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
    made.add_argument("--output", type=pathlib.Path, help="file for the table")
    made.add_argument("--timeout", type=float, default=3600, help="seconds for each")
    made.add_argument("--only", help=argparse.SUPPRESS)  # the process of one optimizer
    made.add_argument("--laws", help=argparse.SUPPRESS)
    made.add_argument("--to", type=pathlib.Path, help=argparse.SUPPRESS)
    return made


def subjects(given: argparse.Namespace) -> dict[str, Subject]:
    """Those that the flags ask for."""
    if given.factory:
        subject = Subject(
            given.factory,
            _dict("--kwargs", given.kwargs),
            _dict("--extra-args", given.extra_args),
            tuple(filter(None, given.static_args.split(","))),
            PARAMS[given.params],
        )
        return {given.factory.replace(":", " "): subject}
    known = OPTAX
    if given.third_party:
        others = interpreters(given)
        there = {p: of for p, of in PACKAGES.items() if p in others or version(p)}
        if not there:
            raise UserError(f"none of these is installed: {', '.join(PACKAGES)}")
        known = {name: x for of in there.values() for name, x in of.items()}
    chosen = {
        name: subject
        for name, subject in known.items()
        if not given.words or any(word in name for word in given.words)
    }
    if not chosen:
        there = ", ".join(known)
        raise UserError(f"no optimizer is called {given.words}; there are {there}")
    return chosen


def _dict(flag: str, text: str) -> Mapping[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{flag} must be a dict of names and values, got {text!r}")
    return value


def interpreters(given: argparse.Namespace) -> dict[str, str]:
    """By the package that they judge."""
    found = dict(entry.partition("=")[::2] for entry in given.python)
    for package, python in found.items():
        if package not in PACKAGES or not pathlib.Path(python).is_file():
            raise UserError(
                f"--python must be PACKAGE=PYTHON, with a package of {list(PACKAGES)} "
                f"and a file, got {package}={python}"
            )
    return found


def version(package: str) -> str:
    """Of what is installed; empty if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def origin(given: argparse.Namespace) -> str:
    """The versions that were judged."""
    there = [f"Optax {optax.__version__}", f"JAX {jax.__version__}"]
    others, missing = interpreters(given), []
    for package in PACKAGES if given.third_party else ():
        if package in others:
            there.append(_elsewhere(package, others[package]))
        elif number := version(package):
            there.append(f"{package} {number}")
        else:
            missing.append(package)
    text = f"{', '.join(there)}, on a CPU."
    return text + (f" Not installed: {', '.join(missing)}." if missing else "")


def _elsewhere(package: str, python: str) -> str:
    """The versions that another interpreter has."""
    names = (package, "optax", "jax")
    code = f"import importlib.metadata as m; print(*map(m.version, {names}))"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"--python: {python} does not have all of {', '.join(names)}")
    own, of_optax, of_jax = done.stdout.split()
    return f"{package} {own} (with Optax {of_optax}, JAX {of_jax})"


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
    versions = origin(given)
    if not (given.output or given.factory or given.words):
        write(block, None)  # a page without marks is found before the work
    others = interpreters(given)
    pythons = {name: others.get(p) for p, of in PACKAGES.items() for name in of}
    reports: dict[str, testing.Report] = {}
    for name, subject in subjects(given).items():
        if given.factory:
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
    if given.output:
        files.write_atomically(given.output, f"{text}\n")
        print(f"the table is in {given.output}")
    elif given.factory:
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
