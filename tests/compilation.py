"""How the tests have XLA compile: thousands of small programs, run once or twice."""

import importlib.metadata
import os

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
