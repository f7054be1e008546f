"""The monitors against NumPy, and what is read out of their states."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from optax_heavytail import diagnostics
from optax_heavytail.diagnostics.monitoring import _norm_history
from tests.compare import assert_trees_close, assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted
from tests.in_time import in_time, only
from tests.registry import make_grads, make_params

LEAVES = ("b", "s", "w")


def whole_norm(tree):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in tree.values()))


def one_update(tx, grads=None, params=None):
    """What is read after the first update."""
    params = make_params() if params is None else params
    grads = make_grads()[0] if grads is None else grads
    return diagnostics.read_monitor(
        jitted(tx).update(grads, tx.init(params), params)[1]
    )


def after(tx, grads, params=None):
    """What is read after these steps."""
    return diagnostics.read_monitor(follow(tx, grads, params)[2])


# Norms of the last update


def test_norms_are_those_of_numpy():
    grads, tx = heavy_gradients(steps=8), optax.sgd(0.25, momentum=0.5)
    updates, iterates, _ = follow(tx, grads)
    found = after(diagnostics.monitor(tx), grads)
    for name, tree in (
        ("gradient_norm", grads[-1]),
        ("update_norm", updates[-1]),
        ("parameter_norm", iterates[-2]),
    ):
        for leaf in LEAVES:
            want = np.linalg.norm(np.ravel(tree[leaf]))
            np.testing.assert_allclose(found[f"{name}/{leaf}"], want, rtol=1e-6)
        np.testing.assert_allclose(found[name], whole_norm(tree), rtol=1e-6)
    for row in ("", *(f"/{leaf}" for leaf in LEAVES)):
        ratio = found[f"update_norm{row}"] / found[f"parameter_norm{row}"]
        np.testing.assert_allclose(found[f"update_ratio{row}"], ratio, rtol=1e-6)


def test_the_optimizer_is_what_it_was():
    inner, params = oht.gclip(0.1, 1.0), {"w": jnp.array([3.0, -1.0])}
    tx = diagnostics.monitor(inner, reservoir_size=2)
    state, want_state = tx.init(params), inner.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        want, want_state = inner.update(params, want_state, params)
        assert_trees_equal((updates, state.inner_state), (want, want_state))


def test_without_leaves_there_is_one_number_of_a_kind():
    grads = heavy_gradients(steps=5)
    each = after(diagnostics.monitor(optax.sgd(0.1)), grads)
    one = after(diagnostics.monitor(optax.sgd(0.1), per_leaf=False), grads)
    assert set(one) == {name for name in each if "/" not in name}
    for name, value in one.items():
        np.testing.assert_allclose(value, each[name], rtol=1e-6)


@pytest.mark.parametrize("size", only({1e-37, 1e38}, [1e-37, 1e-30, 1e30, 1e38]))
def test_norms_whose_squares_leave_float32(size):
    params = {"w": jnp.float32([3 * size / 5, 4 * size / 5]), "b": jnp.zeros(())}
    tx = diagnostics.monitor(optax.identity())
    found = one_update(tx, params, params)
    for name in ("gradient_norm", "update_norm/w", "parameter_norm/w"):
        np.testing.assert_allclose(found[name], size, rtol=1e-6)
    np.testing.assert_allclose(found["update_ratio/w"], 1.0, rtol=1e-6)
    assert np.isnan(found["update_ratio/b"])  # 0 of 0


def test_norms_of_large_leaves_are_as_exact():
    """One running sum in float32 would lose a percent."""
    grads = jnp.full(10**6, 0.1)
    tx = diagnostics.monitor(optax.identity(), reservoir_size=2)
    found = one_update(tx, {"w": grads}, {"w": grads})
    np.testing.assert_allclose(found["gradient_norm/w"], 100.0, rtol=1e-5)
    np.testing.assert_allclose(found["gradient_norm"], 100.0, rtol=1e-5)


def test_float16_gradients_whose_norm_is_no_float16():
    grads = jnp.full(1000, 6e4, jnp.float16)
    tx = diagnostics.monitor(optax.sgd(0.001))
    found = one_update(tx, grads, grads)
    np.testing.assert_allclose(found["gradient_norm"], 6e4 * 1000**0.5, rtol=1e-3)


# Over all steps


def test_quantiles_are_those_of_all_steps_within_their_resolution():
    rng = np.random.default_rng(0)
    logs = np.clip(3 * rng.standard_t(2.0, size=(3000, 2)), -35, 35)
    sizes = np.exp(logs).astype(np.float32)
    tx = diagnostics.monitor(optax.identity(), reservoir_size=2)
    grads = {"a": jnp.asarray(sizes[:, :1]), "b": jnp.asarray(sizes[:, 1:])}
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}

    @jax.jit
    def run(grads):
        def step(state, g):
            return tx.update(g, state, params)[1], None

        return jax.lax.scan(step, tx.init(params), grads)[0]

    found = diagnostics.read_monitor(run(grads))
    norms = {"": np.linalg.norm(sizes.astype(np.float64), axis=1)}
    norms |= {"/a": sizes[:, 0], "/b": sizes[:, 1]}
    for row, values in norms.items():
        for percent in (10, 50, 90):
            want = np.quantile(values, percent / 100, method="inverted_cdf")
            got = found[f"gradient_norm_q{percent}{row}"]
            # Half a bin, and the rounding of a logarithm at its edge.
            assert abs(np.log2(got / want)) <= 1 / 16 + 1e-5


def test_bins_from_the_smallest_to_the_largest_number():
    edge, width = 2.0**-64, 2.0 ** (1 / 8)
    norms = jnp.float32([0, 1e-45, 0.99 * edge, edge, 1.05 * edge, 1.1 * edge, 3e38])
    found = _norm_history._bins(norms)
    assert found.tolist() == [0, 0, 0, 1, 1, 2, _norm_history.NUM_BINS]
    rows = np.zeros((3, 1 + _norm_history.NUM_BINS), np.int32)
    rows[1, [0, 1, 9]] = 1, 7, 2
    rows[2, -1] = 1
    got = _norm_history.quantiles(jnp.asarray(rows), (0.1, 0.8, 0.81))
    middle = edge * width**0.5
    assert np.isnan(got[0]).all()  # without any
    np.testing.assert_allclose(got[1], [0, middle, 2 * middle], rtol=1e-6)
    np.testing.assert_allclose(got[2], 2.0**64 / width**0.5, rtol=1e-6)


def enter(key, sizes, size):
    """The history of these norms, in one row."""
    history = _norm_history.empty(1, size, jnp.dtype(jnp.float32))._replace(key=key)
    step = lambda h, x: (_norm_history.add(h, x[0][None], x[1]), None)  # noqa: E731
    counts = jnp.arange(1, len(sizes) + 1, dtype=jnp.int32)
    return jax.lax.scan(step, history, (sizes, counts))[0]


def test_every_step_is_as_likely_in_the_reservoir():
    runs, steps, size = 2000, 40, 8
    keys = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(1), runs))
    sizes = jnp.arange(1.0, steps + 1)
    history = jax.jit(jax.vmap(lambda key: enter(key, sizes, size)))(keys)
    drawn = np.asarray(history.drawn_at)
    np.testing.assert_array_equal(history.reservoir[..., 0], drawn)
    for row in drawn:
        assert len(set(row)) == size
    counts = np.bincount(drawn.ravel(), minlength=steps + 1)
    assert counts[0] == 0
    # Binomial of 2,000 and 1/5: 5 standard deviations.
    np.testing.assert_allclose(counts[1:], 400, atol=5 * (2000 * 0.2 * 0.8) ** 0.5)


@pytest.mark.nightly
def test_the_reservoir_is_in_the_order_of_time_and_the_same_for_all_leaves():
    grads = heavy_gradients(steps=60)
    tx = diagnostics.monitor(optax.sgd(0.1), reservoir_size=10)
    few = diagnostics.read_reservoir(follow(tx, grads[:7])[2])
    assert few.counts.tolist() == [1, 2, 3, 4, 5, 6, 7]
    sample = diagnostics.read_reservoir(follow(tx, grads)[2])
    assert len(sample.counts) == 10
    assert np.all(np.diff(sample.counts) > 0)
    assert sample.counts[-1] > 10  # not the first ten alone
    assert set(sample.norms) == {
        "gradient_norm",
        *(f"gradient_norm/{x}" for x in LEAVES),
    }
    for i, count in enumerate(sample.counts):
        g = grads[count - 1]
        np.testing.assert_allclose(
            sample.norms["gradient_norm"][i], whole_norm(g), rtol=1e-6
        )
        for leaf in LEAVES:
            want = np.linalg.norm(np.ravel(g[leaf]))
            got = sample.norms[f"gradient_norm/{leaf}"][i]
            np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("steps", only({160}, [99, 160, 400]))
def test_the_tail_index_is_that_of_the_reservoir(steps):
    """Also while it is not full."""
    rng = np.random.default_rng(0)
    grads = [{"w": np.float32([x])} for x in rng.pareto(1.5, steps) + 1]
    tx = diagnostics.monitor(optax.identity(), reservoir_size=200)
    state = follow(tx, grads, {"w": np.float32([1.0])})[2]
    got = diagnostics.read_monitor(state)["tail_index/w"]
    sample = np.sort(diagnostics.read_reservoir(state).norms["gradient_norm/w"])[::-1]
    k = math.isqrt(len(sample))
    want = 1 / np.mean(np.log(sample[:k] / sample[k])) if steps >= 100 else np.nan
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_bad_gradients_are_counted_and_poison_nothing():
    grads = [{"a": np.float32([k]), "b": np.float32([2.0])} for k in range(1, 9)]
    grads[3]["a"] = np.float32([np.nan])
    grads[5]["a"], grads[6]["b"] = np.float32([np.inf]), np.float32([-np.inf])
    tx = diagnostics.monitor(optax.sgd(0.0), reservoir_size=20)
    start = {"a": np.float32([1.0]), "b": np.float32([1.0])}
    state = follow(tx, grads, start)[2]
    found = diagnostics.read_monitor(state)
    names = ("", "/a", "/b")
    assert [found[f"nonfinite_gradients{row}"] for row in names] == [3, 2, 1]
    assert [found[f"gradient_norm{row}"] for row in names[1:]] == [8, 2]
    sample = diagnostics.read_reservoir(state)
    assert sample.counts.tolist() == [1, 2, 3, 5, 8]
    assert sample.norms["gradient_norm/a"].tolist() == [1, 2, 3, 5, 8]
    assert np.sum(state.history.histogram, axis=1).tolist() == [5, 6, 7]
    last = diagnostics.read_monitor(follow(tx, grads[:4], start)[2])
    assert np.isnan(last["gradient_norm/a"])
    assert np.isnan(last["gradient_norm"])
    assert last["gradient_norm/b"] == 2


def test_nothing_is_known_before_the_first_update():
    tx = diagnostics.monitor(oht.scale_by_clipped_trust_ratio())
    fresh = diagnostics.read_monitor(tx.init(make_params()))
    assert set(one_update(tx)) == set(fresh)
    assert np.isnan(fresh["gradient_norm_q50"])
    assert diagnostics.read_reservoir(tx.init(make_params())).counts.size == 0


# What a clip does


def clipping(raw, clipped, window):
    """Not ours: the three numbers of one leaf or of all, from lists of steps."""
    weights = np.array([(1 - 1 / window) ** k for k in range(len(raw))][::-1])
    weights /= weights.sum()
    shares = [
        np.mean(np.abs(u) < 0.999 * np.abs(m))
        for m, u in zip(raw, clipped, strict=True)
    ]
    lost = [
        1 - np.linalg.norm(u) / np.linalg.norm(m)
        for m, u in zip(raw, clipped, strict=True)
    ]
    means = [np.tensordot(weights, np.stack(x), 1) for x in (raw, clipped)]
    cosine = means[0] @ means[1] / np.prod([np.linalg.norm(x) for x in means])
    return weights @ shares, weights @ lost, cosine


def momenta(grads, debias):
    return follow(oht.ema(0.9, debias=debias), grads)[0]


ACCLIP = {"b2": 0.99, "eps": 0.0}
CLIPS = {
    "value": (oht.clip_by_value(0.5), lambda grads, _: grads),
    "norm": (oht.clip_by_norm(2.0), lambda grads, _: grads),
    "leaf": (oht.clip_by_norm(2.0, scope="leaf"), lambda grads, _: grads),
    "optax": (optax.clip_by_global_norm(2.0), lambda grads, _: grads),
    "history": (oht.clip_by_history(1.0, 5, warmup_steps=1), lambda grads, _: grads),
    "zscore": (oht.clip_by_zscore(0.5, warmup_steps=3), lambda grads, _: grads),
    "norm_ema": (oht.clip_by_norm_ema(warmup_steps=3), lambda grads, _: grads),
    "interval": (
        oht.clip_by_interval(0.0, 2.0, scope="leaf"),
        lambda grads, _: grads,
    ),
    "acclip": (
        oht.scale_by_acclip(**ACCLIP, report=True),
        lambda grads, _: momenta(grads, False),
    ),
    "acclip, normalized": (
        oht.scale_by_acclip(**ACCLIP, normalize=True, report=True),
        # In units of the threshold, which a clip that is literal leaves out.
        lambda grads, clipped: [
            jax.tree.map(lambda m, u, v: m * _ratio(u, v), *trees)
            for trees in zip(
                momenta(grads, True),
                clipped,
                follow(oht.scale_by_acclip(**ACCLIP, bias_correction=True), grads)[0],
                strict=True,
            )
        ],
    ),
}


def _ratio(u, v):
    return np.where(v == 0, 0, u / np.where(v == 0, 1, v))


@pytest.mark.parametrize("name", only(list(CLIPS)[::4], CLIPS))
def test_shares_and_cosine_are_those_of_numpy(name):
    clip, raw_of = CLIPS[name]
    grads, window = (
        [jax.tree.map(lambda g: g + 0.1, g) for g in heavy_gradients(steps=30)],
        10,
    )
    clipped = follow(clip, grads)[0]
    raw = raw_of(grads, clipped)
    found = after(diagnostics.monitor_clipping(clip, window=window, bias=True), grads)
    for leaf in ("", *LEAVES):
        names = [leaf] if leaf else LEAVES
        flat = [
            [np.concatenate([np.ravel(step[n]) for n in names]) for step in steps]
            for steps in (raw, clipped)
        ]
        row = f"/{leaf}" if leaf else ""
        got = [
            found[f"{kind}{row}"]
            for kind in ("clipped_coordinates", "clipped_norm", "clip_cosine")
        ]
        # Float32 against float64; one step of 30 x 1 coordinates may lie at the edge.
        np.testing.assert_allclose(got, clipping(*flat, window), rtol=1e-4, atol=1e-5)
    assert 0 < found["clipped_norm"] < 1


@pytest.mark.nightly
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_cosine_does_not_depend_on_the_size(size):
    """Its squares are no float32."""
    tx = diagnostics.monitor_clipping(oht.clip_by_value(size), bias=True)
    state = tx.init(jnp.zeros(2))
    for grad in ([3.0, 1.0], [4.0, 0.0], [-1.0, 1.0]):
        _, state = tx.update(size * jnp.array(grad), state)
    weights = (1 - 1 / 100) ** np.arange(3)[::-1]
    raw = weights @ np.array([[3.0, 1.0], [4.0, 0.0], [-1.0, 1.0]])
    clipped = weights @ np.array([[1.0, 1.0], [1.0, 0.0], [-1.0, 1.0]])
    cosine = raw @ clipped / np.linalg.norm(raw) / np.linalg.norm(clipped)
    found = diagnostics.read_monitor(state)
    np.testing.assert_allclose(found["clip_cosine"], cosine, rtol=1e-5)


def test_a_bad_gradient_enters_no_average():
    grads = [{"a": np.float32([k]), "b": np.float32([2.0])} for k in (1, 3, 5)]
    bad = [*grads[:2], {"a": np.float32([np.inf]), "b": np.float32([2.0])}, *grads[2:]]
    tx = diagnostics.monitor_clipping(oht.clip_by_value(2.5), bias=True)
    start = {"a": np.zeros(1), "b": np.zeros(1)}
    assert after(tx, bad, start) == after(tx, grads, start)


@pytest.mark.nightly
def test_optimizers_with_a_watched_clip_are_the_aliases():
    watch = functools.partial(diagnostics.monitor_clipping, bias=True)
    rest = (oht.add_decayed_weights(0.1), oht.scale_by_learning_rate(0.1))
    pairs = [
        (
            oht.gclip(0.1, 1.0, weight_decay=0.1),
            optax.chain(
                oht.ema(0.9, debias=False), watch(oht.clip_by_norm(1.0)), *rest
            ),
        ),
        (
            oht.cclip(0.1, 0.5, weight_decay=0.1),
            optax.chain(
                oht.ema(0.9, debias=False), watch(oht.clip_by_value(0.5)), *rest
            ),
        ),
        (
            oht.acclip(0.1, weight_decay=0.1, normalize=True),
            optax.chain(watch(oht.scale_by_acclip(normalize=True, report=True)), *rest),
        ),
    ]
    grads = heavy_gradients(steps=10)
    for alias, watched in pairs:
        # The same numbers, which XLA fuses with others; some of them cancel.
        assert_trees_close(follow(watched, grads)[0], follow(alias, grads)[0], 1e-5)


def test_a_clip_tells_what_it_clipped_through_wrappers():
    """A bfloat16 threshold and injected numbers are wrappers of their own."""
    grads = heavy_gradients(steps=10)
    watch = diagnostics.monitor_clipping
    plain = after(watch(oht.scale_by_acclip(report=True)), grads)
    for clip in (
        optax.inject_hyperparams(oht.scale_by_acclip)(report=True),
        oht.scale_by_acclip(threshold_dtype=jnp.bfloat16, report=True),
    ):
        found = after(watch(clip), grads)
        # Injected decays are float32, and a threshold in bfloat16 is off by 2^-8.
        assert found["clipped_norm"] == pytest.approx(plain["clipped_norm"], abs=0.02)


# Reading


def test_monitors_are_found_through_wrappers():
    def make(learning_rate):
        ratios = oht.scale_by_clipped_trust_ratio()
        clip = diagnostics.monitor_clipping(optax.clip(1.0))
        return diagnostics.monitor(
            optax.chain(clip, ratios, optax.scale(-learning_rate)), reservoir_size=2
        )

    params = make_params()
    rows = ("", "/kernel", "/bias/0", "/bias/1")
    want = {f"{name}{row}" for name in ("update_norm", "clipped_norm") for row in rows}
    want |= {f"{kind}trust_ratio{row}" for kind in ("", "raw_") for row in rows[1:]}
    for tx in (
        make(0.1),
        optax.chain(optax.identity(), make(0.1)),
        optax.masked(make(0.1), True),
        optax.MultiSteps(make(0.1), 1),
        optax.apply_if_finite(make(0.1), 3),
        optax.inject_hyperparams(make)(0.1),
    ):
        found = diagnostics.read_monitor(tx.init(params))
        names = "update_norm", "clipped_norm", "trust_ratio", "raw_trust_ratio"
        assert {name for name in found if name.split("/")[0] in names} == want


def test_masked_leaves_have_no_numbers():
    grads, mask = make_grads()[0], {"kernel": True, "bias": [False, True]}
    ratios = oht.scale_by_clipped_trust_ratio()
    found = one_update(optax.masked(diagnostics.monitor(ratios), mask))
    assert "gradient_norm/bias/1" in found
    assert "trust_ratio/bias/1" in found
    assert not any("bias/0" in name for name in found)
    want = np.hypot(np.linalg.norm(grads["kernel"]), grads["bias"][1])
    np.testing.assert_allclose(found["gradient_norm"], want, rtol=1e-6)


def test_ratios_of_stacked_layers_have_a_number_for_each():
    params = {"layers": jnp.ones((3, 2)), "head": jnp.ones(2)}
    axes = {"layers": 0, "head": None}
    tx = diagnostics.monitor(oht.scale_by_clipped_trust_ratio(layer_axis=axes))
    found = one_update(tx, params, params)
    names = [name for name in found if name.startswith("raw_trust_ratio")]
    assert names == [
        "raw_trust_ratio/head",
        *(f"raw_trust_ratio/layers/{i}" for i in range(3)),
    ]


VECTORS = {"scale": jnp.ones(3), "bias": jnp.ones(3)}


def _matrices(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _frozen(tx):
    """Beside a group of its own without leaves."""
    groups = {"train": tx, "frozen": optax.set_to_zero()}
    return optax.partition(groups, dict.fromkeys(VECTORS, "frozen"))


WITHOUT_RATIOS = {
    "lambc, no layer has a ratio": oht.lambc(0.1, trust_ratio_mask=_matrices),
    "larsc, no layer has a ratio": oht.larsc(0.1, trust_ratio_mask=_matrices),
    "masked, no leaf": optax.masked(oht.lambc(0.1), _matrices),
    "lambc, a group without leaves": _frozen(oht.lambc(0.1)),
    "larsc, a group without leaves": _frozen(oht.larsc(0.1)),
}


FIRST_RATIO = next(iter(WITHOUT_RATIOS))


@pytest.mark.parametrize("inner", in_time(WITHOUT_RATIOS, FIRST_RATIO.__eq__))
def test_where_no_leaf_has_a_ratio_there_is_none(inner):
    tx = diagnostics.monitor(inner)
    found = one_update(tx, VECTORS, VECTORS)
    np.testing.assert_allclose(found["gradient_norm"], 6**0.5, rtol=1e-6)
    assert not any("trust_ratio" in name for name in found)
    assert found.keys() == diagnostics.read_monitor(tx.init(VECTORS)).keys()


@pytest.mark.parametrize(
    "clip", [oht.clip_by_norm(0.5), oht.clip_by_moment(report=True)]
)
def test_a_clip_without_leaves(clip):
    """Its own monitor has nothing to tell of; the one outside goes on."""
    inner = _frozen(diagnostics.monitor_clipping(clip, bias=True))
    found = one_update(diagnostics.monitor(inner), VECTORS, VECTORS)
    np.testing.assert_allclose(found["gradient_norm"], 6**0.5, rtol=1e-6)
    assert found["clipped_coordinates"] == found["clipped_norm"] == 0
    assert not any(name.startswith("clipped_norm/") for name in found)


@pytest.mark.nightly
@pytest.mark.parametrize("params", [{"a": {}, "b": None}, jnp.zeros((0, 3))])
def test_parameters_without_entries(params):
    clip = diagnostics.monitor_clipping(oht.clip_by_norm(1.0), bias=True)
    tx = diagnostics.monitor(optax.chain(clip, oht.lambc(0.1)))
    _, state = jitted(tx).update(params, tx.init(params), params)
    found = diagnostics.read_monitor(state)
    assert found["gradient_norm"] == found["clipped_norm"] == 0
    sample = diagnostics.read_reservoir(state)
    assert sample.norms["gradient_norm"].tolist() == [0]


def test_a_monitor_without_leaves():
    found = one_update(_frozen(diagnostics.monitor(oht.lambc(0.1))), VECTORS, VECTORS)
    assert found["gradient_norm"] == 0
    assert not any("/" in name for name in found)


def test_a_hyperparameter_of_the_name_is_no_ratio():
    def optimizer(trust_ratio):
        return optax.scale(-trust_ratio)

    tx = diagnostics.monitor(optax.inject_hyperparams(optimizer)(trust_ratio=0.1))
    assert not any("trust_ratio" in name for name in one_update(tx))


def test_both_monitors_are_read_with_one_transfer(monkeypatch):
    watched = optax.chain(
        oht.ema(0.9, debias=False), diagnostics.monitor_clipping(oht.clip_by_norm(1.0))
    )
    tx = diagnostics.monitor(watched)
    params, (grads, *_) = make_params(), make_grads()
    _, state = jitted(tx).update(grads, tx.init(params), params)
    moved, device_get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: moved.append(x) or device_get(x))
    found = diagnostics.read_monitor(state)
    assert {"update_norm/kernel", "clipped_norm/kernel"} <= set(found)
    assert "clip_cosine" not in found  # it was not asked for
    assert all(type(value) is float for value in found.values())
    ((values, names),) = moved
    assert isinstance(values, jax.Array)
    assert len(names) == 2


def test_paths_that_look_alike_stay_apart():
    params = {"a/b": jnp.array([3.0]), "a": {"b": jnp.array([4.0])}}
    tx = diagnostics.monitor(optax.sgd(0.1))
    found = one_update(tx, params, params)
    norms = sorted(v for k, v in found.items() if k.startswith("gradient_norm/"))
    assert norms == [3, 4]


def test_leaves_without_a_name_or_without_entries():
    grads = {"": jnp.array([3.0]), "b": jnp.array([0.5]), "none": jnp.zeros((0, 3))}
    clip = diagnostics.monitor_clipping(oht.clip_by_value(1.0))
    found = one_update(clip, grads, grads)
    assert found["clipped_coordinates"] == 0.5  # and not that of ""
    rows = [found[f"clipped_coordinates/['{name}']"] for name in grads]
    assert rows == [1, 0, 0]


def test_a_state_is_placed_along_the_parameters():
    """By the recipe of `optax.tree.map_params`: what is no parameter is replicated."""
    devices = np.array(jax.devices("cpu"))
    mesh = jax.sharding.Mesh(devices, "x")
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((None, "x"), ()))
    params = {"kernel": jnp.ones((2, 8)), "bias": jnp.ones(())}
    clip = diagnostics.monitor_clipping(oht.clip_by_norm(1.0), bias=True)
    tx = diagnostics.monitor(clip, reservoir_size=2)
    state = tx.init(params)
    shardings = optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        state,
        {"kernel": split, "bias": whole},
        transform_non_params=lambda _: whole,
    )
    placed = jax.tree.map(jax.device_put, state, shardings)
    assert placed.inner_state.raw_mean["kernel"].sharding == split
    assert placed.gradient_norms.sharding == whole
    assert "gradient_norm/kernel" in diagnostics.read_monitor(placed)


def test_the_states_of_several_runs_are_not_read_as_one():
    tx = diagnostics.monitor(diagnostics.monitor_clipping(optax.clip(1.0)))
    states = jax.vmap(tx.init)({"w": jnp.ones((3, 2))})
    for part in (states, states.inner_state):
        kind = type(part).__name__
        with pytest.raises(ValueError, match=rf"The {kind} has leading axes \(3,\)"):
            diagnostics.read_monitor(part)
    assert diagnostics.read_monitor(jax.tree.map(lambda x: x[1], states))


def test_states_without_or_with_several_monitors():
    params = {"w": jnp.ones(2)}
    tx = diagnostics.monitor(optax.sgd(0.1))
    twice = optax.chain(tx, tx).init(params)
    for read in (diagnostics.read_monitor, diagnostics.read_reservoir):
        with pytest.raises(ValueError, match="no monitor"):
            read(optax.adam(0.1).init(params))
        with pytest.raises(ValueError, match="2 of MonitorState"):
            read(twice)
    clip = diagnostics.monitor_clipping(diagnostics.monitor_clipping(optax.clip(1.0)))
    with pytest.raises(ValueError, match="2 of MonitorClippingState"):
        diagnostics.read_monitor(clip.init(params))
    with pytest.raises(ValueError, match="no monitor"):
        diagnostics.read_reservoir(clip.init(params))


@pytest.mark.parametrize("size", [1, 2.0, jnp.int32(8)])
def test_sizes_that_are_refused(size):
    with pytest.raises((ValueError, TypeError), match="reservoir_size"):
        diagnostics.monitor(optax.sgd(0.1), reservoir_size=size)
    with pytest.raises(ValueError, match="window"):
        diagnostics.monitor_clipping(optax.clip(1.0), window=0.5)


def wrapped_acclips():
    clip = oht.scale_by_acclip(report=True)
    return {
        "skipping": oht.skip_if_unsafe(clip),
        "chain": optax.chain(clip, oht.clip_by_norm(0.5)),
        "masked": optax.masked(clip, {"w": True}),
        "monitor": diagnostics.monitor(clip),
        "alias": oht.acclip(0.1),
    }


@pytest.mark.parametrize("name", wrapped_acclips())
def test_a_clip_inside_something_else_is_refused(name):
    """What it tells is of another update, or of other leaves, than what comes out."""
    tx = diagnostics.monitor_clipping(wrapped_acclips()[name])
    with pytest.raises(ValueError, match="around clip_by_moment or scale_by_acclip"):
        tx.init({"w": jnp.zeros(2)})


def test_a_clip_that_does_not_tell_is_refused_in_one_line():
    tx = diagnostics.monitor_clipping(oht.scale_by_acclip())
    with pytest.raises(ValueError, match=r"pass report=True to it, as in [^\n]*$"):
        tx.init({"w": jnp.zeros(2)})


def test_only_every_third_update_is_measured_and_that_one_in_full():
    """Against a monitor that sees these alone, also what the reservoir drew."""
    make = functools.partial(diagnostics.monitor, optax.sgd(0.5), reservoir_size=2)
    params = {"w": jnp.array([6.0, 8.0]), "b": jnp.zeros(2)}
    sometimes, always = make(every=3), make()
    update = jax.jit(sometimes.update)
    state, want = sometimes.init(params), always.init(params)
    for k in range(1, 11):
        size = jnp.nan if k == 4 else float(k)  # an inf or NaN between goes unseen
        grads = jax.tree.map(lambda x, size=size: jnp.full_like(x, size), params)
        updates, state = update(grads, state, params)
        np.testing.assert_array_equal(updates["w"], -0.5 * grads["w"])
        if k % 3 == 0:
            _, want = always.update(grads, want, params)
    assert int(state.count) == 10
    np.testing.assert_array_equal(state.gradient_norms, want.gradient_norms)
    np.testing.assert_array_equal(state.update_norms, want.update_norms)
    np.testing.assert_array_equal(state.nonfinite_counts, 0)
    np.testing.assert_array_equal(state.history.histogram, want.history.histogram)
    assert set(np.asarray(state.history.drawn_at)) <= {3, 6, 9}


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_a_number_of_updates_is_a_whole_one(every):
    with pytest.raises((TypeError, ValueError), match="every"):
        diagnostics.monitor(optax.sgd(0.5), every=every)
