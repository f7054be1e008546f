"""Learned optimizers: against loops over NumPy, their bounds, and weights in files."""

import io
import json
import pickle
import zipfile

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import optax_heavytail as oht
from optax_heavytail import learned
from tests.compare import assert_leaf_close, assert_trees_equal
from tests.in_time import only
from tests.registry import MLP, lstm

LARGEST = 50_000  # bytes of weights in the wheel


def run(tx, grads):
    """All updates of gradients (steps, ...), and the last state."""
    first = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads)
    return jax.jit(lambda s, g: jax.lax.scan(_stepper(tx), s, g))(tx.init(first), grads)


def _stepper(tx):
    def step(state, g):
        updates, state = tx.update(g, state)
        return state, updates

    return step


def heavy(steps, size, seed=0, scale=1.0):
    draws = np.random.default_rng(seed).standard_t(1.5, (steps, size))
    return jnp.asarray(scale * draws, jnp.float32)


# The LSTM


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_reference(weights, grads, preprocess, p=10.0):
    """The network in float64: what is added to the parameters, before its scale."""
    w_1, b_1, w_2, b_2, w_out, b_out = (np.asarray(x, np.float64) for x in weights)
    steps, size = grads.shape
    layers = [(w_1, b_1), (w_2, b_2)]
    hidden, cell = (np.zeros((2, size, 20)) for _ in range(2))
    out = np.zeros((steps, size))
    for t in range(steps):
        for k in range(size):
            g = float(grads[t, k])
            x = [g]
            if preprocess == "log":
                small = abs(g) < np.exp(-p)
                x = [-1, np.exp(p) * g] if small else [np.log(abs(g)) / p, np.sign(g)]
            for layer, (w, b) in enumerate(layers):
                gates = np.concatenate([x, hidden[layer, k]]) @ w + b
                i, j, f, o = gates.reshape(4, 20)
                kept = _sigmoid(f + 1) * cell[layer, k]
                cell[layer, k] = kept + _sigmoid(i) * np.tanh(j)
                x = hidden[layer, k] = _sigmoid(o) * np.tanh(cell[layer, k])
            out[t, k] = x @ w_out + b_out
    return out


@pytest.mark.parametrize(("preprocess", "inputs"), [("log", 2), ("none", 1)])
def test_the_lstm_is_that_of_loops_over_numbers(preprocess, inputs):
    weights, grads = lstm(inputs), np.array(heavy(100, 4))
    grads[3:9, 0], grads[20, 1] = 1e-6, 0.0
    tx = learned.scale_by_lstm(weights, preprocess=preprocess, output_scale=0.5)
    _, updates = run(tx, jnp.asarray(grads))
    want = lstm_reference(weights, grads, preprocess)
    assert_leaf_close(updates, -0.5 * want, 1e-5)


def test_inputs_of_the_lstm():
    from optax_heavytail.learned import _lstm

    g = jnp.array([1.0, -np.e, 1e-30, -1e-5, 0.0, 1e38])
    got = _lstm._inputs(g, "log", 10.0)
    want = [[0, 1], [0.1, -1], [-1, 1e-30 * np.e**10], [-1, -1e-5 * np.e**10]]
    want += [[-1, 0], [8.7498, 1]]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@hypothesis.given(st.integers(0, 2**31), st.floats(-30, 30), st.floats(0.01, 30))
def test_steps_of_the_lstm_are_bounded_for_any_weights(seed, exponent, size):
    rng = np.random.default_rng(seed)
    weights = learned.LSTMWeights(
        *(np.float32(size * rng.normal(size=x.shape)) for x in lstm(2))
    )
    grads = jnp.float32(10.0**exponent) * heavy(2, 5, seed)
    tx = learned.scale_by_lstm(weights, output_scale=0.1)
    updates, _ = tx.update(grads, tx.init(grads))
    limit = 0.1 * (np.abs(weights.w_out).sum() + abs(weights.b_out))
    assert float(jnp.max(jnp.abs(updates))) <= limit * 1.00001


def test_each_coordinate_has_its_own_lstm():
    grads = heavy(10, 6)
    tx = learned.scale_by_lstm(lstm(2))
    order = jnp.array([3, 1, 5, 0, 2, 4])
    _, updates = run(tx, grads)
    _, shuffled = run(tx, grads[:, order])
    np.testing.assert_allclose(shuffled, updates[:, order], rtol=1e-5)
    _, leaves = run(tx, {"a": grads[:, :2], "b": grads[:, 2:].reshape(10, 2, 2)})
    np.testing.assert_allclose(leaves["a"], updates[:, :2], rtol=1e-5)


@pytest.mark.parametrize(
    "tx",
    [learned.scale_by_lstm(lstm(2)), learned.scale_by_mlp(MLP)],
    ids=["lstm", "mlp"],
)
@pytest.mark.parametrize("bad", only([-np.inf, np.nan], [np.inf, -np.inf, np.nan]))
def test_a_bad_gradient_is_seen_in_its_coordinate_alone(tx, bad):
    grads = heavy(20, 4)
    state, _ = run(tx, grads[:15])
    good, calm = tx.update(grads[15], state)
    updates, hit = tx.update(grads[15].at[1].set(bad), state)
    assert np.isnan(updates[1])
    others = np.array([0, 2, 3])
    # But for the mean over the leaf.
    ratio = updates[others] / good[others]
    assert np.all(np.isfinite(ratio))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    for old, new, kept in zip(state[1:], hit[1:], calm[1:], strict=True):
        np.testing.assert_array_equal(new[1], old[1])
        np.testing.assert_array_equal(new[others], kept[others])


# The MLP


def mlp_reference(weights, grads, rms=0.3):
    """In float64, a coordinate after the other."""
    w = [np.asarray(x, np.float64) for x in weights]
    decays = (0.9, 0.99, 0.999)
    steps, size = grads.shape
    mean, usual = np.zeros((2, size, 3))
    out = np.zeros((steps, size))
    for t in range(steps):
        u = np.zeros(size)
        for k in range(size):
            g = float(grads[t, k])
            if t >= 10 and usual[k, 1] > 0:
                limit = 8 * usual[k, 1] / (1 - 0.99**t)
                g = min(max(g, -limit), limit)
            hats = []
            for j, b in enumerate(decays):
                mean[k, j] = b * mean[k, j] + (1 - b) * g
                usual[k, j] = b * usual[k, j] + (1 - b) * abs(g)
                hats.append(usual[k, j] / (1 - b ** (t + 1)))
            if not usual[k, 0]:
                continue
            r = mean[k] / usual[k]
            logs = [np.log2(hats[0] / hats[1]), np.log2(hats[1] / hats[2])]
            x = [*r, np.sign(g) * np.log(1 + min(abs(g) / hats[1], 8))]
            x += [*np.clip(logs, -4, 4), np.sign(g) * np.sign(mean[k, 0])]
            x = np.array([*x, abs(r[0]), abs(r[1])])
            x = np.maximum(x @ w[0] + w[1], 0)
            x = np.maximum(x @ w[2] + w[3], 0)
            first, second = x @ w[4] + w[5]
            u[k] = r[0] * np.exp(2 * np.tanh(first / 2)) + np.tanh(second) / 2
        out[t] = rms * u / np.sqrt(np.mean(u**2) + 1e-12)
    return out


def test_the_mlp_is_that_of_loops_over_numbers():
    grads = np.array(heavy(60, 5))
    grads[:, 4] = 0.0  # an embedding's row that no batch has
    grads[:30, 3] = 0.0
    grads[25, 0], grads[40:50, 1] = 1e6, 0.0
    _, updates = run(learned.scale_by_mlp(MLP, rms=0.5), jnp.asarray(grads))
    assert_leaf_close(updates, mlp_reference(MLP, grads, 0.5), 1e-5)
    assert np.all(updates[:, 4] == 0)


@pytest.mark.parametrize("factor", only({1e30}, [2.0**80, 2.0**-80, 1e30, 1e-30]))
def test_the_mlp_knows_no_scale(factor):
    grads = heavy(30, 5, scale=1e-2).at[20, 2].set(5.0)  # which is limited
    tx = learned.scale_by_mlp(MLP)
    _, want = run(tx, grads)
    _, got = run(tx, grads * jnp.float32(factor))
    if factor in (2.0**80, 2.0**-80):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.nightly
def test_features_are_bounded():
    from optax_heavytail.learned import _mlp

    grads = np.array(heavy(200, 4)) * 10.0 ** np.linspace(-20, 20, 200)[:, None]
    state = learned.scale_by_mlp(MLP).init(jnp.zeros(4))
    limits = np.array([1, 1, 1, np.log(9), 4, 4, 1, 1, 1]) * (1 + 1e-6)
    seen = np.zeros(9)
    for g in jnp.asarray(grads, jnp.float32):
        count = state.count + 1
        own = _mlp._one_step(MLP, state.count, count, g, list(state[1:]))[1]
        state = learned.ScaleByMLPState(count, *own)
        limited = _mlp._limited(g, state.size_2, count - 1)
        x = _mlp._features(limited, own[:3], own[3:], count)
        seen = np.maximum(seen, [float(jnp.max(jnp.abs(f))) for f in x])
    assert np.all(seen <= limits)
    assert np.all(seen >= [0.9, 0.9, 0.9, 1, 0.5, 0.5, 1, 0.9, 0.9])


def test_without_an_output_layer_it_is_normalised_acclip():
    zero = MLP._replace(w_2=np.zeros_like(MLP.w_2), b_2=np.zeros_like(MLP.b_2))
    grads = jnp.clip(heavy(30, 6), -1.0, 1.0) + 0.1  # that no limit cuts
    _, got = run(learned.scale_by_mlp(zero, rms=1.0), grads)
    twin = oht.scale_by_acclip(0.9, 0.9, eps=0.0, normalize=True)
    _, want = run(twin, grads)
    want = want / np.sqrt(np.mean(np.square(want), axis=1, keepdims=True))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_spike_turns_no_other_coordinate():
    grads = heavy(30, 6)
    tx = learned.scale_by_mlp(MLP)
    _, calm = run(tx, grads)
    _, hit = run(tx, grads.at[20, 2].set(1e30))
    others = np.array([0, 1, 3, 4, 5])
    ratio = hit[20:, others] / calm[20:, others]
    spread = jnp.max(ratio, axis=1) / jnp.min(ratio, axis=1)
    np.testing.assert_allclose(spread, 1.0, rtol=1e-5)
    assert np.all(ratio > 0.3)
    np.testing.assert_array_equal(hit[:20], calm[:20])


@pytest.mark.nightly
def test_a_spike_is_forgotten():
    """Against a steady gradient: no step the wrong way, and half of it back by 20."""
    zero = MLP._replace(w_2=np.zeros_like(MLP.w_2), b_2=np.zeros_like(MLP.b_2))
    grads = -1 + 0.5 * np.random.default_rng(0).uniform(-1, 1, (400, 1))
    calm = np.full((400, 7), -1.0)  # whose mean tells the size of the first one's step
    grads = np.concatenate([grads, calm], axis=1).astype(np.float32)
    grads[300, 0] = 1e4
    _, updates = run(learned.scale_by_mlp(zero), jnp.asarray(grads))
    assert np.all(updates[301:, 0] < 0)
    assert np.all(updates[320:, 0] < 0.5 * np.median(updates[200:300, 0]))


def test_layers_of_a_stack_are_leaves_of_their_own():
    grads = heavy(12, 8)
    stacked = grads.reshape(12, 2, 4)
    _, got = run(learned.scale_by_mlp(MLP, layer_axis=0), stacked)
    _, want = run(learned.scale_by_mlp(MLP), [stacked[:, 0], stacked[:, 1]])
    np.testing.assert_allclose(got, jnp.stack(want, axis=1), rtol=1e-5)


# Weights that are trained


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        pytest.param(learned.scale_by_lstm, lstm(2), id="lstm"),
        pytest.param(learned.scale_by_mlp, MLP, id="mlp", marks=pytest.mark.nightly),
    ],
)
def test_weights_may_be_traced_mapped_and_differentiated(make, weights):
    grads = heavy(3, 4)

    def loss(weights):
        return jnp.sum(jnp.square(run(make(weights), grads)[1]))

    slopes = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, weights))
    assert all(np.all(np.isfinite(x)) for x in slopes)
    assert all(np.any(x != 0) for x in jax.tree.leaves(slopes)[-2:])
    several = jax.tree.map(lambda w: jnp.stack([w, 2 * w, -w]), weights)
    twice = jax.tree.map(lambda w: 2 * w, weights)
    mapped = jax.jit(jax.vmap(loss))(several)[1]
    np.testing.assert_allclose(mapped, jax.jit(loss)(twice), rtol=1e-4)


def test_fresh_weights():
    for preprocess, number in (("log", 5141), ("none", 5061)):
        made = learned.init_lstm(jax.random.key(0), preprocess=preprocess)
        assert sum(w.size for w in made) == number
        learned.scale_by_lstm(made, preprocess=preprocess)
        assert np.std(made.w_2) == pytest.approx(40**-0.5, rel=0.1)
    assert sum(w.size for w in learned.init_mlp(jax.random.key(0))) == 170


def test_wrong_weights_are_named():
    with pytest.raises(ValueError, match=r"weights\.w_1 must have shape \(22, 80\)"):
        learned.scale_by_lstm(lstm(1))
    with pytest.raises(TypeError, match=r"must be MLPWeights, .* got LSTMWeights"):
        learned.scale_by_mlp(lstm(1))
    with pytest.raises(ValueError, match=r"weights\.b_2 must have shape \(2,\)"):
        learned.scale_by_mlp(MLP._replace(b_2=np.zeros(3)))
    for bad in (0.0, -1.0, np.inf):
        for name in ("p", "output_scale"):
            with pytest.raises(ValueError, match=rf"{name} must be in \(0.0, inf\)"):
                learned.scale_by_lstm(lstm(2), **{name: bad})
        with pytest.raises(ValueError, match="rms must be in"):
            learned.scale_by_mlp(MLP, rms=bad)
    with pytest.raises(ValueError, match="preprocess must be one of"):
        learned.init_lstm(jax.random.key(0), preprocess="sign")


def test_a_state_in_bfloat16_has_half_the_bytes():
    params = jnp.zeros(100)
    for make, weights, per_parameter in (
        (learned.scale_by_lstm, lstm(2), 320),
        (learned.scale_by_mlp, MLP, 24),
    ):
        assert str(per_parameter) in make.__doc__.split("\n\n")[1]
        for dtype, factor in ((None, 1), (jnp.bfloat16, 2)):
            state = make(weights, state_dtype=dtype).init(params)
            sizes = [x.nbytes for x in jax.tree.leaves(state) if x.size >= 100]
            assert sum(sizes) == 100 * per_parameter / factor


# Weights in files


def test_what_is_saved_is_loaded(tmp_path):
    for weights in (lstm(1), lstm(2), MLP):
        path = tmp_path / "w.npz"
        learned.save(path, weights, {"steps": 7})
        assert_trees_equal(learned.load(path), weights)
        assert learned.about(str(path))["steps"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_every_name_is_loaded_and_all_are_small():
    from optax_heavytail.learned import _weights

    sizes = [
        len((_weights._folder() / f"{x}.npz").read_bytes()) for x in learned.names()
    ]
    assert 0 < sum(sizes) <= LARGEST
    for name in learned.names():
        weights, about = learned.load(name), learned.about(name)
        assert about["command"].startswith("python -m experiments.learn ")
        if about["model"] == "lstm":
            tx = learned.scale_by_lstm(weights, **about["arguments"])
        else:
            tx = learned.scale_by_mlp(weights)
        assert np.all(np.isfinite(tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0]))


def _archive(arrays, about=None, **options):
    content = io.BytesIO()
    said = {"model": "mlp", "version": 1} if about is None else about
    packed = {"about": np.frombuffer(json.dumps(said).encode(), np.uint8)}
    np.savez(content, **arrays, **packed, **options)
    return content.getvalue()


def _bomb():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w_0.npy", bytes(2**22))
    return content.getvalue()


class _Runs:
    """What would print if a pickle were ever read."""

    def __reduce__(self):
        return print, ("a pickle was executed",)


_MLP = MLP._asdict()
WHOLE = _archive(_MLP)
_WIDE = {k: v.astype(np.float64) for k, v in _MLP.items()}
_NAN = _MLP | {"b_1": np.full(8, np.nan, np.float32)}
_FEW = {k: v for k, v in _MLP.items() if k != "b_1"}
BAD = {
    "empty": (b"", "is no whole file of weights"),
    "cut": (WHOLE[: len(WHOLE) // 2], "is no whole file of weights"),
    "end only": (WHOLE[-100:], "is no whole file of weights"),
    "flipped": (WHOLE[:200] + b"\xff" + WHOLE[201:], "is no whole file of weights"),
    "pickle": (pickle.dumps(_Runs()), "is no whole file of weights"),
    "pickled array": (
        _archive(_MLP | {"b_1": np.array([_Runs()], dtype=object)}),
        "is no whole file of weights .*allow_pickle=False",
    ),
    "large": (bytes(2**21), "has more than 1048576 bytes"),
    "bomb": (_bomb(), "unpacks to 4194304 bytes"),
    "version": (
        _archive(_MLP, {"model": "mlp", "version": 2}),
        "has version 2 of mlp, this package reads 1",
    ),
    "model": (_archive(_MLP, {"model": "velo"}), "has weights of 'velo'"),
    "not said": (_archive(_MLP, [1]), "does not say what its weights are of"),
    "not finite": (_archive(_NAN), "b_1 has a number that is not finite"),
    "shape": (
        _archive(_MLP | {"w_1": np.zeros((8, 9), np.float32)}),
        r"w_1 must be float32 of shape \(8, 8\), found float32 of shape \(8, 9\)",
    ),
    "dtype": (_archive(_WIDE), "w_0 must be float32 .*, found float64"),
    "missing": (_archive(_FEW), "lacks the array b_1"),
    "more": (_archive(_MLP | {"w_9": MLP.b_2}), "has the array w_9"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(name, tmp_path, capsys):
    content, message = BAD[name]
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(learned.WeightsError, match=message) as caught:
        learned.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out


def test_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(learned.WeightsError, match=r"nothing: must be one of .*, or a"):
        learned.load("nothing")
    with pytest.raises(learned.WeightsError, match=r"no\.npz: No such file"):
        learned.load(tmp_path / "no.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(learned.WeightsError, match="Is a directory"):
        learned.load(tmp_path / "folder.npz")
    with pytest.raises(learned.WeightsError, match=r"zero byte|null byte"):
        learned.load("a\0.npz")


def test_what_cannot_be_saved(tmp_path):
    bad = MLP._replace(b_1=np.full(8, np.inf))
    for path, weights, about, message in (
        ("w.npz", bad, {}, "b_1 has a number that is not finite"),
        ("w.npz", MLP._replace(b_2=np.zeros(3)), {}, r"b_2 must be float32 of shape"),
        ("w.bin", MLP, {}, r"must end with \.npz"),
        ("w.npz", MLP, {"model": "x"}, r"about\['model'\]: is added"),
    ):
        with pytest.raises(learned.WeightsError, match=message):
            learned.save(tmp_path / path, weights, about)
    with pytest.raises(TypeError, match="must be LSTMWeights or MLPWeights, got tuple"):
        learned.save(tmp_path / "w.npz", (1, 2), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_chained_it_trains():
    """As the documentation has it: behind it weight decay and a rate of AdamW."""
    weights = learned.init_mlp(jax.random.key(0))
    tx = optax.chain(
        learned.scale_by_mlp(weights),
        oht.add_decayed_weights(1e-4),
        oht.scale_by_learning_rate(0.2),
    )
    params = jnp.array([3.0, -2.0])
    state = tx.init(params)
    for _ in range(100):
        updates, state = tx.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    assert float(jnp.max(jnp.abs(params))) < 0.3
