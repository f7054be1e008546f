"""Breaks a copy of the code on purpose and checks that the tests notice.

    python -m tests.planted_faults [word ...]

Each fault replaces one piece of text in one file of a temporary copy and runs a few
tests there, which must fail. The words choose the faults whose names contain one of
them; without words all run, in about 25 minutes on two cores. The table says for each
fault whether it was caught. The exit status is 1 if one was missed, if its text is no
longer found, or if the chosen tests fail without any fault.

It is no part of the ordinary test run: run it after a change of what it breaks or of
the tests, and every night.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from tests.planted_faults import (
    aggregation,
    clipping,
    data,
    diagnostics,
    heavy_tails,
    learned,
    neumann,
    parts,
    rates_and_signs,
    rules,
    spikes,
    studies,
    trainer,
)

ROOT = pathlib.Path(__file__).parent.parent.parent
COPIED = ("optax_heavytail", "experiments", "tests", "pyproject.toml")
GROUPS = (
    parts,
    clipping,
    rates_and_signs,
    rules,
    learned,
    spikes,
    studies,
    heavy_tails,
    neumann,
    aggregation,
    diagnostics,
    trainer,
    data,
)
FAULTS = [fault for group in GROUPS for fault in group.FAULTS]


def run_tests(copy, tests):
    """The exit status of pytest, which is 1 where tests failed, and the seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-o", "addopts=", "-q", *tests],
        cwd=copy,
        # What tests start in other folders must be broken as well. What a fault does
        # not change is compiled once for all of them.
        env=os.environ
        | {
            "PYTHONPATH": str(copy),
            "JAX_COMPILATION_CACHE_DIR": str(copy / "compiled"),
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, time.perf_counter() - start


def verdict(copy, fault):
    """Plants the fault, runs its tests and takes it out again."""
    file = copy / fault.file
    text = file.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        return f"the text is there {text.count(fault.old)} times", 0.0
    file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        status, seconds = run_tests(copy, fault.tests)
    finally:
        file.write_text(text, encoding="utf-8")
    return {0: "MISSED", 1: "caught"}.get(
        status, f"pytest ended with {status}"
    ), seconds


def main(words):
    chosen = [f for f in FAULTS if not words or any(word in f.name for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for name in COPIED:
            copier = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copier(ROOT / name, copy / name)
        good = True
        for tests in dict.fromkeys(fault.tests for fault in chosen):
            if run_tests(copy, tests)[0] != 0:
                print(f"fails without a fault: {' '.join(tests)}", flush=True)
                good = False
        for fault in chosen:
            result, seconds = verdict(copy, fault)
            good &= result == "caught"
            print(f"{result:8} {seconds:5.1f} s  {fault.name}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
