"""Eight CPU devices, strict ranks and repeatable examples for every test."""

import os

# Before jax is imported: it reads the flag when its first backend starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import jax

# A leaf that broadcasts against another by accident is a bug in an optimizer.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run, and few: each new shape compiles.
hypothesis.settings.register_profile(
    "tests", max_examples=10, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("tests")
