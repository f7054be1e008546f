"""Traps met in widely used optimizer libraries: each is shown, then shown avoided.

docs/traps.md lists them all, also those that are tested elsewhere.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import optax_heavytail as oht
from optax_heavytail import testing
from tests import reference
from tests.compare import assert_leaf_close, assert_trees_close, types
from tests.driving import follow, jitted, one_step
from tests.in_time import in_time, in_turn
from tests.registry import CASES
from tests.test_sharding import make_mesh


def _norm(tree):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


def test_float16_gradients_of_300_do_not_vanish():
    grads = jnp.full(8, 300.0, jnp.float16)
    assert np.isinf(optax.tree.norm(grads))
    np.testing.assert_array_equal(one_step(optax.clip_by_global_norm(1.0), grads), 0)
    for tx in (
        oht.clip_by_norm(1.0),
        oht.clip_by_norm(1.0, scope="leaf"),
        oht.clip_by_moment(scope="global", normalize=True),
        oht.gclip(1.0, 1.0, b1=0.0),
    ):
        # Eight float16 entries, each rounded to 2^-11.
        np.testing.assert_allclose(_norm(one_step(tx, grads)), 1.0, rtol=2**-11)


def test_tiny_norms_do_not_vanish():
    """The square of 1e-25 is 0 in float32, and a naive norm divides by it."""
    grads = jnp.array([3e-25, 4e-25])
    assert float(optax.tree.norm(grads)) == 0.0
    got = one_step(oht.clip_by_norm(1e-25), grads)
    np.testing.assert_allclose(got, [6e-26, 8e-26], rtol=1e-6)


def test_one_infinite_entry_does_not_silently_zero_the_others():
    grads = jnp.array([1.0, jnp.inf, 2.0])
    theirs = one_step(optax.clip_by_global_norm(1.0), grads)
    np.testing.assert_array_equal(theirs, [0.0, np.nan, 0.0])
    theirs = one_step(optax.clip_by_global_norm(1.0), grads.at[1].set(jnp.nan))
    assert np.all(np.isnan(theirs))
    for scope in ("global", "leaf"):
        loud = one_step(oht.clip_by_norm(1.0, scope=scope), grads)
        assert np.all(np.isnan(loud))
        mended = oht.clip_by_norm(1.0, scope=scope, nonfinite="zero")
        want = np.array([1.0, 0.0, 2.0]) / 5**0.5
        for bad in (jnp.inf, -jnp.inf, jnp.nan):
            got = one_step(mended, grads.at[1].set(bad))
            np.testing.assert_allclose(got, want, rtol=1e-6)


def test_trust_ratios_have_an_upper_bound():
    params, updates = jnp.full(4, 500.0), jnp.full(4, 0.5)
    theirs = one_step(optax.scale_by_trust_ratio(), updates, params)
    np.testing.assert_allclose(theirs, 1000 * updates, rtol=1e-6)
    for upper in (1.0, 10.0):
        tx = oht.scale_by_clipped_trust_ratio(0.0, upper)
        np.testing.assert_allclose(
            one_step(tx, updates, params), upper * updates, rtol=1e-6
        )


def test_finite_entries_whose_norm_overflows_are_not_taken_for_infinite():
    grads = jnp.full(16, 3e38)
    assert np.isinf(_float32_norm(grads))
    for scope in ("global", "leaf"):
        got = one_step(oht.clip_by_norm(8.0, scope=scope), grads)
        np.testing.assert_allclose(got, 2.0, rtol=1e-6)


def _float32_norm(x):
    with np.errstate(over="ignore"):
        return np.sqrt(np.sum(np.square(np.asarray(x))))


def test_hyperparameters_stay_float32_beside_bfloat16_parameters():
    params, grads = jnp.ones(2, jnp.bfloat16), jnp.full(2, 0.5, jnp.bfloat16)
    careless = optax.inject_hyperparams(optax.adam)(0.1, b2=0.999)
    assert float(careless.init(params).hyperparams["b2"]) == 1.0
    assert np.all(np.isnan(one_step(careless, grads, params)))

    kwargs = {"b2": 0.999, "normalize": True, "weight_decay": 0.0}
    inject = optax.inject_hyperparams(oht.acclip, hyperparam_dtype=jnp.float32)
    tx = inject(learning_rate=0.1, **kwargs)
    assert float(tx.init(params).hyperparams["b2"]) == np.float32(0.999)
    got = one_step(tx, grads, params)
    want = one_step(oht.acclip(0.1, **kwargs), grads, params)
    assert got.dtype == jnp.bfloat16
    assert_trees_close(got, want, 2**-8)  # one rounding to bfloat16


@functools.partial(jax.jit, static_argnums=0)
def _two_steps_in_scan(tx, grads, params):
    def step(state, _):
        updates, state = tx.update(grads, state, params)
        return state, updates

    return jax.lax.scan(step, tx.init(params), length=2)


OURS = {
    name: case.make()
    for name, case in CASES.items()
    if case.any_tree and not case.variant and not case.extra_args
}
MIXES = [
    (jnp.bfloat16, jnp.float32),
    (jnp.float32, jnp.bfloat16),
    (jnp.float16, jnp.bfloat16),
]


def _mixed(params_dtype, grads_dtype):
    params = {"w": jnp.ones((2, 2), params_dtype), "b": jnp.ones(2, params_dtype)}
    return params, jax.tree.map(lambda p: jnp.full_like(p, 0.5, grads_dtype), params)


@pytest.mark.parametrize(
    "theirs",
    [
        optax.adam(0.1),
        optax.amsgrad(0.1),
        optax.lamb(0.1),
        optax.lion(0.1),
        optax.sgd(0.1, momentum=0.9),
    ],
    ids=["adam", "amsgrad", "lamb", "lion", "sgd"],
)
def test_elsewhere_states_change_their_types_beside_bfloat16_parameters(theirs):
    params, grads = _mixed(jnp.bfloat16, jnp.float32)
    fresh = jax.eval_shape(theirs.init, params)
    _, state = jax.eval_shape(theirs.update, grads, fresh, params)
    assert types(state) != types(fresh)
    with pytest.raises(TypeError, match="carry"):
        _two_steps_in_scan(theirs, grads, params)


@pytest.mark.parametrize("tx", in_time(OURS, in_turn(OURS, 1).__contains__))
def test_states_keep_their_types_beside_bfloat16_parameters(tx):
    params, grads = _mixed(jnp.bfloat16, jnp.float32)
    scan = functools.partial(_two_steps_in_scan, tx)
    state, updates = jax.eval_shape(scan, grads, params)
    assert types(state) == types(jax.eval_shape(tx.init, params))
    assert all(u.dtype == jnp.float32 for u in jax.tree.leaves(updates))


def test_branches_agree_under_every_mix_of_dtypes():
    """A ``lax.cond`` of which one branch has the dtype of the parameters fails."""
    params, grads = _mixed(jnp.bfloat16, jnp.float32)
    with pytest.raises(TypeError, match="cond branches"):
        one_step(optax.novograd(0.1), grads, params)
    with_branches = ("gclip", "ratio", "larsc-all", "neumann", "skip")
    for name, mix in itertools.product(with_branches, MIXES):
        params, grads = _mixed(*mix)
        updates = jax.eval_shape(functools.partial(one_step, OURS[name]), grads, params)
        assert types(updates) == types(grads)


def test_what_a_state_reports_is_in_it_from_the_start():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    theirs = optax.monitor({"norm": optax.tree.norm})
    fresh = theirs.init(params)
    _, state = theirs.update(grads, fresh, params)
    assert jax.tree.structure(state) != jax.tree.structure(fresh)
    with pytest.raises(TypeError, match="carry"):
        _two_steps_in_scan(theirs, grads, params)
    for tx, read in (
        (oht.adaptive_coordinate_threshold(), oht.get_threshold),
        (oht.clip_by_moment(scope="leaf"), oht.get_threshold),
        (oht.scale_by_clipped_trust_ratio(), oht.get_trust_ratio),
        (oht.ema(0.9, debias=False), oht.get_momentum),
        (oht.skip_if_unsafe(optax.sgd(0.1)), lambda state: state.norms),
    ):
        scan = functools.partial(_two_steps_in_scan, tx)
        state, _ = jax.eval_shape(scan, grads, params)
        template = jax.eval_shape(tx.init, params)  # as a checkpoint is restored into
        assert types(read(state)) == types(read(template))
        assert jax.tree.structure(template) == jax.tree.structure(state)


def test_a_global_clip_in_each_group_is_not_a_global_clip():
    grads = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    labels = {"a": "a", "b": "b"}
    for clip in (optax.clip_by_global_norm(1.0), oht.clip_by_norm(1.0)):
        each = optax.partition({"a": clip, "b": clip}, labels)
        np.testing.assert_allclose(_norm(one_step(each, grads)), 2**0.5, rtol=1e-6)
    groups = {"a": oht.scale_by_learning_rate(1.0), "b": optax.identity()}
    around = optax.chain(oht.clip_by_norm(1.0), optax.partition(groups, labels))
    got = one_step(around, grads)
    np.testing.assert_allclose(_norm(got), 1.0, rtol=1e-6)
    np.testing.assert_allclose(got["a"], -0.6, rtol=1e-6)
    np.testing.assert_allclose(got["b"], 0.8, rtol=1e-6)


def test_zero_gradients_stay_zero():
    zeros = jnp.zeros(3)
    assert np.all(np.isnan(one_step(optax.contrib.normalize(), zeros)))
    scopes = itertools.product(("coordinate", "leaf", "global"), (0.0, 1e-5))
    for scope, eps in scopes:
        tx = jitted(oht.clip_by_moment(scope=scope, eps=eps, normalize=True))
        updates, state = tx.update(zeros, tx.init(zeros))
        np.testing.assert_array_equal(updates, 0)
        _, state = tx.update(zeros + 1, state)
        np.testing.assert_array_equal(tx.update(zeros, state)[0], 0)
    for tx in (
        oht.clip_by_norm(1.0),
        oht.normalize_by_norm(offset=0.0),
        oht.normalized_gd(0.1, offset=0.0),
        oht.clipped_gd(0.1, 1.0),
        oht.scale_by_clipped_trust_ratio(None, None),
    ):
        np.testing.assert_array_equal(one_step(tx, zeros), 0)


def test_negative_gradients_have_fractional_moments():
    grads = jnp.array([-4.0])
    theirs = optax.tree.update_moment(grads, jnp.zeros(1), 0.5, 1.5)
    assert np.all(np.isnan(theirs))
    tx = oht.adaptive_coordinate_threshold(b2=0.5, alpha=1.5)
    _, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(state.threshold, 0.5 ** (1 / 1.5) * 4, rtol=1e-6)


def test_a_bad_step_does_not_poison_the_statistics():
    """An average of the losses or norms that takes in one NaN stays NaN."""
    good, bad = jnp.array([1.0, 2.0]), jnp.array([1.0, jnp.nan])
    theirs = optax.ema(0.9)
    _, poisoned = theirs.update(bad, theirs.init(good))
    assert np.isnan(theirs.update(good, poisoned)[0][1])
    for scope in ("coordinate", "leaf", "global"):
        tx = jitted(oht.clip_by_moment(scope=scope, b2=0.5))
        _, state = tx.update(good, tx.init(good))
        _, state = tx.update(bad, state)
        updates, state = tx.update(good, state)
        assert np.all(np.isfinite(updates))
        assert np.all(np.isfinite(jax.tree.leaves(state.threshold)[0]))


def test_spikes_are_measured_before_they_are_clipped():
    """A norm measured after the clip could never exceed the threshold."""
    tx = jitted(oht.clip_by_moment(scope="global", b2=0.9, eps=0.0))
    state = tx.init(jnp.zeros(1))
    for _ in range(50):
        _, state = tx.update(jnp.ones(1), state)
    _, spiked = tx.update(jnp.full(1, 1000.0), state)
    np.testing.assert_allclose(spiked.threshold, 0.9 * state.threshold + 100, rtol=1e-6)


def _naive_clip(exponent, eps=1e-6):
    """1 / ||g||^exponent without the minimum with 1."""

    def scale(updates, params):
        del params
        factor = 1 / (optax.tree.norm(updates) ** exponent + eps)
        return jax.tree.map(lambda x: factor * x, updates)

    return optax.stateless(scale)


@pytest.mark.parametrize("exponent", [1, 2])
def test_elsewhere_clips_scale_small_gradients_up(exponent):
    grads = jnp.array([3e-2, 4e-2])
    assert _norm(one_step(_naive_clip(exponent), grads)) > 0.9
    with pytest.raises(AssertionError, match="never_increases_norm"):
        testing.check_never_increases_norm(_naive_clip(exponent))


@pytest.mark.parametrize(
    "clip",
    in_time(
        {
            "norm": oht.clip_by_norm(1.0),
            "norm-leaf": oht.clip_by_norm(1.0, scope="leaf"),
            "norm-zero": oht.clip_by_norm(1.0, nonfinite="zero"),
            "value": oht.clip_by_value(1.0),
            "moment": oht.clip_by_moment(b2=0.5, eps=0.0),
            "leaf": oht.clip_by_moment(b2=0.5, eps=0.0, scope="leaf"),
            "global": oht.clip_by_moment(b2=0.5, eps=0.0, scope="global"),
        },
        {"norm-leaf", "moment", "global"}.__contains__,
    ),
)
def test_no_clip_ever_increases_a_norm(clip):
    testing.check_never_increases_norm(clip)


def test_small_updates_are_not_changed():
    grads = jnp.array([3e-4, 4e-4])
    for tx in (
        oht.clip_by_norm(1.0),
        oht.clip_by_norm(1.0, scope="leaf"),
        oht.clip_by_value(1.0),
        oht.clip_by_moment(b2=0.0, eps=0.0),
    ):
        np.testing.assert_array_equal(one_step(tx, grads), grads)


def test_thresholds_do_not_stall_beside_bfloat16_parameters():
    """In bfloat16 an average stops where its increments fall below 2^-9."""
    params = jnp.zeros(2, jnp.bfloat16)
    grads = jnp.ones_like(params)

    def after_10_000_steps(tx):
        def step(state, _):
            return tx.update(grads, state, params)[1], None

        run = jax.jit(lambda s: jax.lax.scan(step, s, length=10_000)[0])
        return run(tx.init(params))

    stalled = after_10_000_steps(optax.scale_by_adam(b2=0.999)).nu
    assert np.all(stalled == 0.5)
    for alpha in (1.0, 1.5, 2.0):
        state = after_10_000_steps(oht.scale_by_acclip(b2=0.999, alpha=alpha))
        # 10,000 roundings of which each forgets all but the last 1,000: 1e-4.
        want = (1 - 0.999**10_000) ** (1 / alpha)
        np.testing.assert_allclose(oht.get_threshold(state), want, rtol=1e-4)
        np.testing.assert_allclose(oht.get_momentum(state), 1.0, rtol=1e-5)


def _regression_grads(weights, batch):
    """Of least squares, by hand: ``jax.grad`` would sum over the devices itself."""
    inputs, targets = batch
    return inputs.T @ (inputs @ weights - targets) / len(targets)


def _accumulated(grad_fn, params, batches):
    """The mean over microbatches as the trainer takes it."""

    def add(running, batch):
        return running.add(grad_fn(params, batch)), None

    first, rest = (
        jax.tree.map(lambda x, k=k: x[k], batches) for k in (0, slice(1, None))
    )
    grads = grad_fn(params, first)
    start = oht.aggregation.RunningMean.empty(grads).add(grads)
    return jax.lax.scan(add, start, rest)[0].result(grads)


def _in_data_parallel(step):
    """Parameters whole on two devices, the examples of a microbatch spread."""
    mesh, examples = make_mesh(shape=(2,), names=("x",)), P(None, "x")
    specs = (P(), (examples, examples))
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P()))


def _microbatches():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(6, 4, 3)), rng.standard_t(1.5, size=(6, 4))
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(targets, jnp.float32)


def test_elsewhere_accumulation_is_a_wrapper_with_a_state():
    """It fails in ``shard_map``, holds one more gradient, and never forgets a NaN."""

    def steps(weights, batches):
        tx = optax.MultiSteps(optax.sgd(0.1), 6)
        state = tx.init(weights)
        for k in range(6):
            batch = jax.tree.map(lambda x, k=k: x[k], batches)
            updates, state = tx.update(_regression_grads(weights, batch), state)
        return jax.lax.pmean(updates, "x")

    with pytest.raises(TypeError, match="cond branches"):
        _in_data_parallel(steps)(jnp.ones(3), _microbatches())
    tx = optax.MultiSteps(optax.sgd(0.1), 2)
    state = tx.init(jnp.ones(3))
    assert state.acc_grads.shape == (3,)
    for bad in (1.0, jnp.nan, 1.0, 1.0):
        updates, state = tx.update(jnp.full(3, bad), state)
    assert np.all(np.isnan(updates))


@pytest.mark.parametrize(
    "tx",
    [oht.acclip(0.1, normalize=True), oht.lambc(0.1, weight_decay=0.1)],
    ids=["acclip", "lambc"],
)
def test_accumulation_in_a_scan_is_one_large_batch(tx):
    def step(weights, batches):
        grads = _accumulated(_regression_grads, weights, batches)
        grads = jax.lax.pmean(grads, "x")
        return tx.update(grads, tx.init(weights), weights)[0]

    weights, batches = jnp.ones(3), _microbatches()
    whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
    want = one_step(tx, _regression_grads(weights, whole), weights)
    got = _in_data_parallel(step)(weights, batches)
    assert_leaf_close(got, want, 1e-6)  # a sum of 24 in another order


def test_accumulation_in_bfloat16_stalls_and_in_float32_does_not():
    ones = jnp.ones((512, 2), jnp.bfloat16)
    naive, _ = jax.lax.scan(lambda total, g: (total + g, None), 0 * ones[0], ones)
    np.testing.assert_array_equal(naive, 256)
    mean = _accumulated(lambda params, g: g, None, ones)
    tx = oht.gclip(0.1, 10.0, b1=0.0)
    update = one_step(tx, mean)  # a bfloat16
    np.testing.assert_allclose(update, -0.1, rtol=2**-8)


def test_the_repulsive_force_of_tiny_gradients_stays_finite():
    """beta / r^2 has no bound as published."""
    rng = np.random.default_rng(0)
    grads = [{"w": 1e-30 * rng.normal(size=4)} for _ in range(5)]
    start = {"w": np.zeros(4)}
    with np.errstate(all="ignore"):
        *_, (naive, _, _) = reference.neumann(
            start,
            grads,
            rate=lambda k: 0.1,
            mu=lambda k: 0.5,
            cubic=1e-7,
            repulsive=1e-5,
            ema_decay=0.99,
            is_reset=lambda k: k == 1,
            bounded=False,
        )
    assert not np.all(np.isfinite(naive["w"]))
    single = [jax.tree.map(np.float32, g) for g in grads]
    tx = oht.neumann(0.1, momentum=0.5)
    _, iterates, _ = follow(tx, single, {"w": np.zeros(4, np.float32)})
    assert 0 < _norm(iterates[-1]) < 1e-29


def test_masks_for_weight_decay_say_what_they_cover():
    """A path that no leaf has makes a mask that is empty, and nothing decays."""
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    by_name = jax.tree_util.tree_map_with_path(
        lambda path, _: "weight" in jax.tree_util.keystr(path), params
    )
    decay = optax.add_decayed_weights(0.1, by_name)
    assert _norm(one_step(decay, zeros, params)) == 0.0
    assert str(oht.mask_coverage(by_name, params)) == (
        "0 of 2 leaves, 0 of 9 parameters"
    )
    assert str(oht.mask_coverage(oht.decay_mask, params)) == (
        "1 of 2 leaves, 6 of 9 parameters"
    )
    for part in (params["dense"]["kernel"], params["dense"]["bias"]):
        with pytest.raises(ValueError, match="must cover some leaves and not all"):
            oht.decay_mask({"only": part})


@pytest.mark.parametrize("size", [1e-39, 1e-42, 1e-45])
def test_denormal_gradients_are_harmless(size):
    """Processors may take them for zeros; nothing may divide by what is left."""
    grads = np.float32([size, -size, 1.0])
    for g in (grads, grads[:2]):
        moments, clipped = _of_denormals(g)
        for updates in moments:
            assert np.all(np.isfinite(updates))
            assert np.all(np.abs(updates) <= 1 + 1e-6)
    for updates in clipped:
        assert np.all(np.abs(updates) <= 1.1 * size)


@jax.jit
def _of_denormals(grads):
    by_moment = [
        oht.clip_by_moment(scope=scope, eps=0.0, normalize=normalize)
        for scope in ("coordinate", "leaf", "global")
        for normalize in (False, True)
    ]
    by_norm = [oht.clip_by_norm(threshold) for threshold in (1e-30, 1.0, 1e30)]
    return [[one_step(tx, grads) for tx in clips] for clips in (by_moment, by_norm)]


def _lines(tx, leaves):
    """The length of the compiled program."""
    tree = {str(k): jnp.ones((4, 4)) for k in range(leaves)}
    lowered = jax.jit(tx.update).lower(tree, tx.init(tree), tree)
    return lowered.compile().as_text().count("\n")


def _scaled_norm_clip():
    """Divides by the largest entry, as textbooks have it."""

    def update(updates, state, params=None):
        del params
        leaves = jax.tree.leaves(updates)
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in leaves]))
        squares = sum(jnp.sum(jnp.square(x / largest)) for x in leaves)
        factor = jnp.minimum(1.0, 1.0 / (largest * jnp.sqrt(squares)))
        return jax.tree.map(lambda x: factor * x, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def test_programs_grow_no_faster_than_the_number_of_leaves():
    """A number made of n leaves and fused into n others costs n^2 to compile."""
    naive = _scaled_norm_clip()
    assert _lines(naive, 32) > 2.5 * _lines(naive, 16)
    for tx in (
        oht.clip_by_norm(1.0),
        oht.clip_by_moment(scope="global"),
        oht.clip_by_moment(scope="leaf"),
        oht.gclip(0.1, 1.0),
    ):
        assert _lines(tx, 32) < 2.1 * _lines(tx, 16)


def _sums_outside_of_branches(jaxpr):
    count = 0
    for eqn in jaxpr.eqns:
        count += eqn.primitive.name == "reduce_sum"
        if eqn.primitive.name != "cond":
            inner = jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
            )
            count += sum(
                _sums_outside_of_branches(getattr(x.jaxpr, "jaxpr", x.jaxpr))
                for x in inner
                if hasattr(x, "jaxpr")
            )
    return count


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_everything_is_looked_at_twice_only_where_a_sum_is_bad(scope):
    """The rescaled sums are in a branch: a step reads each gradient once for a norm."""
    grads = {"a": jnp.ones((65, 64)), "b": jnp.ones((66, 64)), "c": jnp.ones(5000)}
    tx = oht.clip_by_norm(1.0, scope=scope)
    jaxpr = jax.make_jaxpr(tx.update)(grads, tx.init(grads))
    assert "cond" in str(jaxpr)
    assert _sums_outside_of_branches(jaxpr.jaxpr) == len(grads)
