"""What all schedules share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.typing.ArrayLike], Any]


def number(x: jax.typing.ArrayLike) -> jax.Array:
    """``x`` as an array of float32, or float64 where that is JAX's default."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(float), jnp.float32))
