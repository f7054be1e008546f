"""What to do about the noise, as far as the evidence goes, with code to paste."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from optax_heavytail.diagnostics.noise._effect import Clip, ClipEffect, clip_effect
from optax_heavytail.diagnostics.noise._layer import LayerDiagnosis
from optax_heavytail.diagnostics.tails._tail_estimate import TailEstimate

_MOST_CLIPPED = 0.1  # of the batches, or of the coordinates
_LARGE_SHARE = 0.1  # of the noise's variance: a layer that decides for the whole
# Without the noise of layers with this share, a step gets 1 / (1 - 0.01) times as far.
_SMALL_SHARE = 0.01
_SMALL_GAIN = 1.01
_NAMED = 5  # layers that a sentence names


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What to do.

    Attributes:
      kind: "clip"; "none", save yourself the trouble; "undecided"; or "repair", find
        the inf or NaN first.
      text: in words, with the reason.
      clips: thresholds by layer; one for "all layers" is a global one.
      effect: what these do to the gradients that were measured.
      code: Python to paste, if there is something to do.
      more_batches: how many would decide, about.
    """

    kind: str
    text: str
    clips: dict[str, Clip] = dataclasses.field(default_factory=dict)
    effect: ClipEffect | None = None
    code: str | None = dataclasses.field(default=None, repr=False)
    more_batches: int | None = None


def recommend(
    layers: Sequence[LayerDiagnosis], whole: LayerDiagnosis
) -> Recommendation:
    """Clipping where the noise is heavy; nothing where it is not."""
    if whole.noise.num_nonfinite:
        return _repair(layers, whole)
    small = _small(layers)
    clips = _clips(layers, whole, small)
    found = _clip(clips, layers, whole) if clips else _no_clip(layers, whole)
    if not small:
        return found
    rest = (
        f" Heavy-tailed, but together under {100 * _SMALL_SHARE:g}% of the noise, "
        f"without which no step would get far further: {_listed(small)}."
    )
    return dataclasses.replace(found, text=found.text + rest)


def _no_clip(layers: Sequence[LayerDiagnosis], whole: LayerDiagnosis) -> Recommendation:
    open_ones = [
        layer
        for layer in (*layers, whole)
        if layer.verdict.label == "undecided" and layer.noise_share >= _LARGE_SHARE
    ]
    if whole.verdict.label == "unknown":
        return Recommendation(
            "undecided", f"No recommendation: {whole.verdict.text}.", more_batches=None
        )
    return _wait(open_ones) if open_ones else _nothing(layers, whole)


def _small(layers: Sequence[LayerDiagnosis]) -> list[str]:
    """Heavy layers whose noise hardly matters, nor would clipping them."""
    heavy = [layer for layer in layers if layer.verdict.label == "heavy"]
    small = [layer for layer in heavy if layer.noise_share < _SMALL_SHARE]
    if not small or sum(layer.noise_share for layer in small) >= _SMALL_SHARE:
        return []
    names = [layer.noise.name for layer in small]
    effect = clip_effect(
        [
            (layer.noise, _layer_clip(layer) if layer in small else None)
            for layer in layers
        ]
    )
    gain = effect.gain_high
    return [] if gain is not None and gain > _SMALL_GAIN else names


def _clips(
    layers: Sequence[LayerDiagnosis], whole: LayerDiagnosis, small: Sequence[str]
) -> dict[str, Clip]:
    """A threshold for each heavy layer that is not small, or one for all."""
    heavy = [layer for layer in layers if layer.verdict.label == "heavy"]
    judged = [layer for layer in layers if layer.verdict.label != "unknown"]
    large = [layer for layer in heavy if layer.noise.name not in small]
    # Where single entries spike, a clip of the norm would shrink all the others.
    is_everywhere = 2 * len(heavy) >= len(judged) and not any(
        layer.is_spiky for layer in large
    )
    if whole.verdict.label == "heavy" and (is_everywhere or not large):
        return {whole.noise.name: _norm_clip(whole)}
    clips = {layer.noise.name: _layer_clip(layer) for layer in large}
    # Where most entries are 0, so is the quantile: that is no threshold.
    return {name: clip for name, clip in clips.items() if clip.threshold > 0}


def _layer_clip(layer: LayerDiagnosis) -> Clip:
    return _coordinate_clip(layer) if layer.is_spiky else _norm_clip(layer)


def _norm_clip(layer: LayerDiagnosis) -> Clip:
    """Where the power law of the noise begins: what is beyond it is clipped."""
    estimate = layer.norms["hill"]
    return Clip("norm", _tail_start(layer.noise.gradient_norms, estimate))


def _coordinate_clip(layer: LayerDiagnosis) -> Clip:
    noise = layer.noise
    raw = np.abs(noise.coordinates + noise.mean_coordinates).reshape(-1)
    return Clip("coordinate", _tail_start(raw, layer.entries))


def _tail_start(sizes: np.ndarray, estimate: TailEstimate | None) -> float:
    assert estimate is not None  # the layer is heavy, so there is one
    share = min((estimate.k or 0) / estimate.num_samples, _MOST_CLIPPED)
    threshold = float(np.quantile(sizes, 1 - share))
    # Few digits, as no quantile is precise; upwards, and more where they matter.
    for digits in range(3, 17):
        rounded = _rounded_up(threshold, digits)
        if np.count_nonzero((sizes > threshold) & (sizes <= rounded)) <= 1:
            return rounded
    return threshold


def _rounded_up(value: float, digits: int) -> float:
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return float(f"{math.ceil(value / unit) * unit:.{digits}g}")


def _clip(
    clips: dict[str, Clip], layers: Sequence[LayerDiagnosis], whole: LayerDiagnosis
) -> Recommendation:
    name = whole.noise.name
    parts = (
        [(whole.noise, clips[name])]
        if name in clips
        else [(layer.noise, clips.get(layer.noise.name)) for layer in layers]
    )
    effect = clip_effect(parts)
    where = _where(clips, layers, whole)
    measured = _effect_in_words(effect, clips)
    if effect.gain_high is not None and effect.gain_high < 1:
        return Recommendation(
            "none",
            f"The noise is heavy-tailed {where}, yet clipping where its tail begins "
            f"would have cost more than it saves: {measured}. Leave the gradients as "
            "they are, and watch for spikes.",
            effect=effect,
        )
    text = (
        f"Clip {where}, where the power law of the noise begins. "
        f"{measured[0].upper()}{measured[1:]}."
    )
    return Recommendation("clip", text, clips, effect, code(clips, name))


def _where(
    clips: dict[str, Clip], layers: Sequence[LayerDiagnosis], whole: LayerDiagnosis
) -> str:
    if whole.noise.name in clips:
        return "the norm of the whole gradient"
    scopes = {"norm": "the norm of", "coordinate": "the single coordinates of"}
    parts = []
    for scope, words in scopes.items():
        names = [name for name, clip in clips.items() if clip.scope == scope]
        if names:
            parts.append(f"{words} {_listed(names)}")
    return f"{' and '.join(parts)} ({len(clips)} of {len(layers)} layers)"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _effect_in_words(effect: ClipEffect, clips: dict[str, Clip]) -> str:
    scopes = {"norm": "batches", "coordinate": "coordinates"}
    of = " or ".join(sorted({scopes[clip.scope] for clip in clips.values()}))
    direction = (
        f"on the batches measured it acts on up to {100 * effect.clipped:.2g}% of the "
        f"{of}, and the mean of the clipped gradients has a cosine of "
        f"{effect.cosine:.3f} with that of the raw ones"
    )
    if effect.gain is None:
        return f"{direction}; whether that is progress is lost in the noise"
    return (
        f"{direction}; by the descent lemma a step gets {effect.gain:.2f} times as far "
        f"(90% interval {effect.gain_low:.2f} to {effect.gain_high:.2f})"
    )


def _repair(layers: Sequence[LayerDiagnosis], whole: LayerDiagnosis) -> Recommendation:
    bad = [layer.noise.name for layer in layers if layer.noise.num_nonfinite]
    count, of = whole.noise.num_nonfinite, len(whole.noise.norms)
    return Recommendation(
        "repair",
        f"{count} of {of} batches have an inf or NaN in {_listed(bad)}. Find its cause "
        "first: no threshold repairs it. `skip_if_unsafe` keeps such steps away from "
        "the parameters meanwhile.",
        code=_HEAD + "\noptimizer = oht.skip_if_unsafe(\n    optax.adamw(1e-3),  "
        "# your optimizer\n)\n",
    )


def _wait(open_ones: Sequence[LayerDiagnosis]) -> Recommendation:
    wanted = [layer.verdict.more_batches for layer in open_ones]
    known = [more for more in wanted if more is not None]
    more = max(known) if known else None
    decide = (
        f"About {more:,} more batches would decide"
        if more is not None
        else "The index is too close to 2 for any affordable number of batches"
    )
    names = _listed([layer.noise.name for layer in open_ones])
    return Recommendation(
        "undecided",
        f"Undecided for {names}. {decide}. Until then clip only if you see spikes in "
        "the loss.",
        more_batches=more,
    )


def _nothing(layers: Sequence[LayerDiagnosis], whole: LayerDiagnosis) -> Recommendation:
    text = "Save yourself the trouble: no layer asks for clipping."
    rest = [layer.noise.name for layer in layers if layer.verdict.label == "undecided"]
    if rest:
        text += (
            f" Undecided, but under {100 * _LARGE_SHARE:g}% of the noise each: "
            f"{_listed(rest)}."
        )
    if whole.norms["hill"].heavier_than_null:
        text += (
            " The noise is heavier than Gaussian noise all the same, so now and then a "
            "gradient will be large; its variance is finite, and averages tame it."
        )
    return Recommendation("none", text)


_HEAD = """\
import optax

import optax_heavytail as oht
"""


def code(clips: dict[str, Clip], whole: str) -> str:
    """Python that puts these clips in front of an optimizer."""
    if whole in clips:
        return (
            f"{_HEAD}\noptimizer = optax.chain(\n"
            f"    {_call(clips[whole])},\n    optax.adamw(1e-3),  # your optimizer\n)\n"
        )
    table = "".join(f"    {name!r}: {_call(clip)},\n" for name, clip in clips.items())
    return f"""\
import jax
{_HEAD}
CLIPS = {{
{table}}}


def layer(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator="/") or "parameters"
    return name if name in CLIPS else "other layers"


clip = optax.partition(
    {{**CLIPS, "other layers": optax.identity()}},
    lambda params: jax.tree_util.tree_map_with_path(layer, params),
)
optimizer = optax.chain(
    clip,
    optax.adamw(1e-3),  # your optimizer
)
"""


def _call(clip: Clip) -> str:
    function = {"norm": "clip_by_norm", "coordinate": "clip_by_value"}[clip.scope]
    return f"oht.{function}({clip.threshold!r})"
