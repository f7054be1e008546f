"""A plugin of pytest: a fixture, and devices for the law of sharding.

It is used where a ``conftest.py`` says so:

    pytest_plugins = ["optax_heavytail.testing.plugin"]
"""

import contextlib
import os
from collections.abc import Callable

import jax
import pytest

from optax_heavytail import testing

_NUM_DEVICES = 8
_FLAG = "xla_force_host_platform_device_count"


def pytest_configure() -> None:
    """Makes eight devices of the CPU, unless JAX runs already or was told a number."""
    if _FLAG not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", _NUM_DEVICES)


@pytest.fixture
def check_transformation() -> Callable[..., testing.Report]:
    """The function `optax_heavytail.testing.check_transformation`."""
    return testing.check_transformation
