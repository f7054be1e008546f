"""Laws of all clips and norms by unit, and of what keeps a record of them."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from tests.compare import as_float64, assert_trees_close, assert_trees_equal
from tests.driving import jitted, one_step, unstack
from tests.in_time import in_time
from tests.registry import make_params

# Limits from the past, with windows that two steps fill.
PAST = {
    "history": functools.partial(
        oht.clip_by_history, 1.5, 2, warmup_steps=1, nonfinite="propagate"
    ),
    "quantile": functools.partial(oht.clip_by_norm_quantile, 0.5, 3),
    "deviation": functools.partial(
        oht.clip_by_norm_deviation, 0.5, 2, remember="clipped"
    ),
    "deviation-mean": functools.partial(
        oht.clip_by_norm_deviation, 0.5, 2, rule="mean"
    ),
    "zscore": functools.partial(oht.clip_by_zscore, 0.5, warmup_steps=1),
    "zscore-log": functools.partial(
        oht.clip_by_zscore, 0.5, warmup_steps=1, log=True, action="percentile"
    ),
    "norm_ema": functools.partial(
        oht.clip_by_norm_ema, absolute_threshold=None, warmup_steps=1
    ),
    "norm_ema-mean": functools.partial(
        oht.clip_by_norm_ema, absolute_threshold=None, warmup_steps=1, init="mean"
    ),
}
PAST_BY_LEAF = {k: functools.partial(make, scope="leaf") for k, make in PAST.items()}
CLIPS = {
    "norm": functools.partial(oht.clip_by_norm, 0.5),
    "norm-leaf": functools.partial(oht.clip_by_norm, 0.5, scope="leaf"),
    "rms": functools.partial(oht.clip_by_rms, 0.5),
    "value": functools.partial(oht.clip_by_value, 0.5),
    "smooth": functools.partial(oht.clip_smoothly, 0.5),
    "smooth-leaf": functools.partial(
        oht.clip_smoothly, 0.5, shape="tanh", scope="leaf"
    ),
    "smooth-global": functools.partial(
        oht.clip_smoothly, 0.5, shape="arctan", scope="global"
    ),
    "spikes": functools.partial(oht.clip_spikes, 9.0, b2=0.5, grace=0),
    "peak": functools.partial(oht.clip_by_peak, 0.5),
    "peak-rescale": functools.partial(oht.clip_by_peak, 0.5, rescale=True),
    **PAST,
}
# What says in its state how much of the norms it left.
BY_NORM = {"norm", "norm-leaf", "rms", "smooth-leaf", "smooth-global"}
BY_NORM |= {"history", "quantile", "zscore", "zscore-log", "norm_ema"}
# What has a unit of its own for each leaf, and for each slice along a layer axis.
BY_LAYER = {
    "rms": functools.partial(oht.clip_by_rms, 0.5),
    "smooth": functools.partial(oht.clip_smoothly, 0.5, scope="leaf"),
    "interval": functools.partial(oht.clip_by_interval, 0.5, 0.7, scope="leaf"),
    "normalize": functools.partial(oht.normalize_by_norm, 0.0, scope="leaf"),
    "stable_norm": functools.partial(oht.scale_by_stable_norm, max_ratio=2.0),
    "stable_adam": functools.partial(oht.scale_by_stable_adam, threshold=0.5),
    "clipped_ema": functools.partial(oht.clipped_ema, relative=1.0, scope="leaf"),
    "cautious": functools.partial(oht.cautious, oht.trace(0.9)),
    **PAST_BY_LEAF,
}
# What a bad gradient does not enter.
RECORDS = {
    "stable_norm": functools.partial(oht.scale_by_stable_norm, max_ratio=3.0),
    "clipped_ema": functools.partial(
        oht.clipped_ema, relative=2.0, scope="leaf", b2=0.5
    ),
    "clipped_ema-coordinate": functools.partial(oht.clipped_ema, 0.9, 0.5),
    "peak": functools.partial(oht.clip_by_peak, 0.5),
    "spikes": functools.partial(oht.clip_spikes, 9.0, b2=0.5, grace=0),
    **PAST_BY_LEAF,
}


# Their paths are those of their neighbours in the tables, but for a formula.
LATE = {"norm-leaf", "smooth-leaf", "smooth-global", "peak-rescale", "deviation-mean"}
LATE |= {"zscore-log", "norm_ema-mean", "clipped_ema-coordinate"}


def each(table):
    cases = in_time(table, lambda name: name not in LATE)
    return pytest.mark.parametrize("make", cases)


@functools.cache
def _compiled(make):
    return jitted(make())


# Far from the smallest normal number, below which XLA may take any for 0.
sizes = st.floats(2.0**-100, 2.0**100, width=32)
numbers = st.one_of(st.just(0.0), sizes, sizes.map(lambda x: -x))
trees = st.fixed_dictionaries(
    {
        "w": st.lists(numbers, min_size=3, max_size=3),
        "b": st.lists(numbers, min_size=1, max_size=1),
    }
).map(lambda tree: {name: np.asarray(x, np.float32) for name, x in tree.items()})


@functools.cache
def _two_steps(make):
    tx = make()

    @jax.jit
    def run(first, second):
        updates, state = tx.update(first, tx.init(first))
        return updates, *tx.update(second, state)

    return run


@each(CLIPS)
def test_nothing_grows_or_turns(make):
    @hypothesis.given(trees, trees)
    def check(first, second):
        got_first, got_second, _ = _two_steps(make)(first, second)
        for got, given in ((got_first, first), (got_second, second)):
            for name in given:
                u, g = as_float64(got[name]), as_float64(given[name])
                # A product of three factors, each rounded in float32.
                assert np.all(np.abs(u) <= np.abs(g) * (1 + 1e-6))
                assert np.all(u * g >= 0)

    check()


@each({name: CLIPS[name] for name in CLIPS if name in BY_NORM})
def test_what_is_kept_is_told(make):
    first = {"w": np.float32([1.0, 2.0, -2.0]), "b": np.float32([0.25])}
    second = {"w": np.float32([30.0, 0.0, 40.0]), "b": np.float32([-12.0])}
    _, updates, state = _two_steps(make)(first, second)
    kept = state.kept
    if not isinstance(kept, dict):
        kept = {"all": kept}
        updates, second = ({"all": _flat(t)} for t in (updates, second))
    for name, share in kept.items():
        sizes = [np.linalg.norm(as_float64(t[name])) for t in (updates, second)]
        np.testing.assert_allclose(float(share), sizes[0] / sizes[1], rtol=1e-5)
    assert min(map(float, kept.values())) < 1


def _flat(tree):
    return np.concatenate([as_float64(x) for x in tree.values()])


@each(CLIPS | BY_LAYER)
def test_zero_in_zero_out_and_no_nan_without_entries(make):
    tx = make()
    zeros = [{"w": jnp.zeros((2, 3))}, {"w": jnp.zeros((0, 3)), "b": ()}, {}]

    @jax.jit
    def two_steps(grads):
        first, state = tx.update(grads, tx.init(grads))
        return first, tx.update(grads, state)[0]

    for grads in zeros:
        for updates in two_steps(grads):
            assert_trees_equal(updates, grads)


@each(BY_LAYER)
def test_layers_of_a_stack_are_leaves(make):
    axes = {"kernel": 1, "bias": None}
    rng = np.random.default_rng(0)
    steps = {
        "kernel": rng.standard_t(2, (4, 2, 3)).astype(np.float32),
        "bias": rng.normal(size=(4, 2)).astype(np.float32),
    }
    steps["kernel"][2, 0, 1] = np.nan

    def split(tree):
        return {"bias": tree["bias"], "kernel": [*tree["kernel"].T]}

    stacked, apart = make(layer_axis=axes), make()

    def step(states, grads):
        updates, state = stacked.update(grads, states[0])
        want, other = apart.update(split(grads), states[1])
        return (state, other), (split(updates), want)

    @jax.jit
    def run(steps):
        first = jax.tree.map(lambda x: x[0], steps)
        start = stacked.init(first), apart.init(split(first))
        return jax.lax.scan(step, start, steps)[1]

    for updates, want in unstack(jax.tree.map(np.asarray, run(steps))):
        assert_trees_close(updates, want, 1e-6)
    assert np.all(np.isfinite([updates["kernel"][k] for k in (0, 2)]))


def _after_two_steps(tx):
    grads = {"w": np.float32([1.0, -2.0]), "b": np.float32([0.5])}
    state = tx.init(grads)
    for scale in np.float32([1.0, 1.2]):
        _, state = tx.update(jax.tree.map(lambda g, c=scale: c * g, grads), state)
    return grads, state


def _record(state):
    return {x: y for x, y in state._asdict().items() if x not in ("count", "inner")}


@each(RECORDS)
def test_a_bad_gradient_is_lost_once(make):
    tx = _compiled(make)
    grads, state = _after_two_steps(tx)
    updates, later = tx.update(jax.tree.map(lambda g: g * np.nan, grads), state)
    assert all(np.all(np.isnan(u)) for u in jax.tree.leaves(updates))
    assert_trees_equal(_record(later), _record(state))
    again, _ = tx.update(grads, later)
    assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(again))


@each({name: RECORDS[name] for name in ("stable_norm", "peak", *PAST)})
def test_zeros_are_not_seen(make):
    tx = _compiled(make)
    grads, state = _after_two_steps(tx)
    updates, later = tx.update(jax.tree.map(np.zeros_like, grads), state)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert_trees_equal(_record(later), _record(state))


@pytest.mark.parametrize("power", [-40, 30])
@pytest.mark.parametrize(
    "make",
    [
        functools.partial(oht.scale_by_stable_norm, eps=0.0, max_ratio=2.0),
        oht.scale_by_adam_atan2,
        functools.partial(oht.scale_by_spam, eps=0.0, threshold=9.0, grace=1),
    ],
    ids=["stable_norm", "atan2", "spam"],
)
def test_updates_do_not_depend_on_the_scale(make, power):
    """By powers of two, which scale floats exactly, far beyond squares of float32."""
    tx, params = _compiled(make), jax.tree.map(np.asarray, make_params())
    states = [tx.init(params)] * 2
    for size in np.float32([1.0, 3.0, 0.25]):
        grads = jax.tree.map(lambda p, c=size: c * p, params)
        (got, states[0]), (want, states[1]) = (
            tx.update(jax.tree.map(lambda g, c=c: g * c, grads), state)
            for c, state in zip(np.float32([2.0**power, 1]), states, strict=True)
        )
        assert_trees_close(got, want, 1e-6)


@each(
    {
        "peak": oht.clip_by_peak,
        "clipped_ema": functools.partial(oht.clipped_ema, relative=1.0, scope="global"),
        "spikes": functools.partial(oht.clip_spikes, 4.0, grace=1),
        "cautious": lambda: oht.cautious(oht.ema(0.9)),
        **PAST,
    }
)
def test_updates_scale_with_the_gradients(make):
    tx, params = jitted(make()), jax.tree.map(np.asarray, make_params())
    states = [tx.init(params)] * 2
    for size in np.float32([1.0, 30.0, 0.25]):
        grads = jax.tree.map(lambda p, c=size: c * p, params)
        got, states[0] = tx.update(
            jax.tree.map(lambda g: np.float32(8) * g, grads), states[0]
        )
        want, states[1] = tx.update(grads, states[1])
        assert_trees_close(got, jax.tree.map(lambda u: 8 * np.asarray(u), want), 1e-6)


def test_scopes_without_layers_refuse_an_axis():
    for make in (
        lambda: oht.clip_smoothly(1.0, layer_axis=0),
        lambda: oht.clip_by_interval(0.1, 1.0, layer_axis=0),
        lambda: oht.clipped_ema(threshold=1.0, layer_axis=0),
        lambda: oht.normalize_by_norm(layer_axis=0),
        lambda: oht.scale_by_stable_norm(scope="global", layer_axis=0),
        lambda: oht.cautious(oht.ema(0.9), scope="global", layer_axis=0),
        lambda: oht.clip_by_history(layer_axis=0),
        lambda: oht.clip_by_zscore(layer_axis=0),
    ):
        with pytest.raises(ValueError, match='layer_axis needs scope "leaf"'):
            make()


@each({name: CLIPS[name] for name in ("smooth-leaf", "smooth-global", "rms")})
def test_bad_entries_can_be_dropped(make):
    grads = {"w": jnp.array([4.0, jnp.inf, jnp.nan]), "b": jnp.array([0.1])}
    got = one_step(make(nonfinite="zero"), grads)
    assert np.all(np.isfinite(got["w"]))
    assert np.all(got["w"][1:] == 0)
    assert np.all(np.isnan(one_step(make(), grads)["w"]))
