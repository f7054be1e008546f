"""What is kept of the norms of all steps: how often each size came, and a sample."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# Bins have equal widths in the logarithm: a norm is known up to a factor of 2^(1/8).
BINS_PER_OCTAVE = 8
LOWEST, HIGHEST = -64, 64  # exponents of 2
NUM_BINS = BINS_PER_OCTAVE * (HIGHEST - LOWEST)

_KIND = "threefry2x32"


class NormHistory(NamedTuple):
    """Norms of all steps in constant memory, in rows of a kind each."""

    num_seen: jax.Array  #: (), int32, steps whose norms were all finite
    #: (rows, 1 + 1024), int32, how many finite norms are below 2^-64, and then in each
    #: bin from 2^-64 to 2^64 in steps of 2^(1/8); larger ones are in the last
    histogram: jax.Array
    #: (reservoir_size, rows), the norms of steps drawn evenly from those in num_seen
    reservoir: jax.Array
    #: (reservoir_size,), int32, which updates these were, from 1 on; 0 if there is none
    drawn_at: jax.Array
    key: jax.Array  #: (2,), uint32, the data of the random key that draws


def empty(rows: int, size: int, dtype: jnp.dtype) -> NormHistory:
    """Before the first step."""
    return NormHistory(
        num_seen=jnp.zeros([], jnp.int32),
        histogram=jnp.zeros((rows, 1 + NUM_BINS), jnp.int32),
        reservoir=jnp.zeros((size, rows), dtype),
        drawn_at=jnp.zeros(size, jnp.int32),
        key=jax.random.key_data(jax.random.key(0, impl=_KIND)),
    )


def add(
    history: NormHistory, norms: jax.Array, count: jax.typing.ArrayLike
) -> NormHistory:
    """Enters the norms of update ``count``.

    One that is not finite is in no bin, and its step not in the reservoir: a sample has
    the same steps in all rows.
    """
    history = NormHistory(*map(jnp.asarray, history))  # NumPy's have no `at`
    is_finite = jnp.isfinite(norms)
    is_drawable = jnp.all(is_finite)
    num_seen = jnp.where(
        is_drawable, optax.safe_increment(history.num_seen), history.num_seen
    )
    size = history.drawn_at.size
    place = _place(history.key, num_seen, size)
    is_drawn = is_drawable & (place < size)
    place = jnp.minimum(place, size - 1)
    row = jnp.where(is_drawn, norms, history.reservoir[place])
    drawn_at = jnp.where(is_drawn, count, history.drawn_at[place])
    rows = jnp.arange(norms.size)
    return history._replace(
        num_seen=num_seen,
        histogram=history.histogram.at[rows, _bins(norms)].add(
            is_finite.astype(jnp.int32)
        ),
        reservoir=history.reservoir.at[place].set(row),
        drawn_at=history.drawn_at.at[place].set(drawn_at),
    )


def _bins(norms: jax.Array) -> jax.Array:
    tiny = norms < 2.0**LOWEST
    exponent = jnp.log2(jnp.where(tiny | ~jnp.isfinite(norms), 1, norms))
    place = jnp.floor((exponent - LOWEST) * BINS_PER_OCTAVE).astype(jnp.int32)
    return jnp.where(tiny, 0, 1 + jnp.clip(place, 0, NUM_BINS - 1))


def _place(key: jax.Array, num_seen: jax.Array, size: int) -> jax.Array:
    """Where the newest of ``num_seen`` goes; ``size`` or more: nowhere.

    By Vitter's algorithm R each of them is in the reservoir with the same probability.
    """
    drawing = jax.random.fold_in(jax.random.wrap_key_data(key, impl=_KIND), num_seen)
    # Of 2^32 numbers: those of a million steps are even to 2 parts in 10,000.
    number = jax.random.bits(drawing, (), jnp.uint32)
    drawn = number % jnp.maximum(num_seen, 1).astype(jnp.uint32)
    drawn = jnp.minimum(drawn, size).astype(jnp.int32)
    return jnp.where(num_seen <= size, jnp.maximum(num_seen - 1, 0), drawn)


def quantiles(histogram: jax.Array, fractions: tuple[float, ...]) -> jax.Array:
    r"""Norms at which the shares ``fractions`` of all steps are reached: a row each.

    The norm is the middle of its bin in the logarithm, so off by a factor of at most
    :math:`2^{1/16}`; 0 for the first bin; NaN without any norm.
    """
    sums = jnp.cumsum(histogram, axis=1)
    total = sums[:, -1:]
    # The first bin with so many in it and below; a tenth of 10, rounded up, is 1.
    wanted = jnp.ceil(jnp.asarray(fractions)[None] * total * (1 - 1e-6))
    wanted = jnp.maximum(wanted, 1)
    place = jnp.sum(sums[:, None, :] < wanted[:, :, None], axis=-1)
    middle = 2.0 ** ((place - 0.5) / BINS_PER_OCTAVE + LOWEST)
    found = jnp.where(place == 0, 0, middle)
    return jnp.where(total == 0, jnp.nan, found)
