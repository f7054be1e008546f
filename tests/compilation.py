"""How the tests have XLA compile: thousands of small programs, run once or twice."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

# XLA's older code generator compiles them in a third of the time, and without LLVM's
# optimizations in half of that: most of what the tests take. From jax 0.12 on there is
# only the newer generator.
UNOPTIMIZED = "--xla_backend_optimization_level=0"
OLDER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

AS_USERS_DO = "TESTS_COMPILE_AS_USERS_DO"  # set by the nightly


def _has_older_generator() -> bool:
    version = importlib.metadata.version("jaxlib").split(".")
    return [int(part) for part in version[:2]] < [0, 12]


def flags(num_devices: int) -> str:
    """``XLA_FLAGS`` of a process of the tests; what the environment has comes last."""
    chosen = [os.environ.get("XLA_FLAGS", "")]
    chosen.append(f"--xla_force_host_platform_device_count={num_devices}")
    if AS_USERS_DO not in os.environ:
        chosen = [UNOPTIMIZED, *[OLDER] * _has_older_generator(), *chosen]
    return " ".join(chosen).strip()


def as_users_do() -> dict[str, int | bool]:
    """``compiler_options`` of ``jax.jit`` for what must be compiled as users do."""
    options: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
    if _has_older_generator():
        options["xla_cpu_use_fusion_emitters"] = True
    return options


def folder() -> str:
    """Where all processes of a test run keep what they compiled, until it ends."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given:
        return given  # this is a worker of the run, or somebody's own choice
    made = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
