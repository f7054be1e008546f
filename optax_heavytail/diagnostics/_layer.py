"""The tail of one layer's noise: estimates, groups of coordinates, verdicts."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from optax_heavytail.diagnostics._noise import LayerNoise
from optax_heavytail.diagnostics._tail_estimate import TailEstimate, estimate_tail
from optax_heavytail.diagnostics._tail_index import hill
from optax_heavytail.diagnostics._verdict import Verdict, judge, unknown

NORM_METHODS = ("hill", "moment_ratio", "pickands")
STABLE_METHODS = ("log_moment", "characteristic_function")
_ROUNDING = 1e-6  # noise that is smaller, as a part of the whole, is rounding
_MOST_DRAWS = 64  # that the estimate across coordinates looks at
_QUARTERS = 4
_GAUSSIAN_DRAWS = 200


@dataclasses.dataclass(frozen=True)
class CoordinateGroup:
    """A quarter of a layer's coordinates, by the size of their noise.

    Attributes:
      scale: median of the absolute noise.
      index: median over the coordinates of their Hill indices across iterations.
      gaussian_index: the same of Gaussian noise.
    """

    scale: float
    index: float
    gaussian_index: float


@dataclasses.dataclass(frozen=True, eq=False)
class LayerDiagnosis:
    """What the noise of one layer, or of all, is like.

    Attributes:
      noise: what was measured.
      noise_share: its part of the variance of the whole.
      iterations: of the norms across batches, by method: "hill", "moment_ratio" and
        "pickands" of the norms, "log_moment" and "characteristic_function" of the noise
        along one random direction. Empty if nothing can be estimated.
      coordinates: Hill across the coordinates within a batch; ``None`` likewise.
      groups: the quarters of the coordinates, from the quietest on.
      verdict: of the norms across batches, by Hill.
      coordinate_verdict: across the coordinates.
    """

    noise: LayerNoise
    noise_share: float
    iterations: dict[str, TailEstimate]
    coordinates: TailEstimate | None
    groups: tuple[CoordinateGroup, ...]
    verdict: Verdict
    coordinate_verdict: Verdict


def diagnose_layer(
    noise: LayerNoise,
    noise_share: float,
    null_norms: np.ndarray | None,
    confidence: float,
    seed: int,
) -> LayerDiagnosis:
    """Estimates the tail of one layer's noise.

    Args:
      noise: its measurements.
      noise_share: its part of the whole's variance.
      null_norms: norms of Gaussian noise; ``None`` if there is an inf or NaN.
      confidence: of the intervals.
      seed: of the bootstraps.
    """
    reason = _no_estimate(noise, noise_share)
    if reason is not None:
        told = unknown(reason)
        return LayerDiagnosis(noise, noise_share, {}, None, (), told, told)

    def estimate(samples: np.ndarray, over: str, method: str, null=None):
        return estimate_tail(
            samples,
            over=over,
            method=method,
            confidence=confidence,
            null=null,
            seed=seed,
        )

    iterations = {
        method: estimate(noise.norms, "iterations", method, null_norms)
        for method in NORM_METHODS
    }
    direction = _along_one_direction(noise, seed)
    for method in STABLE_METHODS:
        iterations[method] = estimate(direction, "iterations", method)
    step = -(-len(noise.norms) // _MOST_DRAWS)
    coordinates = estimate(noise.coordinates[::step], "coordinates", "hill")
    n = len(noise.norms)
    return LayerDiagnosis(
        noise,
        noise_share,
        iterations,
        coordinates,
        _groups(noise, iterations["hill"].k, seed),
        judge(iterations["hill"], n),
        judge(coordinates, n),
    )


def _no_estimate(noise: LayerNoise, noise_share: float) -> str | None:
    """Why nothing can be said of a layer, if that is so."""
    if noise.num_nonfinite:
        return (
            f"{noise.num_nonfinite} of {len(noise.norms)} batches have an inf or NaN"
        )
    if not noise.norms.any():
        return "constant: the gradient is the same for every batch"
    if noise_share < _ROUNDING**2:
        return (
            f"constant up to rounding: its noise is {np.sqrt(noise_share):.0e} of the "
            "whole's"
        )
    return None


def _along_one_direction(noise: LayerNoise, seed: int) -> np.ndarray:
    signs = np.random.default_rng(seed).choice(
        np.array([-1.0, 1.0]), noise.coordinates.shape[1]
    )
    return noise.coordinates @ signs


def _groups(
    noise: LayerNoise, k: int | None, seed: int
) -> tuple[CoordinateGroup, ...]:
    n, c = noise.coordinates.shape
    sizes = np.abs(noise.coordinates).T
    varied = np.median(sizes, axis=1) > 0
    sizes = sizes[varied]
    if k is None or len(sizes) < _QUARTERS:
        return ()
    sizes = sizes[np.argsort(np.median(sizes, axis=1))]
    gaussian = np.random.default_rng(seed).standard_normal((_GAUSSIAN_DRAWS, n))
    expected = float(np.median(_hill(gaussian, k)))
    return tuple(
        CoordinateGroup(
            float(np.median(part)), float(np.median(_hill(part, k))), expected
        )
        for part in np.array_split(sizes, _QUARTERS)
    )


def _hill(samples: np.ndarray, k: int) -> np.ndarray:
    # Scale-free, and float32 has no room for noise of 1e-40.
    scaled = samples / np.median(np.abs(samples), axis=-1, keepdims=True)
    return np.asarray(hill(jnp.asarray(scaled, jnp.float32), k))
