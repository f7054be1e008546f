"""How close the largest samples are to a Pareto law, and for how many it is closest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail.diagnostics.tails._tail_index import as_samples, at, largest

_MIN_TAIL = 10  # fewer samples lie close to any law


def choose_k(samples: jax.typing.ArrayLike) -> jax.Array:
    r"""The k at which the tail is closest to a power law.

    For k from 10 to n / 2, at up to 64 values with equal ratios, the distance of
    Kolmogorov and Smirnov between the k largest magnitudes and the Pareto law that
    `hill` fits to them; the k with the smallest.

    It is a way to read a Hill plot, and no ground for an interval: as it looks at the
    samples, and takes as many as the fit allows, an interval that takes its k as given
    is too narrow and off the mark. `estimate_tail` does not use it.

    Args:
      samples: as for `hill`, at least 20.

    Returns:
      The k of each row, int32, of the shape of ``samples`` without its last axis; 0
      where `hill` has no answer for any k. For the indices at them:
      ``jax.vmap(hill)(samples, choose_k(samples))``.

    Raises:
      ValueError: no axis of samples, or fewer than 20 on it.
      TypeError: the samples are not real numbers.

    Example:
      A Pareto tail of a tenth of the samples, above others in [0, 1]:

      >>> from optax_heavytail import diagnostics
      >>> tail = (jnp.arange(1.0, 101.0) / 100) ** (-1 / 1.5)
      >>> samples = jnp.concatenate([tail, jnp.linspace(0.0, 1.0, 900)])
      >>> 80 <= diagnostics.choose_k(samples) <= 110
      Array(True, dtype=bool)

    References:
      Clauset, Shalizi and Newman, `Power-law distributions in empirical data
      <https://arxiv.org/abs/0706.1062>`_, 2009. Drees, Janßen, Resnick and Wang, `On a
      minimum distance procedure for threshold selection in tail analysis
      <https://arxiv.org/abs/1811.06433>`_, 2020.
    """
    samples = as_samples(samples)
    n = samples.shape[-1]
    if n < 2 * _MIN_TAIL:
        raise ValueError(f"samples must be at least {2 * _MIN_TAIL}, got {n}.")
    ks = np.unique(np.geomspace(_MIN_TAIL, n // 2, 64).astype(np.int32))
    return _closest(samples, jnp.asarray(ks), int(ks[-1]) + 1)


@functools.partial(jax.jit, static_argnames="count")
def _closest(samples: jax.Array, ks: jax.Array, count: int) -> jax.Array:
    """The k whose tail is closest to a Pareto law, 0 if none is anything."""
    logs = jnp.log(largest(samples, count))
    distances = jax.lax.map(lambda k: pareto_distance(logs, k), ks)
    best = jnp.argmin(jnp.where(jnp.isnan(distances), jnp.inf, distances), axis=0)
    return jnp.where(jnp.all(jnp.isnan(distances), axis=0), 0, ks[best])


def pareto_distance(logs: jax.Array, k: jax.typing.ArrayLike) -> jax.Array:
    """The Kolmogorov-Smirnov distance of the k largest from the Pareto law of `hill`.

    Args:
      logs: logarithms of magnitudes in falling order on the last axis, more than k.
      k: an integer, maybe traced.

    Returns:
      The distance; NaN where `hill` has no answer.
    """
    place = jnp.arange(logs.shape[-1]).reshape((1,) * (logs.ndim - 1) + (-1,))
    inside = place < k
    excess = jnp.where(inside, logs - at(logs, k)[..., None], 0)
    mean = jnp.sum(excess, axis=-1, keepdims=True) / k
    survival = jnp.exp(-excess / mean)
    gap = jnp.maximum((place + 1) / k - survival, survival - place / k)
    return jnp.max(jnp.where(inside | jnp.isnan(gap), gap, 0), axis=-1)
