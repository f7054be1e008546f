"""Is the gradient noise of a model heavy-tailed, where, and what to do about it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from optax_heavytail import _base
from optax_heavytail.diagnostics.noise._collect_noise import (
    Batches,
    Progress,
    collect_noise,
)
from optax_heavytail.diagnostics.noise._layer import LayerDiagnosis, diagnose_layer
from optax_heavytail.diagnostics.noise._noise import LayerNoise, gaussian_norms
from optax_heavytail.diagnostics.noise._page import page
from optax_heavytail.diagnostics.noise._recommend import Recommendation, recommend

_NUM_NULLS = 199  # a p-value down to 1 / 200
_MOST_CONFIDENT = 0.99  # with half of what is left above that p-value
_NAMED = 5  # layers that a sentence names


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found; printed, a page of it.

    Attributes:
      layers: one `LayerDiagnosis` per leaf.
      whole: that of all layers as one vector.
      verdict: in a few sentences.
      recommendation: what to do, with code to paste.
      confidence: of the intervals.
    """

    layers: tuple[LayerDiagnosis, ...] = dataclasses.field(repr=False)
    whole: LayerDiagnosis = dataclasses.field(repr=False)
    verdict: str
    recommendation: Recommendation
    confidence: float

    def __str__(self) -> str:
        return page(
            self.verdict, self.recommendation, self.layers, self.whole, self.confidence
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the raw measurements, as JSON has it: NaN is ``None``.

        Returns:
          A dict of plain Python values.
        """
        return {
            "verdict": self.verdict,
            "recommendation": _plain(dataclasses.asdict(self.recommendation)),
            "confidence": self.confidence,
            "num_batches": len(self.whole.noise.norms),
            "num_parameters": self.whole.noise.size,
            "whole": _layer_json(self.whole),
            "layers": [_layer_json(layer) for layer in self.layers],
        }


def diagnose(
    grad_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Batches,
    *,
    confidence: float = 0.9,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    r"""Says whether gradient noise is heavy-tailed, in which layers, and what to do.

    The noise of batch i is :math:`\varepsilon_i = g_i - \bar g`; see `collect_noise`.
    Two questions are asked of each layer, and of all layers as one:

    - *across iterations*: is the law of :math:`\lVert \varepsilon_i \rVert` heavy? Its
      null is the norm of Gaussian noise with the covariance that was measured;
    - *across coordinates*: are the entries of one :math:`\varepsilon_i` heavier than
      those of Gaussian noise with the same scale for each coordinate?

    A layer is *heavy* if the whole interval of its tail index is below 2, that is,
    without a finite variance, a power law fits, and the null has no such index; *not
    heavy* if the interval is above 2; *undecided* otherwise.

    The threshold is where the power law begins, by the number of order statistics that
    the estimate uses, but at most one batch, or coordinate, in ten is clipped. What
    that does to the gradients at hand is measured, and no clipping is recommended if
    it would have cost progress.

    Args:
      grad_fn: (params, batch) -> gradient, a pytree of anything ``np.asarray`` takes.
        Deterministic; it is called twice for each batch, as it is: compile it yourself.
      params: handed to ``grad_fn``, never looked at, so of any framework.
      batches: independent batches of one size, with a length, that can be gone through
        twice. Some hundreds: with too few there is no number, but the reason.
      confidence: of the intervals, in (0, 0.99], for each layer by itself. What is
        heavier than Gaussian noise is told from 199 samples of it, too few for more.
      seed: of sketches, bootstraps and nulls; 0 or more.
      progress: called with (done, of how many) as the work goes on.

    Returns:
      A `Diagnosis`. Layers whose noise is constant, no more than rounding, or has an
      inf or NaN are reported as such, without an index.

    Raises:
      ValueError: a number is outside its range, there are fewer than 2 batches, or the
        gradients have no entries or change their leaves.
      TypeError: ``batches`` cannot be gone through twice, or a gradient is not real.

    Example:
      >>> import numpy as np
      >>> batches = np.random.default_rng(0).standard_t(1.5, size=(400, 50))
      >>> found = diagnose(lambda w, x: {"w": w - x}, np.zeros(50), batches)
      >>> found.layers[0].verdict.label, found.recommendation.kind
      ('heavy', 'clip')
    """
    _base.check_range("confidence", confidence, 0.0, _MOST_CONFIDENT, low_open=True)
    steps = _Steps(progress)
    noise = collect_noise(
        grad_fn, params, batches, seed=seed, progress=steps.of_gradients
    )
    everything = (*noise.layers, noise.whole)
    nulls = _nulls(everything, seed)
    diagnosed = []
    for number, (part, null) in enumerate(zip(everything, nulls, strict=True), 1):
        diagnosed.append(diagnose_layer(part, noise.whole, null, confidence, seed))
        steps.of_layers(number, len(everything), noise.num_batches)
    *layers, whole = diagnosed
    return Diagnosis(
        layers=tuple(layers),
        whole=whole,
        verdict=_verdict(layers, whole),
        recommendation=recommend(layers, whole),
        confidence=confidence,
    )


class _Steps:
    """One count over gradients and layers; a layer takes about as long as a gradient.

    Until the gradients are there, the number of layers is not known.
    """

    def __init__(self, progress: Progress | None):
        self._progress = progress

    def of_gradients(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total + 1)

    def of_layers(self, done: int, total: int, num_batches: int) -> None:
        if self._progress is not None:
            self._progress(2 * num_batches + done, 2 * num_batches + total)


def _nulls(parts: tuple[LayerNoise, ...], seed: int) -> list[np.ndarray | None]:
    finite = [part for part in parts if not part.num_nonfinite]
    if not finite:
        return [None] * len(parts)
    norms = iter(gaussian_norms([p.gram for p in finite], _NUM_NULLS, seed))
    return [None if part.num_nonfinite else next(norms) for part in parts]


def _verdict(layers: list[LayerDiagnosis], whole: LayerDiagnosis) -> str:
    by_label = {
        label: [x.noise.name for x in layers if x.verdict.label == label]
        for label in ("heavy", "undecided", "not heavy", "unknown")
    }
    counts = [f"{len(names)} {label}" for label, names in by_label.items() if names]
    heavy = by_label["heavy"]
    if heavy:
        text = f"Heavy-tailed in {len(heavy)} of {len(layers)} layers: {_some(heavy)}."
        spiky = [x for x in layers if x.noise.name in heavy and x.is_spiky]
        if spiky:
            names = _some([layer.noise.name for layer in spiky])
            text += f" A few coordinates at a time spike in {names}."
    else:
        text = "No layer is found to be heavy-tailed."
    text += f" Layers: {', '.join(counts)}. All of them as one vector: "
    if whole.verdict.label == "unknown":
        return f"{text}{whole.verdict.text}."
    certainty = f"with a confidence of {whole.verdict.confidence:.1%}"
    return f"{text}{whole.verdict.label}, {certainty}; {whole.verdict.text}."


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _layer_json(layer: LayerDiagnosis) -> dict[str, Any]:
    noise = layer.noise
    return _plain(
        {
            "name": noise.name,
            "size": noise.size,
            "num_nonfinite": noise.num_nonfinite,
            "gradient_norm": noise.gradient_norm,
            "noise": math.sqrt(noise.variance),
            "noise_share": layer.noise_share,
            "signal_to_noise": noise.signal_to_noise,
            "largest_share_of_variance": _largest_share(noise),
            "verdict": dataclasses.asdict(layer.verdict),
            "norm_verdict": dataclasses.asdict(layer.norm_verdict),
            "entry_verdict": dataclasses.asdict(layer.entry_verdict),
            "coordinate_verdict": dataclasses.asdict(layer.coordinate_verdict),
            "norms": {
                method: dataclasses.asdict(estimate)
                for method, estimate in layer.norms.items()
            },
            "entries": layer.entries and dataclasses.asdict(layer.entries),
            "coordinates": layer.coordinates and dataclasses.asdict(layer.coordinates),
            "groups": [dataclasses.asdict(group) for group in layer.groups],
        }
    )


def _largest_share(noise: LayerNoise) -> float:
    """The largest draw's share of the sum of squares: near 0 if there is a variance."""
    squares = noise.norms**2
    return float(squares.max() / squares.sum()) if squares.any() else math.nan


def _plain(value: Any) -> Any:
    """Python's own numbers and containers; what is not finite is ``None``."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
