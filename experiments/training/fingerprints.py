"""Fingerprints of arrays: to notice that a single bit of a file has changed.

They are taken on the devices, in integers, where no order of summation and no layout
changes the result: an array that was saved from eight devices has the same one on one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training import parallel

Arrays = dict[str, jax.Array]


def take(arrays: Arrays, layout: parallel.Layout) -> dict[str, str]:
    """Returns the fingerprint of each array, in hexadecimal digits.

    Args:
      arrays: of 1, 2, 4 or 8 bytes a number.
      layout: where they are.
    """
    # A program for each shape and sharding, since most of these repeat.
    one = _compiled(layout.sharding())
    found = {name: layout.settle(one(x)) for name, x in arrays.items()}
    return {name: f"{int(x):08x}" for name, x in jax.device_get(found).items()}


@functools.cache
def _compiled(whole: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(_fingerprint, out_shardings=whole)


def _fingerprint(x: jax.Array) -> jax.Array:
    words = _words(x)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index += iota * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words ^ _mix(index + np.uint32(1))), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
    words = jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize])
    return words.astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's final mix; one to one, so that no single change is missed."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
