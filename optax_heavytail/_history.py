"""Windows of the last numbers of each unit, and the statistics of what is in them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _tree

# 1.4826 times the median absolute deviation is a Gaussian's standard deviation.
_DEVIATIONS_PER_MAD = 1.4826
# Of the logarithm. Norms that hardly vary would make a spike of each small rise.
_SMALLEST_DEVIATION = 0.05


class History(NamedTuple):
    """The last numbers of each unit, the newest last."""

    numbers: jax.Array  #: (..., window), float32 or wider, 0 where none came yet
    seen: jax.typing.ArrayLike  #: (...), int32, how many came


def empty(shape: tuple[int, ...], window: int, dtype: Any) -> History:
    """No number yet, of units in an array of that shape."""
    return History(jnp.zeros((*shape, window), dtype), jnp.zeros(shape, jnp.int32))


def append(history: History, x: Any, enters: Any) -> History:
    """The history with ``x`` in the units where it enters."""
    x, enters = jnp.asarray(x, history.numbers.dtype), jnp.asarray(enters)
    later = jnp.concatenate([history.numbers[..., 1:], x[..., None]], axis=-1)
    return History(
        jnp.where(enters[..., None], later, history.numbers),
        jnp.where(enters, optax.safe_increment(history.seen), history.seen),
    )


def clear(history: History, condition: Any) -> History:
    """The history, empty where the condition holds."""
    return jax.tree.map(lambda x: jnp.where(condition, 0, x), history)


def size(history: History) -> jax.Array:
    """How many numbers are in the window of each unit."""
    return jnp.minimum(history.seen, history.numbers.shape[-1])


def is_full(history: History) -> jax.Array:
    """Whether the window of each unit is."""
    return jnp.asarray(history.seen) >= history.numbers.shape[-1]


def quantile(history: History, q: Any) -> jax.Array:
    """The quantile of positive numbers, between two of them on their straight line.

    One sort for all units. Where none came yet: 0.
    """
    # Places without a number hold 0 and come first.
    ordered = jnp.sort(history.numbers, axis=-1)
    last, count = ordered.shape[-1] - 1, size(history)
    below, share = _place(q, jnp.maximum(count - 1, 0).astype(ordered.dtype))
    first = jnp.minimum(last - count + 1 + below.astype(jnp.int32), last)

    def at(index):
        return jnp.take_along_axis(ordered, index[..., None], axis=-1)[..., 0]

    low, high = at(first), at(jnp.minimum(first + 1, last))
    return low + (high - low) * share.astype(ordered.dtype)


def _place(q, last):
    """The whole and the broken part of ``q * last``.

    Of two neighbours a million apart each digit of the broken part shows, and the
    product has none to spare in float32: twelve bits of q are multiplied exactly.
    """
    steps = 2**12
    coarse = q * steps // 1 / steps
    exact, rest = coarse * last, (q - coarse) * last
    below = jnp.floor(exact + rest)
    return below, exact - below + rest


def median_and_deviation(numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Median and 1.4826 MAD along the last axis: of a full window."""
    median = jnp.median(numbers, axis=-1)
    mad = jnp.median(jnp.abs(numbers - median[..., None]), axis=-1)
    return median, _DEVIATIONS_PER_MAD * mad


def norm_limit(history: History, max_deviations: Any) -> jax.Array:
    """A limit on norms: so many deviations of their logarithms above the median.

    The largest number until the window is full.
    """
    numbers = history.numbers
    # Logarithms of ratios: that of 1e-30 alone has lost two digits.
    largest = jnp.max(numbers, axis=-1, keepdims=True)
    # XLA may multiply by the reciprocal, which of the largest floats is no normal one.
    shrink = jnp.where(largest > 1, 1 / 16, 1)
    ratios = (numbers * shrink) / jnp.where(largest > 0, largest * shrink, 1)
    logs = jnp.log(jnp.maximum(ratios, jnp.finfo(numbers.dtype).tiny))
    median, deviation = median_and_deviation(logs)
    excess = max_deviations * jnp.maximum(deviation, _SMALLEST_DEVIATION)
    limit = largest[..., 0] * jnp.exp(median + excess)
    return jnp.where(is_full(history), limit, _tree.no_limit(limit.dtype))


def mean_and_deviation(history: History, ddof: int) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation, with the divisor ``size - ddof`` or 1."""
    numbers = history.numbers
    window = numbers.shape[-1]
    count = size(history)[..., None]
    place = jax.lax.broadcasted_iota(jnp.int32, numbers.shape, numbers.ndim - 1)
    here = place >= window - count
    # Relative to the largest: squares of norms may be no number of the dtype.
    largest = jnp.max(jnp.abs(numbers), axis=-1, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    ratios = numbers / largest
    mean = jnp.sum(ratios, -1, keepdims=True) / jnp.maximum(count, 1)
    squares = jnp.where(here, jnp.square(ratios - mean), 0)
    variance = jnp.sum(squares, -1) / jnp.maximum(count[..., 0] - ddof, 1)
    scale = largest[..., 0]
    return scale * mean[..., 0], scale * _tree.safe_sqrt(variance)
