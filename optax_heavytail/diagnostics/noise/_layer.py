"""The tail of one layer's noise: three questions, and a verdict from the answers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from optax_heavytail.diagnostics.noise import _entries
from optax_heavytail.diagnostics.noise._entries import CoordinateGroup, tail_size
from optax_heavytail.diagnostics.noise._noise import LayerNoise
from optax_heavytail.diagnostics.noise._verdict import Verdict, judge, unknown
from optax_heavytail.diagnostics.tails._tail_estimate import TailEstimate, estimate_tail

NORM_METHODS = ("hill", "moment_ratio", "pickands")
STABLE_METHODS = ("log_moment", "characteristic_function")
_SAME = 1e-12  # relative noise of a gradient that is the same for every batch
_ROUNDING = 1e-6  # noise that is smaller, as a part of the whole, is rounding
# Of the whole gradient, as large as its norm: what sums in another order make of it.
# Noise that never is larger needs no clip, even if it should be more than that.
_ROUNDINGS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class LayerDiagnosis:
    """What the noise of one layer, or of all, is like.

    Attributes:
      noise: what was measured.
      noise_share: its part of the variance of the whole.
      norms: of the norms across iterations, by method: "hill", and of the whole also
        "moment_ratio" and "pickands", with "log_moment" and "characteristic_function"
        of the noise along one random direction. Empty if nothing can be estimated.
      entries: of single coordinates across iterations, by Hill: the median of up to 32
        coordinates; ``None`` if nothing can be estimated.
      coordinates: across the coordinates within an iteration, each in units of its own
        typical size, by Hill: the median of up to 64 iterations; ``None`` likewise.
      groups: quarters of the coordinates, from the quietest on.
      null_norms: (3, n) order statistics of the norms of Gaussian noise, in rising
        order: the lower end, the median and the upper end of their intervals; ``None``
        likewise.
      verdict: heavy if the norms or the single coordinates are.
      norm_verdict: of the norms across iterations.
      entry_verdict: of single coordinates across iterations.
      coordinate_verdict: of the coordinates within an iteration: "heavy" if what makes
        an iteration large is a few coordinates, and not all of them.
    """

    noise: LayerNoise
    noise_share: float
    norms: dict[str, TailEstimate]
    entries: TailEstimate | None
    coordinates: TailEstimate | None
    groups: tuple[CoordinateGroup, ...]
    null_norms: np.ndarray | None = dataclasses.field(repr=False)
    verdict: Verdict
    norm_verdict: Verdict
    entry_verdict: Verdict
    coordinate_verdict: Verdict

    @property
    def has_index(self) -> bool:
        """Whether there is an index of the norms across iterations."""
        return bool(self.norms) and self.norms["hill"].index is not None

    @property
    def is_spiky(self) -> bool:
        """Whether a few coordinates make an iteration large."""
        return self.coordinate_verdict.label == "heavy"


def diagnose_layer(
    noise: LayerNoise,
    whole: LayerNoise,
    null_norms: np.ndarray | None,
    confidence: float,
    seed: int,
) -> LayerDiagnosis:
    """Estimates the tails of one layer's noise.

    Args:
      noise: its measurements.
      whole: those of all layers; where it is the same, every estimator looks at it.
      null_norms: norms of Gaussian noise; ``None`` if there is an inf or NaN.
      confidence: of the intervals.
      seed: of the bootstraps.
    """
    noise_share = _share(noise, whole)
    reason = _no_estimate(noise, noise_share, whole)
    if reason is not None:
        told = unknown(reason)
        return LayerDiagnosis(
            noise, noise_share, {}, None, None, (), None, told, told, told, told
        )
    n = len(noise.norms)
    methods = (*NORM_METHODS, *STABLE_METHODS) if noise is whole else NORM_METHODS[:1]
    norms = _norms(noise, methods, null_norms, confidence, seed)
    scaled = _entries.scaled(noise.coordinates)
    entries = _entries.across_iterations(scaled, confidence, seed)
    coordinates = _entries.across_coordinates(scaled, confidence, seed)
    norm_verdict, entry_verdict = judge(norms["hill"], n), judge(entries, n)
    return LayerDiagnosis(
        noise=noise,
        noise_share=noise_share,
        norms=norms,
        entries=entries,
        coordinates=coordinates,
        groups=_entries.groups(noise.coordinates, seed),
        null_norms=_order_statistics(null_norms, confidence),
        verdict=_together(norm_verdict, entry_verdict),
        norm_verdict=norm_verdict,
        entry_verdict=entry_verdict,
        coordinate_verdict=judge(coordinates, n),
    )


def _share(part: LayerNoise, whole: LayerNoise) -> float:
    """The share of the variance; 1 with an inf or NaN somewhere: nothing is known."""
    if part.num_nonfinite or whole.num_nonfinite or not whole.variance:
        return 1.0
    return part.variance / whole.variance


def _order_statistics(
    null_norms: np.ndarray | None, confidence: float
) -> np.ndarray | None:
    if null_norms is None:
        return None
    levels = ((1 - confidence) / 2, 0.5, (1 + confidence) / 2)
    return np.quantile(np.sort(null_norms, axis=1), levels, axis=0)


def _norms(
    noise: LayerNoise,
    methods: Sequence[str],
    null: np.ndarray | None,
    confidence: float,
    seed: int,
) -> dict[str, TailEstimate]:
    """Across iterations, by these methods."""
    n = len(noise.norms)
    signs = np.random.default_rng(seed).choice(
        np.array([-1.0, 1.0]), noise.coordinates.shape[1]
    )
    found = {}
    for method in methods:
        is_stable = method in STABLE_METHODS
        found[method] = estimate_tail(
            noise.coordinates @ signs if is_stable else noise.norms,
            over="iterations",
            method=method,
            k=None if is_stable else tail_size(n),
            confidence=confidence,
            null=None if is_stable else null,
            seed=seed,
        )
    return found


def _no_estimate(
    noise: LayerNoise, noise_share: float, whole: LayerNoise
) -> str | None:
    """Why nothing can be said of a layer, if that is so."""
    if noise.num_nonfinite:
        return f"{noise.num_nonfinite} of {len(noise.norms)} batches have an inf or NaN"
    if noise.norms.max() <= _SAME * noise.gradient_norm:
        return "constant: the gradient is the same for every batch"
    if noise_share < _ROUNDING**2:
        return (
            f"constant up to rounding: its noise is {np.sqrt(noise_share):.0e} of the "
            "whole's"
        )
    largest = whole.norms.max()  # NaN if another layer has one: not known
    if largest <= _ROUNDINGS * whole.rounding:
        return (
            "constant up to rounding: the noise of all layers is at most "
            f"{largest / whole.gradient_norm:.0e} of the gradient"
        )
    return None


def _together(norms: Verdict, entries: Verdict) -> Verdict:
    """A norm is at least as large as each coordinate, so its tail is as heavy."""
    of_norms = _about("the norm across iterations has", norms)
    of_entries = _about("single coordinates across iterations have", entries)
    if norms.label == "heavy" or entries.label in ("unknown", "not heavy"):
        return of_norms
    if entries.label == "heavy" or norms.label in ("unknown", "not heavy"):
        return of_entries
    return of_norms


def _about(what: str, verdict: Verdict) -> Verdict:
    if verdict.label == "unknown":
        return verdict
    return dataclasses.replace(verdict, text=f"{what} a {verdict.text}")
