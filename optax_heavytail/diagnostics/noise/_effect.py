"""What clipping at a threshold does to gradients that were measured."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from optax_heavytail.diagnostics.noise._noise import LayerNoise

_FOLDS = 10  # of the jackknife
_Z = 1.645  # of a central interval of 90%


class Clip(NamedTuple):
    """A threshold on one layer.

    Attributes:
      scope: "norm" of the layer, or "coordinate".
      threshold: in the gradient's units.
    """

    scope: str
    threshold: float


@dataclasses.dataclass(frozen=True)
class ClipEffect:
    r"""What clipping does to the gradients of the batches that were measured.

    With :math:`u` the clipped gradient, the descent lemma bounds the decrease of a
    smooth loss in one step of the best length by a multiple of

    .. math:: \frac{\langle \nabla f, E u \rangle^2}{E \lVert u \rVert^2},

    whose ratio to the same without clipping is the gain: above 1, clipped gradients get
    further with each batch. :math:`\nabla f` is the mean of the other batches.

    Attributes:
      clipped: share of the batches (norm) or of the coordinates that are clipped, the
        largest of all layers.
      cosine: of the angle between the mean of the clipped gradients and that of the
        raw ones: how much of the direction the bias of clipping costs.
      gain: as above; ``None`` where the signal is lost in the noise.
      gain_low: lower end of its 90% jackknife interval.
      gain_high: upper end.
    """

    clipped: float
    cosine: float
    gain: float | None
    gain_low: float | None
    gain_high: float | None


class _Products(NamedTuple):
    cross: np.ndarray  # (n, n) <u_i, g_j>
    own: np.ndarray  # (n, n) <u_i, u_j>
    clipped: float


def clip_effect(layers: Sequence[tuple[LayerNoise, Clip | None]]) -> ClipEffect:
    """The effect of clipping some layers, each at its own threshold.

    Of a layer that is clipped by coordinate, both sides are estimated from the 256
    coordinates that were kept. Where few coordinates are far larger than the rest, and
    not among these, the gain is rough.

    Args:
      layers: all that an update has, with ``None`` where nothing is clipped. None may
        have an inf or NaN.
    """
    raw = _total(_products(layer, _without(clip)) for layer, clip in layers)
    cut = _total(_products(layer, clip) for layer, clip in layers)
    length = np.sqrt(cut.own.mean() * raw.own.mean())
    gains = _log_gains(cut, raw)
    return ClipEffect(
        clipped=cut.clipped,
        cosine=float(cut.cross.mean() / length) if length > 0 else float("nan"),
        **gains,
    )


def _without(clip: Clip | None) -> Clip | None:
    """A clip of the same scope that clips nothing.

    Products with a clip are compared with those that are estimated in the same way.
    """
    is_sampled = clip is not None and clip.scope == "coordinate"
    return Clip("coordinate", np.inf) if is_sampled else None


def _total(parts: Iterator[_Products]) -> _Products:
    """One after the other: of n batches each layer has n x n numbers, twice."""
    return functools.reduce(
        lambda a, b: _Products(
            a.cross + b.cross, a.own + b.own, max(a.clipped, b.clipped)
        ),
        parts,
    )


def _products(layer: LayerNoise, clip: Clip | None) -> _Products:
    if clip is not None and clip.scope == "coordinate":
        return _coordinate_products(layer, clip.threshold)
    products = layer.mean_products[:, None] + layer.mean_products
    raw = layer.gram + products + layer.gradient_norm**2
    if clip is None:
        return _Products(raw, raw, 0.0)
    norms = np.maximum(layer.gradient_norms, np.finfo(float).tiny)
    factors = np.minimum(clip.threshold / norms, 1)
    return _Products(
        factors[:, None] * raw,
        factors[:, None] * raw * factors,
        float(np.mean(factors < 1)),
    )


def _coordinate_products(layer: LayerNoise, threshold: float) -> _Products:
    """From the coordinates that were kept, as a sample of all."""
    raw = layer.coordinates + layer.mean_coordinates
    cut = np.clip(raw, -threshold, threshold)
    weight = layer.size / raw.shape[1]
    clipped = float(np.mean(np.abs(raw) > threshold))
    return _Products(weight * cut @ raw.T, weight * cut @ cut.T, clipped)


def _log_gains(cut: _Products, raw: _Products) -> dict[str, float | None]:
    n = len(raw.own)
    fold = np.arange(n) % _FOLDS
    kept = [np.ones(n, bool), *(fold != i for i in range(min(_FOLDS, n)))]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.array([_log_progress(cut, k) - _log_progress(raw, k) for k in kept])
    whole, parts = logs[0], logs[1:]
    if n < 2 * _FOLDS or not np.isfinite(logs).all():
        return {"gain": None, "gain_low": None, "gain_high": None}
    spread = np.sqrt((_FOLDS - 1) / _FOLDS * np.sum((parts - parts.mean()) ** 2))
    ends = whole + _Z * spread * np.array([-1, 0, 1])
    low, gain, high = np.exp(np.clip(ends, -700, 700)).tolist()
    return {"gain": gain, "gain_low": low, "gain_high": high}


def _log_progress(products: _Products, kept: np.ndarray) -> float:
    """Log of (mean over i != j of <u_i, g_j>)^2 / mean |u_i|^2, or NaN."""
    cross, n = products.cross[np.ix_(kept, kept)], int(kept.sum())
    signal = (cross.sum() - np.trace(cross)) / (n * (n - 1))
    power = np.mean(np.diag(products.own)[kept])
    return float(2 * np.log(signal) - np.log(power))  # NaN where it is negative
