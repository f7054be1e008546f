"""The conformance kit on one optimizer, in a process of its own."""

import os
import pathlib
import signal
import subprocess
import tempfile
from collections.abc import Sequence

from experiments.benchmarks.kit_subjects import Subject
from experiments.common import json_files
from experiments.common.errors import UserError, one_line
from optax_heavytail import testing

ALL_LAWS = testing.DEFAULT_LAWS + testing.OPTIONAL_LAWS


def judge(subject: Subject, laws: Sequence[str], to: pathlib.Path) -> None:
    """Writes the outcome of each law as a line, as soon as it is there."""

    def write(outcome: testing.Outcome) -> None:
        said = {"law": outcome.law, "status": outcome.status, "detail": outcome.detail}
        json_files.append(to, said)

    try:
        found = subject.found()
        assert callable(found.factory)
        tx = found.factory(**found.kwargs)
        testing.examine(
            tx,
            found.params,
            factory=found.factory,
            kwargs=found.kwargs,
            static_args=found.static_args,
            extra_args=found.extra_args,
            laws=laws,
            progress=write,
        )
    except Exception as error:  # before the first law
        write(testing.Outcome("runs", "broken", f"cannot run: {_reason(error)}"))


def _reason(error: Exception) -> str:
    if isinstance(error, TypeError) and "needs init and update" in str(error):
        return f"its API is not Optax's: {error}"
    return str(error) if isinstance(error, UserError) else one_line(error)


def in_a_process(command: Sequence[str], timeout: float) -> testing.Report:
    """What a command that calls `judge` writes, whatever becomes of it.

    Where the process dies, the law that it was at is broken, and another process goes
    on behind it.

    Args:
      command: to which the laws and the file are added.
      timeout: of all laws together, in seconds.
    """
    outcomes: list[testing.Outcome] = []
    while left := _left(outcomes):
        with tempfile.TemporaryDirectory() as folder:
            to = pathlib.Path(folder) / "outcomes"
            died = _run([*command, "--laws", ",".join(left), "--to", str(to)], timeout)
            said = json_files.read_lines(to).records
            outcomes += [testing.Outcome(**record) for record in said]
        left = _left(outcomes)
        if died and left:
            outcomes.append(testing.Outcome(left[0], "broken", died))
            timeout = 0 if "more than" in died else timeout
        elif left:
            raise AssertionError("the process ended without a word of the last laws")
        if not timeout:
            late = "no time was left for it"
            outcomes += [testing.Outcome(x, "skipped", late) for x in _left(outcomes)]
    return testing.Report(tuple(outcomes))


def _left(outcomes: Sequence[testing.Outcome]) -> list[str]:
    told = {outcome.law for outcome in outcomes}
    return [] if "runs" in told else [law for law in ALL_LAWS if law not in told]


def _run(command: Sequence[str], timeout: float) -> str:
    """How the process died; nothing if it did not."""
    environment = os.environ | {"XLA_FLAGS": _flags()}
    try:
        done = subprocess.run(
            command,
            env=environment,
            timeout=timeout,
            stdout=subprocess.DEVNULL,  # some print what they made
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the laws took more than {timeout:g} s, and this one was not done"
    if not done.returncode:
        return ""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"the process was ended by {name} in this law"
    said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    return f"the process ended in this law with status {done.returncode}: {said[0]}"


def _flags() -> str:
    """The law of sharding needs two devices."""
    devices = "--xla_force_host_platform_device_count=2"
    return f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
