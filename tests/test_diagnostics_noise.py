"""Noise and diagnosis on gradients whose noise was planted, with known answers."""

import dataclasses
import json
import math
import textwrap
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_heavytail import diagnostics
from optax_heavytail.diagnostics import TailEstimate
from optax_heavytail.diagnostics.noise import _entries
from optax_heavytail.diagnostics.noise._effect import Clip, clip_effect
from optax_heavytail.diagnostics.noise._noise import gaussian_norms
from optax_heavytail.diagnostics.noise._recommend import code, recommend
from optax_heavytail.diagnostics.noise._verdict import judge


def identity(params, batch):
    return jax.tree.map(lambda w, x: w + x, params, batch)


# Noise


def draws(n=40, d=30, seed=0):
    return list(np.random.default_rng(seed).standard_normal((n, d)))


def collected(batches, params=1.0, **kwargs):
    return diagnostics.collect_noise(
        lambda w, x: {"w": w + x}, params, batches, **kwargs
    )


def test_noise_is_what_numpy_makes_of_all_gradients_at_once():
    batches = draws()
    layer = collected(batches).layers[0]
    gradients = np.stack(batches) + 1.0
    mean = gradients.mean(0)
    noise = gradients - mean
    for found, expected in (
        (layer.norms, np.linalg.norm(noise, axis=1)),
        (layer.gradient_norms, np.linalg.norm(gradients, axis=1)),
        (layer.mean_products, noise @ mean),
        (layer.gram, noise @ noise.T),
        (layer.gradient_norm, np.linalg.norm(mean)),
        (layer.variance, np.sum(np.var(gradients, axis=0, ddof=1))),
        (layer.empirical_variance()[-1], np.mean(np.sum(noise**2, axis=1))),
    ):
        # Sums in float64, of sketches stored in float32.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
    signal = np.sum(mean**2) - layer.variance / len(batches)
    assert layer.signal_to_noise == pytest.approx(math.sqrt(signal / layer.variance))
    assert sorted(layer.mean_coordinates) == pytest.approx(sorted(mean))


def test_products_of_large_layers_are_estimated_from_sketches():
    batches = draws(n=20, d=50_000)
    layer = collected(batches).layers[0]
    noise = np.stack(batches) - np.mean(batches, axis=0)
    exact = noise @ noise.T
    np.testing.assert_allclose(np.diag(layer.gram), np.diag(exact), rtol=1e-9)
    errors = (layer.gram - exact) / np.diag(exact).mean()
    # Each has a standard deviation of 1 / sqrt(2048) = 2.2%; 190 of them are here.
    assert 0.012 < errors[np.triu_indices(20, 1)].std() < 0.035
    assert layer.coordinates.shape == (20, 256)
    columns = {tuple(column) for column in np.round(noise.T, 9).tolist()}
    assert {tuple(c) for c in np.round(layer.coordinates.T, 9).tolist()} <= columns


def test_coordinates_that_move_together_do_not_add_up_in_sketches():
    sizes = np.array([1.0, -2.0, 3.0, -2.0])
    layer = collected([size * np.ones(50_000) for size in sizes]).layers[0]
    # A sum over 2,048 buckets of squared random walks: known to 3%.
    np.testing.assert_allclose(layer.gram, 50_000 * np.outer(sizes, sizes), rtol=0.15)


def test_the_whole_is_all_layers_as_one_vector():
    batches = [{"a": x[:20], "b": {"c": x[20:]}} for x in draws()]
    noise = diagnostics.collect_noise(identity, {"a": 0.0, "b": {"c": 0.0}}, batches)
    assert [layer.name for layer in noise.layers] == ["a", "b/c"]
    alone = collected(draws(), 0.0).layers[0]
    for name in ("norms", "gradient_norms", "gradient_norm", "gram", "mean_products"):
        np.testing.assert_allclose(
            getattr(noise.whole, name), getattr(alone, name), rtol=1e-5, atol=1e-5
        )
    assert noise.whole.size == 30
    assert noise.num_batches == 40


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30])
def test_no_scale_is_too_small_or_too_large(scale):
    batches = draws()
    plain = collected(batches, 0.0).layers[0]
    scaled = collected([scale * x for x in batches], 0.0).layers[0]
    np.testing.assert_allclose(scaled.norms, scale * plain.norms, rtol=1e-9)
    np.testing.assert_allclose(scaled.coordinates, scale * plain.coordinates, rtol=1e-9)


class Tensor:
    """Of another framework: no pytree, but NumPy can read it."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._values, dtype)


def test_gradients_may_be_of_any_framework():
    batches = draws()
    expected = collected(batches, 0.0).layers[0].norms

    def grad_fn(params, batch):
        assert params == "never looked at"
        return {"w": Tensor(batch)}

    noise = diagnostics.collect_noise(grad_fn, "never looked at", batches)
    np.testing.assert_array_equal(noise.layers[0].norms, expected)
    narrow = diagnostics.collect_noise(
        lambda w, x: jnp.asarray(x, jnp.bfloat16), None, batches
    )
    assert narrow.layers[0].name == "parameters"
    # bfloat16 keeps 8 bits.
    np.testing.assert_allclose(narrow.layers[0].norms, expected, rtol=0.01)


def test_inf_and_nan_are_counted_in_their_layer():
    batches = [{"a": x.copy(), "b": x} for x in draws()]
    batches[3]["a"][0], batches[9]["a"][5] = np.inf, np.nan
    noise = diagnostics.collect_noise(identity, {"a": 0.0, "b": 0.0}, batches)
    assert [layer.num_nonfinite for layer in noise.layers] == [2, 0]
    assert noise.whole.num_nonfinite == 2
    assert np.isfinite(noise.layers[1].norms).all()
    assert np.isnan(noise.layers[0].gram).all()


def test_progress_counts_every_gradient():
    seen = []
    collected(draws(n=5), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        (iter([1.0, 2.0]), TypeError, "length"),
        ([np.ones(3)], ValueError, "at least 2 batches are needed, got 1"),
        ([np.ones(3), np.ones(4)], ValueError, "batch 1 has other leaves: .'w'"),
        ([np.array(["a"]), np.array(["b"])], TypeError, "must be real"),
    ],
)
def test_bad_batches_are_refused(batches, error, words):
    with pytest.raises(error, match=words):
        diagnostics.collect_noise(lambda w, x: {"w": x}, None, batches)


@pytest.mark.parametrize(
    ("gradients", "words"),
    [
        ([{}, {}], "without entries; None is no leaf"),
        ([{"w": None}, {"w": None}], "without entries; None is no leaf"),
        ([{"w": np.zeros((0, 3))}] * 2, "without entries"),
        ([None, None], "grad_fn returned None and no gradient"),
        ([{"w": 1.0, "b": 2.0}, {"w": 1.0, "b": None}], r"\['b'\]; None is no leaf"),
    ],
)
def test_a_gradient_without_entries_is_refused(gradients, words):
    with pytest.raises(ValueError, match=words):
        diagnostics.collect_noise(lambda w, x: x, None, gradients)


def test_what_has_no_gradient_or_no_entries_is_nothing():
    batches = [{"a": x, "b": None, "c": np.zeros((0, 3))} for x in draws(n=12)]
    found = diagnostics.diagnose(lambda w, x: x, None, batches)
    assert [layer.noise.name for layer in found.layers] == ["a", "c"]
    assert found.layers[1].verdict.text.startswith("constant: ")
    assert found.whole.noise.size == 30


def test_gaussian_norms_have_the_moments_of_the_covariance():
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((50, 8)) * np.array([5.0, 3, 1, 1, 1, 1, 1, 1])
    centered = samples - samples.mean(0)
    (norms,) = gaussian_norms([centered @ centered.T], 400, 0)
    covariance = centered.T @ centered / len(samples)
    assert norms.shape == (400, 50)
    # 20,000 draws: errors of the mean and of the variance are below 2% and 5%.
    assert np.mean(norms**2) == pytest.approx(np.trace(covariance), rel=0.03)
    expected = 2 * np.sum(np.linalg.eigvalsh(covariance) ** 2)
    assert np.var(norms**2) == pytest.approx(expected, rel=0.1)


# The effect of clipping


def of_clipping(clip, batches, params):
    layer = collected(batches, params).layers[0]
    return clip_effect([(layer, clip)])


@pytest.mark.parametrize("scope", ["norm", "coordinate"])
def test_the_effect_is_that_of_clipping_every_gradient(scope):
    batches = draws(n=60, d=20)
    raw = np.stack(batches) + 0.5
    clip = Clip(scope, 4.5 if scope == "norm" else 1.0)
    if scope == "norm":
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        cut, clipped = raw * np.minimum(1, 4.5 / norms), np.mean(norms > 4.5)
    else:
        cut, clipped = np.clip(raw, -1, 1), np.mean(np.abs(raw) > 1)

    def progress(u):
        others = (raw.sum(0) - raw) / (len(raw) - 1)
        signal = np.mean(np.sum(u * others, axis=1))
        return signal**2 / np.mean(np.sum(u**2, axis=1))

    effect = of_clipping(clip, batches, 0.5)
    assert 0.1 < effect.clipped < 0.9
    assert effect.clipped == pytest.approx(clipped)
    assert effect.gain == pytest.approx(progress(cut) / progress(raw), rel=1e-4)
    assert effect.gain_low < effect.gain < effect.gain_high
    means = cut.mean(0), raw.mean(0)
    cosine = means[0] @ means[1] / np.prod([np.linalg.norm(m) for m in means])
    assert effect.cosine == pytest.approx(cosine, rel=1e-4)


def test_a_threshold_beyond_all_gradients_changes_nothing():
    effect = of_clipping(Clip("norm", 1e9), draws(n=60), 0.5)
    assert (effect.clipped, effect.gain) == (0.0, pytest.approx(1.0))
    assert effect.cosine == pytest.approx(1.0)


def test_a_gain_without_a_signal_is_not_claimed():
    effect = of_clipping(Clip("norm", 1.0), draws(n=60), 0.0)
    assert effect.gain is None or effect.gain_low < 1 < effect.gain_high


# Verdicts


def estimate(index, low, high, **changes):
    values = {
        "null_low": 4.0,
        "null_high": 6.0,
        "null_p_value": 0.005 if index < 4 else 0.5,
        "p_value": 0.4,
    }
    return TailEstimate(
        "iterations", "hill", 0.9, 20, 200, index, low, high, **{**values, **changes}
    )


@pytest.mark.parametrize(
    ("found", "label", "words"),
    [
        (estimate(1.4, 1.1, 1.8), "heavy", "below 2"),
        (estimate(5.0, 4.1, 6.0), "not heavy", "as Gaussian noise would have it"),
        (estimate(3.0, 2.4, 3.8), "not heavy", "heavier than Gaussian noise"),
        (estimate(1.9, 1.5, 2.4), "undecided", "both sides of 2"),
        (estimate(1.4, 1.1, 1.8, p_value=0.01), "undecided", "no power law fits"),
        (estimate(1.4, 1.1, 1.8, null_p_value=0.3), "undecided", "tell them apart"),
    ],
)
def test_verdicts(found, label, words):
    verdict = judge(found, 200)
    assert verdict.label == label
    assert words in verdict.text
    assert verdict.change
    assert (verdict.more_batches is None) == (label != "undecided")
    if label != "undecided":
        assert verdict.confidence >= 0.95


def test_more_batches_are_as_many_as_bring_2_outside_the_interval():
    index, error = 1.8, 0.1
    z = 1.6449
    ends = (index * math.exp(sign * z * error) for sign in (-1, 1))
    verdict = judge(estimate(index, *ends), 200)
    narrower = error * math.sqrt(200 / (200 + verdict.more_batches))
    assert index * math.exp(z * narrower) == pytest.approx(2, rel=2e-3)
    # The normal probability of ln(1.8) + 0.1 x being below ln(2).
    assert verdict.confidence == pytest.approx(0.854, abs=0.001)


def test_an_index_next_to_2_is_called_borderline():
    verdict = judge(estimate(1.99, 1.6, 2.5), 200)
    assert verdict.more_batches is None
    assert "borderline" in verdict.change


def test_no_estimate_is_no_verdict():
    blank = TailEstimate("iterations", "hill", 0.9, 10, 50, reason="50 are too few.")
    verdict = judge(blank, 50)
    assert (verdict.label, verdict.confidence) == ("unknown", None)
    assert verdict.text == "50 are too few"
    for low, high in ((1.5, math.inf), (math.nan, math.nan), (2.5, math.inf)):
        verdict = judge(estimate(1.8, low, high), 200)
        assert (verdict.label, verdict.confidence) == ("unknown", None)
        assert "1.80, but its interval" in verdict.text
    few = _entries.across_iterations(student((200, 3)), 0.9, 0)
    assert few.reason == "3 coordinates are too few: 1 or at least 8 are needed."


# Planted noise


def planted(n=300, seed=0):
    """Gaussian noise; power laws in each coordinate, and in batches as a whole."""
    rng = np.random.default_rng(seed)

    def batch():
        size = rng.pareto(1.0) + 1
        return {
            "burst": size * rng.standard_normal(120),
            "constant": np.zeros(4),
            "gauss": 3 * rng.standard_normal(120),
            "spiky": {"w": rng.standard_t(1.5, size=120)},
        }

    return [batch() for _ in range(n)]


PARAMS = {"burst": 0.5, "constant": 1.0, "gauss": 0.5, "spiky": {"w": 0.5}}


@pytest.fixture(scope="module")
def diagnosis():
    return diagnostics.diagnose(identity, PARAMS, planted())


def layer_of(diagnosis, name):
    (found,) = (layer for layer in diagnosis.layers if layer.noise.name == name)
    return found


@pytest.mark.nightly
def test_the_verdict_names_the_right_layers(diagnosis):
    labels = {layer.noise.name: layer.verdict.label for layer in diagnosis.layers}
    assert labels == {
        "burst": "heavy",
        "constant": "unknown",
        "gauss": "not heavy",
        "spiky/w": "heavy",
    }
    assert layer_of(diagnosis, "constant").verdict.text.startswith("constant: ")
    assert "Heavy-tailed in 2 of 4 layers: burst, spiky/w." in diagnosis.verdict
    assert "gauss" not in diagnosis.verdict


def test_across_iterations_and_across_coordinates_are_told_apart(diagnosis):
    burst, spiky = (layer_of(diagnosis, name) for name in ("burst", "spiky/w"))
    assert spiky.is_spiky
    assert not burst.is_spiky
    assert burst.entries.index < 2
    # Within a batch it is Gaussian: as large an index as that of its null.
    assert burst.coordinates.index > burst.coordinates.null_low
    assert spiky.coordinates.heavier_than_null
    assert (spiky.entries.over, spiky.coordinates.over) == ("iterations", "coordinates")


def test_the_indices_are_the_planted_ones(diagnosis):
    assert layer_of(diagnosis, "spiky/w").entries.low < 1.5
    assert layer_of(diagnosis, "spiky/w").entries.high > 1.5
    burst = layer_of(diagnosis, "burst").norms["hill"]
    assert burst.low < 1.0 < burst.high
    groups = layer_of(diagnosis, "gauss").groups
    for group in groups:
        assert group.index == pytest.approx(group.gaussian_index, rel=0.15)
    assert sorted(groups, key=lambda group: group.scale) == list(groups)


def test_the_recommendation_clips_these_layers_and_no_others(diagnosis):
    found = diagnosis.recommendation
    assert found.kind == "clip"
    assert {name: clip.scope for name, clip in found.clips.items()} == {
        "burst": "norm",
        "spiky/w": "coordinate",
    }
    norms = layer_of(diagnosis, "burst").noise.gradient_norms
    # A tenth of the 300 batches, up to the rounding of the threshold.
    assert 27 <= np.sum(norms > found.clips["burst"].threshold) <= 33
    assert found.effect.gain_low > 1
    assert "burst" in found.text


def test_the_pasted_code_clips_as_recommended(diagnosis):
    namespace = {}
    exec(diagnosis.recommendation.code, namespace)
    batch = jax.tree.map(lambda x: 1e3 * x, planted(1)[0])
    grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    optimizer, clip = namespace["optimizer"], namespace["clip"]
    optimizer.update(grads, optimizer.init(grads), grads)
    updates, _ = clip.update(grads, clip.init(grads))
    clips = diagnosis.recommendation.clips
    np.testing.assert_array_equal(updates["gauss"], grads["gauss"])
    norm = float(jnp.linalg.norm(updates["burst"]))
    assert norm == pytest.approx(clips["burst"].threshold, rel=1e-5)
    largest = float(jnp.max(jnp.abs(updates["spiky"]["w"])))
    assert largest == pytest.approx(clips["spiky/w"].threshold)


def test_code_for_all_layers_at_once_runs():
    namespace = {}
    exec(code({"all layers": Clip("norm", 0.25)}, "all layers"), namespace)
    params = {"w": jnp.ones(3)}
    optimizer = namespace["optimizer"]
    optimizer.update(params, optimizer.init(params), params)
    assert "oht.clip_by_norm(0.25)" in code({"a": Clip("norm", 0.25)}, "all layers")


def test_the_json_has_no_nan_and_says_the_same(diagnosis):
    found = json.loads(json.dumps(diagnosis.to_json(), allow_nan=False))
    assert found["verdict"] == diagnosis.verdict
    assert found["recommendation"]["clips"]["burst"]["scope"] == "norm"
    assert [layer["name"] for layer in found["layers"]] == [
        layer.noise.name for layer in diagnosis.layers
    ]
    spiky = found["layers"][3]
    index = layer_of(diagnosis, "spiky/w").entries.index
    assert spiky["entries"]["index"] == pytest.approx(index)
    assert found["whole"]["norms"].keys() >= {"hill", "log_moment"}


def test_printed_it_is_a_page(diagnosis):
    text = str(diagnosis)
    assert len(text) < 4000
    code = diagnosis.recommendation.code.splitlines()
    assert max(map(len, set(text.splitlines()) - {f"    {x}" for x in code})) <= 88
    for sentence in (diagnosis.verdict, diagnosis.recommendation.text):
        assert sentence in " ".join(text.split())
    # The code comes out as it went in.
    assert textwrap.indent("\n".join(code), "    ", lambda line: line.strip()) in text
    rows = text.partition("  layer\n")[2].splitlines()
    names = [layer.noise.name for layer in diagnosis.layers]
    assert sorted(row.split()[-1] for row in rows[: len(names)]) == sorted(names)
    shares = [float(row.split("%")[0].split()[-1]) for row in rows[: len(names)]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert rows[len(names)].endswith("all layers")


def test_a_page_has_so_many_layers():
    batches = [
        {f"layer{i:02}": x[i : i + 1] * 2.0**-i for i in range(30)} for x in draws()
    ]
    found = diagnostics.diagnose(lambda _, batch: batch, None, batches)
    text = str(found)
    assert "layer19" in text
    assert "layer20" not in text
    assert "and 10 more with less noise" in text
    assert len(repr(found)) < 4000
    assert "array(" not in repr(found.whole) + repr(found.layers[0])


def test_gaussian_noise_needs_nothing():
    batches = [{"gauss": x["gauss"]} for x in planted(seed=1)]
    found = diagnostics.diagnose(identity, {"gauss": 0.5}, batches)
    assert found.recommendation.kind == "none"
    assert found.recommendation.code is None
    assert "Save yourself the trouble" in found.recommendation.text
    assert found.verdict.startswith("No layer is found to be heavy-tailed.")


def test_heavy_everywhere_is_clipped_by_one_norm():
    batches = [{"burst": x["burst"]} for x in planted(seed=2)]
    found = diagnostics.diagnose(identity, {"burst": 0.5}, batches)
    assert list(found.recommendation.clips) == ["all layers"]
    assert "the norm of the whole gradient" in found.recommendation.text


def test_clipping_that_would_cost_is_not_recommended():
    """The signal comes in rare large batches, and in no other."""
    rng, direction = np.random.default_rng(0), np.eye(120)[0]

    def batch(i):
        large = 3 * (rng.pareto(1.5) + 4) * direction if i % 12 == 0 else 0.0
        return {"w": large + 0.3 * rng.standard_normal(120)}

    batches = [batch(i) for i in range(300)]
    found = diagnostics.diagnose(identity, {"w": 0.0}, batches)
    heavy = dataclasses.replace(found.whole.verdict, label="heavy")
    layer, whole = (
        dataclasses.replace(part, verdict=heavy)
        for part in (found.layers[0], found.whole)
    )
    advice = recommend([layer], whole)
    assert advice.effect.gain_high < 1
    assert (advice.kind, advice.code, advice.clips) == ("none", None, {})
    assert "would have cost more than it saves" in advice.text


def times(scale, layer, share):
    """The layer with noise and gradients of another size."""
    noise = layer.noise
    values = {
        name: scale * getattr(noise, name)
        for name in ("gradient_norm", "norms", "gradient_norms", "coordinates")
    }
    values |= {
        name: scale**2 * getattr(noise, name) for name in ("gram", "mean_products")
    }
    values["mean_coordinates"] = scale * noise.mean_coordinates
    return dataclasses.replace(
        layer, noise=dataclasses.replace(noise, **values), noise_share=share
    )


def test_a_layer_that_hardly_matters_is_not_clipped(diagnosis):
    burst, gauss = (layer_of(diagnosis, name) for name in ("burst", "gauss"))
    light = dataclasses.replace(diagnosis.whole, verdict=gauss.verdict)
    found = recommend([times(1e-4, burst, 1e-5), gauss], light)
    assert (found.kind, found.clips) == ("none", {})
    assert "together under 1% of the noise" in found.text
    assert found.text.endswith("further: burst.")
    # With a share that matters; of several together; by what it gains.
    for layers in (
        [times(1e-4, burst, 0.011), gauss],
        [times(1e-4, burst, 0.006), times(1e-4, burst, 0.006), gauss],
        [times(1.0, burst, 1e-5), gauss],
    ):
        assert recommend(layers, light).clips.keys() == {"burst"}
    # The whole is heavy, and no layer that matters: all are clipped at once.
    advice = recommend([times(1e-4, burst, 1e-5), gauss, gauss], diagnosis.whole)
    assert advice.clips.keys() == {"all layers"}


def test_too_few_batches_give_the_reason():
    found = diagnostics.diagnose(identity, PARAMS, planted(40))
    assert {layer.verdict.label for layer in found.layers} == {"unknown"}
    assert "40 samples are too few" in layer_of(found, "gauss").verdict.text
    assert found.whole.norms["hill"].index is None
    assert found.recommendation.kind == "undecided"
    assert "too few" in found.recommendation.text
    json.dumps(found.to_json(), allow_nan=False)


def test_inf_is_to_be_repaired_first():
    batches = planted(30)
    batches[4]["gauss"][0] = np.inf
    found = diagnostics.diagnose(identity, PARAMS, batches)
    assert found.recommendation.kind == "repair"
    assert "1 of 30 batches have an inf or NaN in gauss" in found.recommendation.text
    assert layer_of(found, "gauss").verdict.text.startswith("1 of 30 batches")
    namespace = {}
    exec(found.recommendation.code, namespace)
    namespace["optimizer"].init({"w": jnp.ones(2)})
    json.dumps(found.to_json(), allow_nan=False)


def test_noise_that_is_rounding_is_called_so():
    batches = [{"a": 1e-8 * x[:5], "b": x} for x in draws()]
    found = diagnostics.diagnose(identity, {"a": 0.0, "b": 0.0}, batches)
    assert layer_of(found, "a").verdict.text.startswith("constant up to rounding")
    assert "too few" in layer_of(found, "b").verdict.text


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e-6), (jnp.bfloat16, 0.05)])
def test_noise_of_the_whole_that_is_rounding_is_called_so(dtype, size):
    """As of the same gradient, summed in another order for each batch."""
    gradient, room = np.linspace(1, 2, 30), 1e-7 * np.ones(3)

    def found(size):
        noise = size * np.linalg.norm(gradient) / np.sqrt(30)
        batches = [
            {"w": (gradient + noise * x).astype(dtype), "b": room.astype(dtype)}
            for x in draws()
        ]
        return diagnostics.diagnose(identity, {"w": 0, "b": 0}, batches)

    rounded = found(size)
    for layer in (rounded.layers[1], rounded.whole):
        assert layer.verdict.text.startswith("constant up to rounding: the noise of")
    assert "constant up to rounding" in rounded.recommendation.text
    assert "too few" in found(10 * size).whole.verdict.text


@pytest.mark.parametrize("confidence", [0.0, 0.995, 1.0])
def test_the_confidence_must_be_one_that_the_nulls_allow(confidence):
    with pytest.raises(ValueError, match=r"confidence must be in \(0.0, 0.99\], got"):
        diagnostics.diagnose(identity, PARAMS, planted(2), confidence=confidence)


@pytest.mark.nightly
def test_at_the_highest_confidence_entries_can_still_be_heavier():
    scaled = _entries.scaled(student((200, 12)))
    found = _entries.across_iterations(scaled, 0.99, 0)
    assert found.index < found.null_low
    assert found.heavier_than_null
    assert len(_entries._nulls(scaled, 0.99, 0, lambda draws: draws)) == 199
    text = judge(dataclasses.replace(found, confidence=0.975), 200).text
    assert "97.5% interval" in text


def student(shape, df=1.2, seed=0):
    return np.random.default_rng(seed).standard_t(df, shape)


def test_the_nulls_of_entries_take_no_square_of_the_batches():
    scaled = student((2000, 4))
    tracemalloc.start()
    try:
        found = _entries._nulls(scaled, 0.9, 0, lambda draws: draws[:, ::100])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.shape == (49, 20, 4)
    assert peak < 8e6  # 49 x 2,000 x 4 and less; 2,000 x 2,000 are 16e6


def test_the_nulls_of_entries_have_the_covariance_of_the_ranks():
    shape = np.random.default_rng(1).standard_normal((400, 3))
    shape[:, 1] = 0.6 * shape[:, 0] + 0.8 * shape[:, 1]
    heavy = np.sinh(3 * shape)  # has the same ranks
    draws = np.concatenate(_entries._nulls(heavy, 0.9, 0, lambda draws: draws))
    # 20,000 draws: 0.01; scores of 400 samples have a correlation known to 0.03.
    np.testing.assert_allclose(np.cov(draws.T), np.corrcoef(shape.T), atol=0.06)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("index", "coverage", "below"),
    [(1.5, 0.88, 0.73), (2.0, 0.86, 0.13), (3.0, 0.58, 0)],
)
def test_a_tenth_decides_at_the_price_that_the_guide_names(index, coverage, below):
    """Of 150 sets of 512 Student-t numbers, as docs/guide/diagnosis.md has it."""
    rng, held, decided = np.random.default_rng(1), 0, 0
    for seed in range(150):
        found = diagnostics.estimate_tail(
            rng.standard_t(index, 512),
            over="iterations",
            k=_entries.tail_size(512),
            num_bootstrap=20,
            num_null=20,
            seed=seed,
        )
        held += found.low <= index <= found.high
        decided += found.high < 2
    # Four standard errors of the difference of two shares of 150.
    assert held / 150 == pytest.approx(coverage, abs=0.15)
    assert decided / 150 == pytest.approx(below, abs=0.15)


# What real gradients are like, and tests were not


def test_a_coordinate_threshold_beyond_all_gradients_changes_nothing():
    """Of scales so uneven that the coordinates that are kept are no fair sample."""
    rng = np.random.default_rng(0)
    scales = np.exp(2 * rng.normal(size=2000))
    batches = list(scales * (0.3 + rng.normal(size=(60, 2000))))
    effect = of_clipping(Clip("coordinate", 1e30), batches, 0.0)
    assert effect.cosine == pytest.approx(1)
    assert [effect.gain, effect.gain_low, effect.gain_high] == pytest.approx([1] * 3)


def test_the_pasted_code_clips_a_lone_array():
    batches = list(np.random.default_rng(0).standard_t(1.2, size=(300, 50)))
    found = diagnostics.diagnose(lambda w, x: x, None, batches)
    namespace = {}
    exec(found.recommendation.code, namespace)
    params = jnp.zeros(50)
    optimizer = namespace["clip"] if "clip" in namespace else namespace["optimizer"]
    state = optimizer.init(params)
    updates, _ = optimizer.update(jnp.full(50, 1e6), state, params)
    assert jnp.max(jnp.abs(updates)) < 1e3


@pytest.mark.nightly
def test_a_coordinate_that_moved_once_leaves_the_verdict_of_the_others():
    rows = np.random.default_rng(0).standard_t(1.5, size=(400, 40))
    rows[:, 7] = 0
    rows[123, 7] = 3
    layer = diagnostics.diagnose(lambda w, x: {"w": x}, None, list(rows)).layers[0]
    assert layer.verdict.label == "heavy"
    assert np.isfinite([layer.entries.low, layer.entries.high]).all()


def test_two_leaves_of_one_name_are_refused():
    batches = [{"a/b": np.ones(3) * i, "a": {"b": np.ones(5) * i}} for i in range(3)]
    with pytest.raises(ValueError, match="two leaves of the gradient are called 'a/b'"):
        diagnostics.collect_noise(lambda w, x: x, None, batches)


class Once:
    """Batches of which the second time there are fewer, or others."""

    def __init__(self, rows, length, again):
        self.passes, self.length = [rows, again], length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(self.passes.pop(0))


@pytest.mark.parametrize(
    ("length", "again", "words"),
    [
        (20, slice(0, 0), "20 of them: there were 0"),
        (30, slice(None), "30 of them: there were 20"),
        (10, slice(None), "10 of them: there were 11 or more"),
        (20, slice(None, None, -1), "batch 0 has another gradient of w the second"),
    ],
)
def test_what_is_not_the_same_twice_is_refused(length, again, words):
    rows = [{"w": row} for row in np.random.default_rng(0).normal(size=(20, 5))]
    with pytest.raises(ValueError, match=words):
        diagnostics.collect_noise(lambda w, x: x, None, Once(rows, length, rows[again]))


@pytest.mark.nightly
def test_no_threshold_is_0():
    rng = np.random.default_rng(0)
    there = (rng.random(256) < 0.45) & (rng.random((400, 256)) < 0.18)
    rows = rng.standard_t(1.2, size=(400, 256)) * there
    found = diagnostics.diagnose(lambda w, x: {"w": x}, None, list(rows))
    assert all(clip.threshold > 0 for clip in found.recommendation.clips.values())
    assert "nan" not in found.recommendation.text


@pytest.mark.nightly
def test_at_most_a_tenth_is_clipped_wherever_the_noise_lies():
    rows = 0.03 * np.random.default_rng(0).standard_t(1.2, size=(400, 5))
    rows[:, 0] += 100
    found = diagnostics.diagnose(lambda w, x: {"w": x}, None, list(rows))
    clip = found.recommendation.clips.get("w") or found.recommendation.clips.get(
        "all layers"
    )
    sizes = np.linalg.norm(rows, axis=1) if clip.scope == "norm" else np.abs(rows)
    assert np.mean(sizes > clip.threshold) <= 0.1
