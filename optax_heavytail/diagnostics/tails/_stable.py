"""The index of an alpha-stable law: from log-moments, and from its transform."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail.diagnostics.tails import _tail_index

# Of the standardised samples: Kogon and Williams, table 1.
_STEP = 0.1
_FREQUENCIES = _STEP * np.arange(1, 11)
_IQR = 1.95  # of a stable law of scale 1, within 5% for an index from 0.9 to 2


def log_moment(samples: jax.typing.ArrayLike) -> jax.Array:
    r"""The index of an alpha-stable law from the spread of its logarithms.

    .. math:: \hat\alpha = \Big( \frac{6}{\pi^2} \operatorname{Var} \log |d| -
        \frac{1}{2} \Big)^{-1/2}, \qquad d_i = x_i - x_{i + \lfloor n/2 \rfloor}.

    The differences of the two halves have a symmetric law around 0 with the same
    index, whatever the location and the skew of the samples: these do not matter.

    It answers what the index is *if* the law is stable. The spread comes from all
    samples, most of them far from the tail: for another law the number means little.

    Args:
      samples: real numbers, at least 4 on the last axis, any leading axes, signed.

    Returns:
      The index in (0, 2], float32 or wider, with the shape of ``samples`` without the
      last axis. 2 is a Gaussian law, and what any lighter one gets. NaN where there is
      no answer: a sample is inf or NaN, or a difference is 0.

    Raises:
      ValueError: fewer than 4 samples.
      TypeError: the samples are not real numbers.

    Example:
      >>> from optax_heavytail import diagnostics
      >>> halves = jnp.tan(jnp.pi * (jnp.arange(0.5, 1000) / 1000 - 0.5))  # Cauchy
      >>> samples = jnp.concatenate([5.0 + 2.0 * halves, jnp.full(1000, 5.0)])
      >>> round(diagnostics.log_moment(samples).item(), 2)
      1.01

    References:
      Ma and Nikias, `Parameter estimation and blind channel identification in impulsive
      signal environments <https://doi.org/10.1109/78.476432>`_, 1995.
    """
    inverse_square = log_moment_statistic(halves_apart(_checked(samples)))
    return jax.lax.rsqrt(jnp.maximum(inverse_square, 0.25))


def characteristic_function(samples: jax.typing.ArrayLike) -> jax.Array:
    r"""The index of an alpha-stable law from its characteristic function.

    A stable law of scale c has :math:`\log(-\log |\varphi(t)|^2) = \log(2 c^\alpha) +
    \alpha \log t`, whatever its location and skew. The index is the slope of the
    least-squares line at :math:`t = 0.1, 0.2, \dots, 1` times 1.95 over the
    interquartile range. For :math:`|\varphi(t)|^2` stands its unbiased estimate, the
    mean of :math:`\cos t (x_i - x_j)` over all pairs, but at least 1/n, where it
    drowns in the noise.

    It has by far the smallest error of the estimators here, if the law *is* stable. If
    not, it describes the bulk of the law and not its tail.

    Args:
      samples: as for `log_moment`.

    Returns:
      As `log_moment`. NaN where a sample is inf or NaN, the interquartile range is 0,
      or the slope is not positive.

    Raises:
      ValueError: fewer than 4 samples.
      TypeError: the samples are not real numbers.

    Example:
      >>> from optax_heavytail import diagnostics
      >>> samples = jnp.tan(jnp.pi * (jnp.arange(0.5, 1000) / 1000 - 0.5))  # Cauchy
      >>> round(diagnostics.characteristic_function(5.0 + 2.0 * samples).item(), 2)
      1.01

    References:
      Koutrouvelis, `Regression-type estimation of the parameters of stable laws
      <https://doi.org/10.1080/01621459.1980.10477573>`_, 1980. Kogon and Williams,
      "Characteristic function based estimation of stable distribution parameters", in
      *A Practical Guide to Heavy Tails*, 1998.
    """
    return _limited_slope(_checked(samples))


@jax.jit  # else its loop would be compiled in every call
def _limited_slope(samples: jax.Array) -> jax.Array:
    slope, _ = stable_fit(standardise(samples))
    return jnp.minimum(slope, 2.0)


def halves_apart(samples: jax.Array) -> jax.Array:
    """Differences of samples half a series apart."""
    half = samples.shape[-1] // 2
    return samples[..., :half] - samples[..., half : 2 * half]


def log_moment_statistic(
    differences: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """The estimate of 1 / alpha^2 from symmetric samples; NaN if one is 0."""
    weights = _weights(differences, weights)
    logs = jnp.log(jnp.abs(differences))
    around = logs - (logs @ weights)[..., None]
    # A log of 0 or inf makes the variance NaN by itself.
    return 6 / math.pi**2 * (around**2 @ weights) - 0.5


def _weights(samples: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Weights that sum to 1. The slope by them is what a sample does to a statistic."""
    n = samples.shape[-1]
    return jnp.full(n, 1 / n, samples.dtype) if weights is None else weights


def standardise(samples: Any, xp: Any = jnp) -> Any:
    """Samples around 0 with the scale at which `stable_fit` looks at them.

    In the arithmetic of ``xp``: of NumPy where there are many rows, as sorting with
    JAX takes ten times as long on a CPU. Not finite if the interquartile range is 0.
    """
    low, middle, high = xp.quantile(samples, xp.asarray([0.25, 0.5, 0.75]), axis=-1)
    return (samples - middle[..., None]) * (_IQR / (high - low))[..., None]


def stable_fit(
    standard: jax.Array, weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The slope of `characteristic_function`, and how far the law is from the line.

    Args:
      standard: standardised samples (..., n), float32 or wider.
      weights: (n,), of the samples; ``None``: all alike.

    Returns:
      The slope, not limited to 2, and the root mean square over the frequencies of the
      difference of :math:`|\\varphi|^2` from the fitted one.
    """
    n = standard.shape[-1]
    weights = _weights(standard, weights)
    turn = jnp.exp(1j * _STEP * standard)

    def squared(power, _):
        """One cosine serves all frequencies, which are multiples of the first."""
        power = power * turn
        mean = power @ weights.astype(power.dtype)
        pairs = n * (mean.real**2 + mean.imag**2) - 1
        return power, jnp.maximum(pairs / (n - 1), 1 / n)

    ones = jnp.ones_like(turn)
    measured = jax.lax.scan(squared, ones, length=len(_FREQUENCIES))[1]
    measured = jnp.moveaxis(measured, 0, -1)
    heights = jnp.log(-jnp.log(measured))
    logs = np.log(_FREQUENCIES).astype(standard.dtype)
    centered = (logs - logs.mean()).reshape((1,) * (standard.ndim - 1) + (-1,))
    slope = jnp.sum(centered * heights, axis=-1) / np.sum(centered**2)
    line = jnp.mean(heights, axis=-1, keepdims=True) + slope[..., None] * centered
    gap = measured - jnp.exp(-jnp.exp(line))
    distance = jnp.sqrt(jnp.mean(gap**2, axis=-1))
    answered = jnp.all(jnp.isfinite(standard), axis=-1) & (slope > 0)
    return jnp.where(answered, slope, jnp.nan), jnp.where(answered, distance, jnp.nan)


def stable_samples(
    index: float, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Symmetric alpha-stable samples, by the formula of Chambers, Mallows and Stuck."""
    angle = rng.uniform(-math.pi / 2, math.pi / 2, shape)
    waiting = rng.exponential(size=shape)
    ratio = np.cos((1 - index) * angle) / waiting
    power = (1 - index) / index
    return np.sin(index * angle) / np.cos(angle) ** (1 / index) * ratio**power


def _checked(samples: Any) -> jax.Array:
    samples = _tail_index.as_samples(samples)
    if samples.shape[-1] < 4:
        raise ValueError(f"samples must be at least 4, got {samples.shape[-1]}.")
    return samples
