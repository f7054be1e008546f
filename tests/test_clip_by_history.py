"""`clip_by_history`: what it promises beside the reference trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from optax_heavytail import _history
from tests.compare import assert_trees_equal
from tests.driving import follow, jitted
from tests.in_time import only

ZERO = {"w": np.zeros(2, np.float32)}


def lengths(tx, norms):
    """Of what comes out for gradients of these norms, all in one direction."""
    grads = [{"w": np.float32([0.6, 0.8]) * np.float32(norm)} for norm in norms]
    updates, _, state = follow(tx, grads, ZERO)
    return [float(np.linalg.norm(u["w"])) for u in updates], state


def test_below_the_limit_no_bit_changes():
    tx = jitted(oht.clip_by_history(warmup_steps=3))
    rng = np.random.default_rng(0)
    state = tx.init(jnp.zeros(50))
    for _ in range(40):
        grads = jnp.asarray(rng.normal(size=50), jnp.float32)
        updates, state = tx.update(grads, state)
        assert_trees_equal(updates, grads)
    assert int(state.num_clipped) == 0
    # Twice a norm near 7: one of 70 is shortened.
    updates, state = tx.update(10 * grads, state)
    np.testing.assert_allclose(
        jnp.linalg.norm(updates), oht.get_threshold(state), rtol=1e-6
    )
    assert int(state.num_clipped) == 1


@pytest.mark.parametrize("window", only({4, 5}, [4, 5, 20]))
def test_a_level_that_rises_for_good_is_adopted(window):
    """After half a window and one: what the docstring says."""
    tx = oht.clip_by_history(window=window, warmup_steps=2)
    found, state = lengths(tx, [1.0] * window + [10.0] * (window // 2 + 3))
    after = np.array(found[window:])
    assert int(state.num_clipped) in (window // 2, window // 2 + 1)
    np.testing.assert_allclose(after[: window // 2], 2.0, rtol=1e-6)
    np.testing.assert_allclose(after[window // 2 + 1 :], 10.0, rtol=1e-6)


@pytest.mark.parametrize("spike", [10.0, 1e4, 1e30])
def test_adam_behind_it_hardly_moves_and_never_stalls(spike):
    """Steady gradients, one spike: the drift from where the run would be without."""
    grads = [1.0] * 100 + [spike] + [1.0] * 300
    steady, _ = steps_of_adam(oht.clip_by_history(), [1.0] * 401)
    found, _ = steps_of_adam(oht.clip_by_history(), grads)
    drift = np.abs(np.cumsum(np.array(found) - steady)) / 1e-3
    assert drift.max() <= 9
    assert min(found) > 0.5e-3
    alone, _ = steps_of_adam(optax.identity(), grads)
    if spike == 1e4:  # what it guards against
        assert min(alone) < 0.1e-3


def steps_of_adam(clip, sizes):
    tx = optax.chain(clip, optax.adam(1e-3))
    grads = [{"w": np.float32([size])} for size in sizes]
    updates, _, state = follow(tx, grads, {"w": np.zeros(1, np.float32)})
    return [-float(u["w"][0]) for u in updates], state


@pytest.mark.parametrize("bad", only({np.inf}, [np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_is_zero_and_leaves_every_statistic(bad):
    tx = jitted(oht.clip_by_history(warmup_steps=2, scope="leaf"))
    good = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
    state = tx.init(good)
    for _ in range(3):
        _, state = tx.update(good, state)
    updates, later = tx.update({**good, "a": jnp.array([bad, 4.0])}, state)
    assert updates["a"].tolist() == [0.0, 0.0]
    assert updates["b"].tolist() == [1.0]
    assert later.history.seen.tolist() == [3, 4]  # of a alone
    np.testing.assert_array_equal(later.history.numbers[0], state.history.numbers[0])
    assert_trees_equal(later.threshold["a"], state.threshold["a"])
    loud = jitted(oht.clip_by_history(nonfinite="propagate"))
    updates, later = loud.update(jnp.array([bad, 4.0]), loud.init(jnp.zeros(2)))
    assert np.isnan(updates).all()
    assert int(later.history.seen) == 0


def test_no_limit_is_none_for_norms_beyond_the_largest_number():
    tx = jitted(oht.clip_by_history(warmup_steps=3))
    grads = jnp.full(4, 3e38)
    updates, state = tx.update(grads, tx.init(grads))
    assert_trees_equal(updates, grads)
    assert float(state.kept) == 1.0
    assert int(state.num_clipped) == 0


def test_a_loss_times_a_constant_changes_nothing():
    """But for the constant: a power of two, so that no rounding differs."""
    norms = np.abs(np.random.default_rng(1).standard_cauchy(60)) + 0.1
    found, _ = lengths(oht.clip_by_history(window=7, warmup_steps=3), norms)
    scaled, _ = lengths(oht.clip_by_history(window=7, warmup_steps=3), norms * 2.0**-10)
    assert scaled == [2.0**-10 * x for x in found]
    assert found != norms.tolist()


def test_layers_are_leaves():
    rng = np.random.default_rng(2)
    stacked = oht.clip_by_history(
        window=3, scope="leaf", layer_axis={"w": 1}, warmup_steps=1
    )
    single = oht.clip_by_history(window=3, scope="leaf", warmup_steps=1)
    stacked, single = jitted(stacked), jitted(single)
    states = [stacked.init({"w": jnp.zeros((2, 3))})]
    states.append(single.init([jnp.zeros(2)] * 3))
    for _ in range(6):
        grads = jnp.asarray(rng.standard_t(1.5, size=(2, 3)), jnp.float32)
        got, states[0] = stacked.update({"w": grads}, states[0])
        want, states[1] = single.update(list(grads.T), states[1])
        np.testing.assert_allclose(got["w"], np.stack(want, 1), rtol=1e-6)
    want = np.stack(oht.get_threshold(states[1]))
    np.testing.assert_allclose(oht.get_threshold(states[0])["w"], want, rtol=1e-6)


def test_a_leaf_outside_the_mask_is_in_no_norm():
    tx = jitted(oht.clip_by_history(warmup_steps=1, mask={"a": True, "b": False}))
    state = tx.init({"a": jnp.zeros(1), "b": jnp.zeros(1)})
    for a, b in ((1.0, 1.0), (5.0, jnp.nan)):
        updates, state = tx.update({"a": jnp.array([a]), "b": jnp.array([b])}, state)
    assert updates["a"].tolist() == [2.0]
    assert np.isnan(updates["b"][0])


def test_the_state_is_small():
    params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}
    for scope, units in (("global", 1), ("leaf", 2)):
        state = oht.clip_by_history(scope=scope).init(params)
        assert sum(x.size for x in jax.tree.leaves(state)) <= units * 104


@pytest.mark.parametrize("tree", [{}, {"w": jnp.zeros((0, 2))}, {"w": jnp.zeros(2)}])
@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_nothing_happens_to_nothing(tree, scope):
    tx = oht.clip_by_history(scope=scope, warmup_steps=0)

    @jax.jit
    def two_steps(tree):
        first, state = tx.update(tree, tx.init(tree))
        return first, *tx.update(tree, state)

    *both, state = two_steps(tree)
    for updates in both:
        assert_trees_equal(updates, tree)
    assert not np.any(state.history.seen)


def test_devices_share_a_norm():
    """The shards of a gradient on four devices are clipped as the whole is."""
    mesh = jax.make_mesh(
        (4,),
        ("x",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices("cpu")[:4],
    )
    spec, whole = jax.sharding.PartitionSpec("x"), jax.sharding.PartitionSpec()
    tx = oht.clip_by_history(warmup_steps=1, axis_name="x")
    state = tx.init(jnp.zeros(1))
    specs = jax.tree.map(lambda _: whole, state)
    update = jax.jit(
        jax.shard_map(
            tx.update, mesh=mesh, in_specs=(spec, specs), out_specs=(spec, specs)
        )
    )
    for grads in (jnp.ones(4), jnp.full(4, 9.0)):
        updates, state = update(grads, state)
    assert updates.tolist() == [2.0] * 4
    assert float(state.threshold) == 4.0


@pytest.mark.parametrize("size", [1, 2, 7])
def test_quantiles_are_numpys(size):
    rng = np.random.default_rng(size)
    history = _history.empty((3,), 7, jnp.float32)
    numbers = rng.standard_cauchy((size, 3)) ** 2
    for row in numbers:
        history = _history.append(history, jnp.asarray(row), jnp.ones(3, bool))
    for q in (0.0, 0.1, 0.5, 0.9, 1.0):
        want = np.quantile(numbers.astype(np.float32), q, axis=0)
        np.testing.assert_allclose(_history.quantile(history, q), want, rtol=1e-6)
