"""How the tests have XLA compile: thousands of small programs, run once or twice."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

# XLA's older code generator compiles them in a quarter of the time: most of what the
# tests take. From 0.12 on there is only the new one.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def flags(num_devices: int) -> str:
    """``XLA_FLAGS`` of a process of the tests.

    Of two values of a flag the last counts: what the environment says of the code
    generator goes before ours.
    """
    version = importlib.metadata.version("jaxlib").split(".")
    quick = QUICK if [int(part) for part in version[:2]] < [0, 12] else ""
    devices = f"--xla_force_host_platform_device_count={num_devices}"
    return " ".join([quick, os.environ.get("XLA_FLAGS", ""), devices])


def share() -> None:
    """Keeps what is compiled for all processes of the test run, and only for them."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # a worker of this run, or somebody's own choice
    folder = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
