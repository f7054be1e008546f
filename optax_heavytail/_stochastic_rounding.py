"""States in bfloat16 that do not stall."""

import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_heavytail import _tree

KIND = "threefry2x32"


class StochasticRoundingState(NamedTuple):
    """State of a transform that keeps part of its own state in bfloat16."""

    key: jax.Array  #: (2,), uint32, the data of a random key; it changes at each update
    inner_state: Any  #: the transform's own state


def round_bfloat16_fields(tx: Any, **dtypes: Any) -> Any:
    r"""Rounds the fields of the state of ``tx`` that are bfloat16 without bias.

    The transform receives and returns them in float32. Of a number :math:`x` between
    neighbours :math:`a \leq x < a + h` in bfloat16 the state keeps :math:`a + h` with
    probability :math:`(x - a) / h`, else :math:`a`. That is :math:`x` on average, so
    that increments far below :math:`h` add up; rounding to the nearest loses them all.

    Args:
      tx: a transform with a NamedTuple for a state.
      **dtypes: the dtype of each field that has a choice.

    Returns:
      A transform with a `StochasticRoundingState`, or ``tx`` if no field is bfloat16.
    """
    names = [name for name, dtype in dtypes.items() if dtype == jnp.bfloat16]
    if not names:
        return tx
    tx = optax.with_extra_args_support(tx)

    def init_fn(params):
        key = jax.random.key(seed_of(names, params), impl=KIND)
        return StochasticRoundingState(jax.random.key_data(key), tx.init(params))

    def update_fn(updates, state, params=None, **extra_args):
        stored = state.inner_state
        wide = {name: _tree.at_least_float32(getattr(stored, name)) for name in names}
        updates, new = tx.update(updates, stored._replace(**wide), params, **extra_args)
        key, now = jax.random.split(jax.random.wrap_key_data(state.key, impl=KIND))
        rounded = _round_tree({name: getattr(new, name) for name in names}, now)
        return updates, StochasticRoundingState(
            jax.random.key_data(key), new._replace(**rounded)
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def seed_of(names: list[str], params: Any) -> np.uint32:
    """Other fields and other leaves get other noise.

    ACClip rounds momentum and threshold each in a wrapper of its own: with one seed for
    all, both would be rounded up in the same steps.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    words = [*names, *(jax.tree_util.keystr(path) for path, _ in paths)]
    return np.uint32(zlib.crc32(" ".join(words).encode()))


def _round_tree(tree: Any, key: jax.Array) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    seeds = jax.random.bits(key, (len(leaves),), jnp.uint32)
    return treedef.unflatten(map(stochastic_round, leaves, seeds))


@jax.custom_jvp
def stochastic_round(x: jax.Array, seed: jax.Array) -> jax.Array:
    """One of the two neighbours of ``x`` in bfloat16: ``x`` itself on average.

    Finite numbers stay finite; inf and NaN stay what they are. The slope is 1.
    """
    largest = float(jnp.finfo(jnp.bfloat16).max)
    single = jnp.clip(x.astype(jnp.float32), -largest, largest)
    # bfloat16 is the upper half of float32: a carry out of the lower half rounds up in
    # size, as often as that half is large.
    bits = jax.lax.bitcast_convert_type(single, jnp.uint32)
    upper = (bits + random_bits(x.shape, seed)) >> 16
    rounded = jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


@stochastic_round.defjvp
def _stochastic_round_jvp(primals, tangents):
    return stochastic_round(*primals), tangents[0].astype(jnp.bfloat16)


def random_bits(shape: tuple[int, ...], seed: jax.Array) -> jax.Array:
    """16 random bits in uint32, from a hash of each entry's position.

    The hash is "lowbias32". `jax.random.bits` took 40 times as long as the rest of the
    update on a CPU, where it is not fused; dithering needs no more than this.
    """
    x = jnp.broadcast_to(seed, shape)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        position = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        x = x + position * jnp.uint32(stride)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return (x ^ (x >> 16)) >> 16
