"""Runs the commands of the trainer, in this process or in one of their own."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from experiments.common import cli
from tests import compilation

ROOT = Path(__file__).parent.parent
OURS = {
    "batches",
    "checkpoint",
    "config",
    "coordinator",
    "curvature",
    "distributed",
    "lanczos_steps",
    "loss_batches",
    "num_processes",
    "optimizers",
    "points",
    "process_id",
    "results",
    "resume_with_changes",
    "spectra",
    "steps",
    "workdir",
}


@contextlib.contextmanager
def fresh_flags():
    """Takes back what a command did to the flags of this process."""
    known = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for name in set(known) & OURS:
            flags.FLAGS[name].unparse()


def exit_code(main, *argv):
    """Calls a command in this process; ``None`` stands for status 0."""
    with fresh_flags(), pytest.MonkeyPatch.context() as patch:
        # ml_collections looks for --config.name=value in sys.argv itself.
        patch.setattr(sys, "argv", ["program", *map(str, argv)])
        patch.chdir(ROOT)
        with pytest.raises(SystemExit) as caught:
            cli.run(main)
    return caught.value.code


def refused(main, *argv):
    """Returns the one line with which a command refuses its flags."""
    message = exit_code(main, *argv)
    assert isinstance(message, str)
    assert "\n" not in message
    assert message.startswith("error: ")
    return message


def environment(num_devices=1):
    """Of a process with so many devices."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": compilation.flags(num_devices),
    }


def python(*argv):
    """Runs a command in a process of its own, on one device."""
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=300,
    )
