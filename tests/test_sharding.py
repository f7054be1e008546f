"""Sharded equals replicated: under jit, and by hand in shard_map and pmap."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_heavytail as oht
from tests.compare import assert_trees_close
from tests.in_time import in_time, in_turn
from tests.registry import CASES, make_grads, make_params
from tests.test_contract import (
    LONG,
    each_in_turn,
    each_structure,
    run,
    run_case,
)

SPECS = {"kernel": P("x", "y"), "bias": [P("y"), P()]}


def make_mesh(kind=AxisType.Auto, shape=(2, 2), names=("x", "y")):
    devices = jax.devices("cpu")[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices)


def place(tree, mesh, specs=SPECS):
    return jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs
    )


def _assert_placed_like(leaves, like):
    """Each leaf of a parameter's shape is spread over the devices as it is."""
    shardings = {x.shape: x.sharding for x in jax.tree.leaves(like) if x.ndim}
    for leaf in jax.tree.leaves(leaves):
        is_number = jnp.issubdtype(leaf.dtype, jnp.floating)  # a key has a shape too
        if is_number and leaf.shape in shardings:
            assert leaf.sharding.is_equivalent_to(shardings[leaf.shape], leaf.ndim)


@each_in_turn(2)
def test_under_jit_with_shardings_in_the_types(case):
    _check_under_jit(case, AxisType.Explicit)


@pytest.mark.nightly
@each_structure
def test_under_jit(case):
    _check_under_jit(case, AxisType.Auto)


def _check_under_jit(case, kind):
    mesh, tx = make_mesh(kind), case.make()
    want = run_case(case, make_grads()[:2], make_params())
    with jax.set_mesh(mesh):
        params = place(make_params(), mesh)
        grads = [place(g, mesh) for g in make_grads()[:2]]
        state = tx.init(params)
        update = jax.jit(functools.partial(tx.update, **case.extra_args))
        history, new_state = run(update, grads, params, state)
    # Sums are taken in another order: the last bits of a norm.
    assert_trees_close((history, new_state), want, case.drift)
    for updates in history:
        assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, grads[0])
        _assert_placed_like(updates, params)
    assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)
    _assert_placed_like((state, new_state), params)


@pytest.mark.parametrize(
    ("tx", "ring"),
    [
        (oht.scale_by_adashift(n=3), lambda state: state.window),
        (oht.snapshot_ensemble(oht.trace(0.9), 3, t_0=1), lambda s: s.snapshots),
    ],
    ids=["adashift", "snapshots"],
)
def test_copies_of_the_parameters_are_spread_as_they_are(tx, ring):
    """A ring of copies that lay whole on each device would not fit there."""
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        params, grads = (place(t, mesh) for t in (make_params(), make_grads()[0]))
        state = tx.init(params)
        _, new_state = jax.jit(tx.update)(grads, state, params)
        kept = NamedSharding(mesh, P(None, "x", "y"))
    for copies in (ring(state), ring(new_state)):
        assert copies["kernel"].shape == (3, 4, 2)
        assert copies["kernel"].sharding.is_equivalent_to(kept, 3)


# By hand: one leaf in shards, the others whole on every device.
BY_HAND = {"kernel": P("x"), "bias": [P(), P()]}
AXES = {"kernel": "x", "bias": None}

WITH_NORMS = {
    "norm": functools.partial(oht.clip_by_norm, 1.0),
    "norm-leaf": functools.partial(oht.clip_by_norm, 1.0, scope="leaf"),
    "norm-zero": functools.partial(oht.clip_by_norm, 1.0, nonfinite="zero"),
    "gclip": functools.partial(oht.gclip, 0.1, 1.0, weight_decay=0.1),
    "moment": functools.partial(oht.clip_by_moment, oht.ema(0.9, debias=False)),
    "moment-leaf": functools.partial(
        oht.clip_by_moment, oht.ema(0.9, debias=False), scope="leaf"
    ),
    "moment-global": functools.partial(
        oht.clip_by_moment,
        oht.ema(0.9, debias=False),
        scope="global",
        normalize=True,
        bias_correction=False,  # so that it clips from the first step on
    ),
    "normalized_gd": functools.partial(oht.normalized_gd, 0.1, b1=0.9),
    "ratio": functools.partial(oht.scale_by_clipped_trust_ratio, 0.1, None),
    "lambc": functools.partial(oht.lambc, 0.1, weight_decay=0.1, max_grad_norm=1.0),
    "larsc": functools.partial(oht.larsc, 0.1, trust_coefficient=0.1),
    "monitor": functools.partial(oht.diagnostics.monitor, oht.trace(0.9)),
    "monitor_clipping": functools.partial(
        oht.diagnostics.monitor_clipping, oht.clip_by_value(0.5), bias=True
    ),
    "neumann": functools.partial(
        oht.neumann, 0.1, repulsive=0.01, repulsive_scale="params", reset_interval=2
    ),
    "rms": functools.partial(oht.clip_by_rms, 0.5),
    "smooth": functools.partial(oht.clip_smoothly, 0.5, scope="global"),
    "interval": functools.partial(oht.clip_by_interval, 0.5, 1.0, scope="leaf"),
    "stable_norm": functools.partial(oht.scale_by_stable_norm, max_ratio=2.0),
    "stable_adam": functools.partial(oht.scale_by_stable_adam, b2=0.5),
    "clipped_ema": functools.partial(oht.clipped_ema, relative=1.0, scope="leaf"),
    "cautious": functools.partial(oht.cautious, oht.trace(0.9)),
    "peak": functools.partial(oht.clip_by_peak, 0.5),
    "rule": functools.partial(
        oht.rules.transform,
        "min(1 / norm(m), 1) * m + rms(g) * sign(g)",
        vocabulary=oht.rules.EXTENDED,
    ),
}
WITH_NORMS |= {  # all others that say over which axes a sum goes
    # Specs have no masked leaves, as the state of a masked transform has.
    name: functools.partial(
        case.factory, **{k: v for k, v in case.kwargs.items() if k != "mask"}
    )
    for name, case in CASES.items()
    if "axis_name" in inspect.signature(case.factory).parameters
    # SAGA takes no norm, and has a test of its own.
    and case.factory is not oht.saga
    and case.any_tree
    and not case.variant
    and "inner" not in case.kwargs  # which would have to be told too
    and case.factory not in {make.func for make in WITH_NORMS.values()}
}


def each_norm(names):
    return pytest.mark.parametrize("name", names)


# One of each kind of norm.
KINDS = (
    "norm",
    "norm-leaf",
    "moment",
    "moment-leaf",
    "moment-global",
    "ratio",
    "neumann",
)


def each_norm_in_turn(turn):
    """One of each kind and a third of the others; all in the nightly."""
    others = (name for name in WITH_NORMS if name not in LONG.union(KINDS))
    quick = in_turn(others, turn).union(KINDS)
    names = {name: name for name in WITH_NORMS}
    return pytest.mark.parametrize("name", in_time(names, quick.__contains__))


def _by_hand(tx, mesh, specs, params):
    """One update in ``shard_map``. A scalar of the state belongs to all devices."""
    state = tx.init(params)
    state_specs = optax.tree.map_params(
        tx,
        lambda x, spec: spec if jnp.ndim(x) else P(),
        state,
        specs,
        transform_non_params=lambda _: P(),
    )
    update = jax.shard_map(
        tx.update,
        mesh=mesh,
        in_specs=(specs, state_specs, specs),
        out_specs=(specs, state_specs),
    )
    return jax.jit(update), state


# Eight devices: two leaves in shards, one of them along its second axis, and two whole.
SHAPES_8 = {"rows": (8, 2), "columns": (3, 8), "whole": (2,), "scalar": ()}
SPECS_8 = {"rows": P("x"), "columns": P(None, "x"), "whole": P(), "scalar": P()}
AXES_8 = {"rows": "x", "columns": "x", "whole": None, "scalar": None}


def _make_trees_8():
    """Parameters, and gradients that are small and large against the thresholds."""
    rng = np.random.default_rng(0)

    def tree(scale):
        return {
            name: jnp.asarray(scale * rng.standard_t(1.5, size=shape), jnp.float32)
            for name, shape in SHAPES_8.items()
        }

    return tree(1.0), [tree(scale) for scale in (1.0, 0.02, 30.0)]


@functools.cache
def _run_whole(name):
    params, grads = _make_trees_8()
    tx = WITH_NORMS[name]()
    return run(jax.jit(tx.update), grads, params, tx.init(params))


def _run_placed(tx, kind, by_hand):
    mesh = make_mesh(kind, (8,), ("x",))
    params, grads = _make_trees_8()
    params, *grads = (place(tree, mesh, SPECS_8) for tree in (params, *grads))
    with jax.set_mesh(mesh):
        if by_hand:
            update, state = _by_hand(tx, mesh, SPECS_8, params)
        else:
            update, state = jax.jit(tx.update), tx.init(params)
        return run(update, grads, params, state)


@pytest.mark.parametrize(
    "kind",
    [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.nightly)],
    ids=str,
)
@each_norm(KINDS)
def test_eight_devices_under_jit(name, kind):
    got = _run_placed(WITH_NORMS[name](), kind, by_hand=False)
    assert_trees_close(got, _run_whole(name), 2e-6)  # sums in another order


@each_norm_in_turn(0)
def test_eight_devices_in_shard_map(name):
    _check_in_shard_map(name, AxisType.Auto)


@pytest.mark.parametrize(
    "name", in_time({name: name for name in WITH_NORMS}, lambda name: name in KINDS)
)
def test_eight_devices_in_shard_map_of_typed_arrays(name):
    _check_in_shard_map(name, AxisType.Explicit)


def _check_in_shard_map(name, kind):
    got = _run_placed(WITH_NORMS[name](axis_name=AXES_8), kind, by_hand=True)
    assert_trees_close(got, _run_whole(name), 2e-6)


@each_norm(KINDS)
def test_eight_devices_in_pmap(name):
    def split(leaf, spec):
        if spec == P():
            return jnp.stack([leaf] * 8)
        return jnp.stack(jnp.split(leaf, 8, axis=spec.index("x")))

    def join(leaf, spec):
        if spec == P():
            return leaf[0]
        return jnp.concatenate(list(leaf), axis=spec.index("x"))

    params, grads = _make_trees_8()
    params, *grads = (jax.tree.map(split, t, SPECS_8) for t in (params, *grads))
    tx = WITH_NORMS[name](axis_name=AXES_8)
    init, update = (
        jax.pmap(f, axis_name="x", devices=jax.devices("cpu")[:8])
        for f in (tx.init, tx.update)
    )
    history, _ = run(update, grads, params, init(params))
    got = [jax.tree.map(join, updates, SPECS_8) for updates in history]
    assert_trees_close(got, _run_whole(name)[0], 2e-6)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(AxisType.Auto, marks=pytest.mark.nightly), AxisType.Explicit],
    ids=str,
)
def test_eight_devices_with_averages_in_bfloat16(kind):
    """Each shard draws the rounding of its own numbers, each within 2^-8."""
    make = functools.partial(
        oht.lambc, 0.1, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16
    )
    want, _ = _run_placed(make(), kind, by_hand=False)
    got, _ = _run_placed(make(axis_name=AXES_8), kind, by_hand=True)
    assert_trees_close(got, want, 2**-7)


@pytest.mark.parametrize("size", [1e-25, 1e25])
@each_norm(["norm", "norm-leaf", "moment-leaf", "ratio"])
def test_shard_map_where_squares_leave_float32(name, size):
    """All devices must agree to take the second pass, or they wait for each other."""
    make = WITH_NORMS[name]
    params = make_params()
    grads = {"kernel": jnp.ones((4, 2)), "bias": [jnp.ones(2), jnp.ones(())]}
    grads["kernel"] = grads["kernel"].at[0, 0].set(size)
    grads = [jax.tree.map(lambda g: g if size > 1 else g * size, grads)]
    update, state = _by_hand(make(axis_name=AXES), make_mesh(), BY_HAND, params)
    got = run(update, grads, params, state)
    whole = make()
    want = run(jax.jit(whole.update), grads, params, whole.init(params))
    assert_trees_close(got, want, 2e-6)


def test_shard_map_over_two_axes():
    mesh, params, grads = make_mesh(), make_params(), make_grads()
    axes = {"kernel": ("x", "y"), "bias": ["y", None]}
    update, state = _by_hand(oht.clip_by_norm(1.0, axis_name=axes), mesh, SPECS, params)
    got = run(update, grads, params, state)
    whole = oht.clip_by_norm(1.0)
    want = run(jax.jit(whole.update), grads, params, whole.init(params))
    assert_trees_close(got, want, 2e-6)


def test_one_axis_name_for_all_leaves():
    mesh = make_mesh(shape=(2,), names=("x",))
    grads = [{"a": jnp.ones(8), "b": -jnp.ones((2, 4))}]
    specs = {"a": P("x"), "b": P("x")}
    for scope, norm in (("global", 4.0), ("leaf", 8**0.5)):
        tx = oht.clip_by_norm(1.0, scope=scope, axis_name="x")
        update, state = _by_hand(tx, mesh, specs, grads[0])
        (updates,), _ = run(update, grads, grads[0], state)
        np.testing.assert_allclose(updates["a"], 1 / norm, rtol=1e-6)
        np.testing.assert_allclose(updates["b"], -1 / norm, rtol=1e-6)


def test_shard_map_needs_no_axis_name_for_coordinates():
    params, grads = make_params(), make_grads()
    for tx in (oht.acclip(0.1, normalize=True), oht.cclip(0.1, 0.5)):
        update, state = _by_hand(tx, make_mesh(), SPECS, params)
        got = run(update, grads, params, state)
        want = run(jax.jit(tx.update), grads, params, tx.init(params))
        assert_trees_close(got, want, 2e-6)


def test_a_global_clip_in_shard_map_sees_all_shards():
    """optax takes the norm of each shard: the total is the root of 2, not 1."""
    mesh, grads = make_mesh(shape=(2,), names=("x",)), jnp.array([3.0, 4.0])

    def norm_of(tx):
        update, state = _by_hand(tx, mesh, P("x"), grads)
        return np.linalg.norm(update(grads, state, grads)[0])

    theirs = norm_of(optax.clip_by_global_norm(1.0))
    np.testing.assert_allclose(theirs, 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(norm_of(oht.clip_by_norm(1.0, axis_name="x")), 1.0)


@each_norm_in_turn(1)
def test_shard_map_with_the_state_made_inside(name):
    """Sums over devices do not vary with them, nor may the zeros they start from."""
    make = WITH_NORMS[name]
    tx = make(axis_name=AXES)

    def two_steps(params, *grads):
        state = tx.init(params)

        def step(state, g):
            updates, state = tx.update(g, state, params)
            return state, updates

        _, updates = jax.lax.scan(step, state, jax.tree.map(_stack, *grads))
        return jax.tree.map(lambda u: u[-1], updates)

    params, grads = make_params(), make_grads()
    by_hand = jax.shard_map(
        two_steps,
        mesh=make_mesh(),
        in_specs=(BY_HAND,) * (1 + len(grads)),
        out_specs=BY_HAND,
    )
    whole = make()
    want, _ = run(jax.jit(whole.update), grads, params, whole.init(params))
    assert_trees_close(jax.jit(by_hand)(params, *grads), want[-1], 2e-6)


def _stack(*leaves):
    return jnp.stack(leaves)
