"""Eight CPU devices, strict ranks and repeatable examples for every test."""

import gc
import os

from tests import compilation

# Before jax is imported, which reads them once.
os.environ["XLA_FLAGS"] = compilation.flags(num_devices=8)
os.environ["JAX_COMPILATION_CACHE_DIR"] = compilation.folder()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import hypothesis
import jax
import pytest

# Tracing makes millions of short-lived objects beside the many that jax keeps: going
# through all of these again and again takes a twentieth of the tests' time.
gc.set_threshold(20_000, 20, 10)

# A leaf that broadcasts against another by accident is a bug in an optimizer.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run, and few: each new shape compiles.
MAX_EXAMPLES = 25 if compilation.AS_USERS_DO in os.environ else 6
hypothesis.settings.register_profile(
    "tests",
    max_examples=MAX_EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
)
hypothesis.settings.load_profile("tests")


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is
def pytest_xdist_make_scheduler(config, log):
    """A module stays with one worker, which makes its runs and programs once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # few tests may be long: none goes last
    return LoadFileScheduling(config, log)
