"""Tail indices from the largest samples: Hill, moment ratio, Pickands."""

import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def hill(samples: jax.typing.ArrayLike, k: jax.typing.ArrayLike) -> jax.Array:
    r"""Hill's estimator of the tail index.

    With the magnitudes in falling order, :math:`|x|_{(1)} \geq |x|_{(2)} \geq \dots`,

    .. math:: \hat\alpha = \Big( \frac{1}{k} \sum_{i=1}^{k}
        \log \frac{|x|_{(i)}}{|x|_{(k+1)}} \Big)^{-1},

    the maximum-likelihood estimate if :math:`P(|X| > x) = c \, x^{-\alpha}` beyond the
    (k+1)-th. Independent samples give it a relative error of :math:`1 / \sqrt{k}`; too
    large a k adds a bias, as the law is not yet its tail there.

    Args:
      samples: real numbers, samples on the last axis, any leading axes. Their signs do
        not matter, nor does their scale. What a shift does to a tail is large: for
        noise around a mean, subtract it first.
      k: how many of the largest magnitudes are the tail, from 1 to n - 1. An array
        gives one estimate for each; it may be traced.

    Returns:
      The index, float32 or wider, with the shape of ``samples`` without its last axis,
      followed by that of ``k``. Zeros count as the smallest magnitudes. NaN where there
      is no answer: a sample is inf or NaN, the (k+1)-th magnitude is 0, the k + 1
      largest are equal, or a traced ``k`` is out of range.

    Raises:
      ValueError: no axis of samples, or ``k`` is out of range.
      TypeError: the samples are not real numbers.

    Example:
      >>> from optax_heavytail import diagnostics
      >>> quantiles = (jnp.arange(1.0, 1001.0) / 1001) ** (-1 / 1.5)
      >>> indices = diagnostics.hill(quantiles, jnp.array([50, 500]))
      >>> [round(index, 2) for index in indices.tolist()]
      [1.56, 1.51]

    References:
      Hill, `A simple general approach to inference about the tail of a distribution
      <https://doi.org/10.1214/aos/1176343247>`_, 1975.
    """
    first, _ = tail_moments(samples, k)
    return _positive_or_nan(1 / first)


def hill_plot(samples: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Hill's estimate for every k: where it is level, the tail is a power law.

    Args:
      samples: as for `hill`, at least 2.

    Returns:
      ``ks``, the integers from 1 to n - 1, and the indices, of the shape of ``samples``
      with n - 1 on the last axis, NaN as for `hill`.

    Raises:
      ValueError: no axis of samples, or fewer than 2 on it.
      TypeError: the samples are not real numbers.

    Example:
      >>> from optax_heavytail import diagnostics
      >>> ks, indices = diagnostics.hill_plot(jnp.array([8.0, -4.0, 2.0, 1.0]))
      >>> ks.tolist(), [round(a, 2) for a in (indices * jnp.log(2.0)).tolist()]
      ([1, 2, 3], [1.0, 0.67, 0.5])
    """
    samples = as_samples(samples)
    ks = np.arange(1, samples.shape[-1])
    if not ks.size:
        raise ValueError(f"samples must be at least 2, got {samples.shape[-1]}.")
    return jnp.asarray(ks), hill(samples, ks)


def moment_ratio(samples: jax.typing.ArrayLike, k: jax.typing.ArrayLike) -> jax.Array:
    r"""The moment-ratio estimator of the tail index.

    With the moments :math:`M_j = \frac{1}{k} \sum_{i \leq k}
    \big( \log |x|_{(i)} / |x|_{(k+1)} \big)^j` of the tail's logarithms,

    .. math:: \hat\alpha = 2 M_1 / M_2.

    At the same k it has less bias than `hill` where the tail is only nearly a power
    law, and for independent samples :math:`\sqrt 2` times its error.

    Args:
      samples: as for `hill`.
      k: as for `hill`.

    Returns:
      As `hill`.

    Raises:
      ValueError: no axis of samples, or ``k`` is out of range.
      TypeError: the samples are not real numbers.

    Example:
      >>> from optax_heavytail import diagnostics
      >>> quantiles = (jnp.arange(1.0, 1001.0) / 1001) ** (-1 / 1.5)
      >>> round(diagnostics.moment_ratio(quantiles, 500).item(), 2)
      1.54

    References:
      Danielsson, Jansen and de Vries, `The method of moments ratio estimator for the
      tail shape parameter <https://doi.org/10.1080/03610929608831727>`_, 1996.
    """
    first, second = tail_moments(samples, k)
    return _positive_or_nan(2 * first / second)


def pickands(samples: jax.typing.ArrayLike, k: jax.typing.ArrayLike) -> jax.Array:
    r"""Pickands' estimator of the tail index.

    With q, a quarter of k rounded down,

    .. math:: \hat\alpha = \log 2 \Big/ \log
        \frac{|x|_{(q)} - |x|_{(2q)}}{|x|_{(2q)} - |x|_{(4q)}}.

    A shift of all magnitudes does not change it, and it can say that there is no
    power-law tail. It pays with an error several times that of `hill`.

    Args:
      samples: as for `hill`, but ``k`` = n is allowed.
      k: how many of the largest magnitudes are the tail, from 4 to n; otherwise as for
        `hill`.

    Returns:
      As `hill`, and inf where the tail falls off faster than every power. NaN where
      there is no answer: a sample is inf or NaN, two of the three magnitudes are equal,
      or a traced ``k`` is out of range.

    Raises:
      ValueError: no axis of samples, or ``k`` is out of range.
      TypeError: the samples are not real numbers.

    Example:
      >>> from optax_heavytail import diagnostics
      >>> quantiles = (jnp.arange(1.0, 1001.0) / 1001) ** (-1 / 1.5)
      >>> round(diagnostics.pickands(quantiles - 1.0, 400).item(), 2)
      1.5

    References:
      Pickands, `Statistical inference using extreme order statistics
      <https://doi.org/10.1214/aos/1176343003>`_, 1975.
    """
    shape = pickands_shape(samples, k)
    index = jnp.where(shape > 0, 1 / jnp.where(shape > 0, shape, 1), jnp.inf)
    return jnp.where(jnp.isnan(shape), jnp.nan, index)


def pickands_shape(samples: Any, k: Any) -> jax.Array:
    """What `pickands` estimates before it is inverted; negative for bounded laws."""
    samples = as_samples(samples)
    k = _check_k(k, 4, samples.shape[-1])
    return _pickands_shape(samples, k, _count(samples, k))


@functools.partial(jax.jit, static_argnames="count")
def _pickands_shape(samples: jax.Array, k: Any, count: int) -> jax.Array:
    top = largest(samples, count)
    inside = (k >= 4) & (k <= samples.shape[-1])
    places = [jnp.where(inside, m * (k // 4) - 1, -1) for m in (1, 2, 4)]
    high, middle, low = (at(top, place) for place in places)
    upper, lower = high - middle, middle - low
    shape = jnp.log(upper / lower) / np.log(2)
    return jnp.where((upper > 0) & (lower > 0), shape, jnp.nan)


def tail_moments(samples: Any, k: Any) -> tuple[jax.Array, jax.Array]:
    """The first two moments of the logarithms of the k largest over the next one."""
    samples = as_samples(samples)
    k = _check_k(k, 1, samples.shape[-1] - 1)
    return _tail_moments(samples, k, _count(samples, k, 1))


@functools.partial(jax.jit, static_argnames="count")
def _tail_moments(samples: jax.Array, k: Any, count: int) -> Any:
    logs = jnp.log(largest(samples, count))
    # From the largest down, so that the sums are about as small as their differences.
    logs = logs - logs[..., :1]
    below = at(logs, k)
    sums = [at(jnp.cumsum(p, axis=-1), k - 1) for p in (logs, logs**2)]
    divisor = jnp.reshape(k, (1,) * (samples.ndim - 1) + k.shape)
    first, second = (total / divisor for total in sums)
    return first - below, second - 2 * below * first + below**2


def as_samples(samples: Any) -> jax.Array:
    if not isinstance(samples, jax.Array):
        samples = np.asarray(samples)
        if samples.dtype.kind in "iu":  # those beyond 2^31 would wrap
            samples = samples.astype(np.float64)
    samples = jnp.asarray(samples)
    if jnp.iscomplexobj(samples) or samples.dtype == bool:
        raise TypeError(f"samples must be real numbers, got {samples.dtype}.")
    if not samples.ndim:
        raise ValueError("samples must have an axis, got a scalar.")
    return samples.astype(jnp.promote_types(samples.dtype, jnp.float32))


def _check_k(k: Any, low: int, high: int) -> Any:
    """``k`` as an array, of NumPy where its value is known."""
    if isinstance(k, jax.core.Tracer):
        return k
    array = np.asarray(k)
    if array.dtype.kind not in "iu":
        raise TypeError(f"k must be integers, got {k!r}.")
    if np.any((array < low) | (array > high)):
        raise ValueError(f"k must be from {low} to {high}, got {k}.")
    return array


def _count(samples: jax.Array, k: Any, more: int = 0) -> int:
    """How many of the largest a k needs, all of them if its value is not known."""
    if isinstance(k, jax.core.Tracer):
        return samples.shape[-1]
    return int(np.max(k, initial=0)) + more


def largest(samples: jax.Array, count: int) -> jax.Array:
    """The largest magnitudes in falling order, NaN if one is not finite."""
    top, _ = jax.lax.top_k(jnp.abs(samples), count)
    finite = jnp.all(jnp.isfinite(samples), axis=-1, keepdims=True)
    return jnp.where(finite, top, jnp.nan)


def at(values: jax.Array, place: Any) -> jax.Array:
    """Entries of the last axis; NaN for places outside it."""
    place = jnp.asarray(place)
    inside = (place >= 0) & (place < values.shape[-1])
    return jnp.take(
        values, jnp.where(inside, place, values.shape[-1]), axis=-1, mode="fill"
    )


def _positive_or_nan(index: jax.Array) -> jax.Array:
    return jnp.where((index > 0) & jnp.isfinite(index), index, jnp.nan)
