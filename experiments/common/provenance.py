"""Where numbers come from: command, versions, commit and hardware.

It imports nothing that JAX and the package do not need, so that a benchmark also runs
on an accelerator's machine that has no more than these.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax


def command() -> str:
    """The command line of this process, without the interpreter's path."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of installed packages."""
    found = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def commit() -> str:
    """The commit of the checkout, with "-dirty" if files differ from it."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    arguments = ["describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    found = subprocess.run(
        [git, *arguments], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def hardware() -> str:
    """The device, with the processor's model on a CPU."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{cpus}-core {platform.machine()} CPU ({_cpu_model()})"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.processor() or "unknown model"
