"""The flattened Neumann optimizer. Trajectories of the formula are in golden/."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests import reference
from tests.compare import (
    as_float64,
    assert_leaf_close,
    assert_trees_close,
    assert_trees_equal,
)
from tests.driving import follow, heavy_gradients, jitted, one_step, starting_point
from tests.in_time import only
from tests.registry import make_grads, make_params


def _mu(t):
    return min(max(1 - 1 / (1 + t), 0.5), 0.9)


def _rate(count):
    return 0.01 * 0.99**count


def norm(tree):
    return np.linalg.norm(
        np.concatenate([as_float64(x).ravel() for x in jax.tree.leaves(tree)])
    )


def _reset_steps(tx, steps):
    """The updates, from 1, after which the momentum is that of one gradient alone."""
    update, state = jax.jit(tx.update), tx.init(jnp.zeros(1))
    resets = []
    for step in range(1, steps + 1):
        announced = int(state.next_reset) == step
        _, state = update(jnp.ones(1), state, jnp.zeros(1))
        assert announced == np.allclose(state.mu, -0.1)
        resets += [step] * announced
    return resets


@pytest.mark.parametrize("burn_in", only({7}, [0, 7]))
@pytest.mark.parametrize("growth", [1, 2, 3])
def test_100_steps_follow_the_reference(growth, burn_in):
    resets = [burn_in + 1]
    interval = 5
    while resets[-1] < 100:
        resets.append(resets[-1] + interval)
        interval *= growth
    grads = heavy_gradients()
    want = reference.neumann(
        starting_point(),
        grads,
        rate=lambda k: _rate(k - 1),
        mu=_mu,
        cubic=1e-6,
        repulsive=0.05,
        ema_decay=0.9,
        is_reset=lambda k: k in resets,
        burn_in=burn_in,
    )
    with jax.enable_x64(True):
        tx = oht.neumann(
            _rate,
            cubic=1e-6,
            repulsive=0.05,
            repulsive_scale=1.0,
            ema_decay=0.9,
            burn_in_steps=burn_in,
            reset_interval=5,
            reset_growth=growth,
        )
        updates, iterates, state = follow(tx, grads)
    before = starting_point()
    for step, (w, _, _) in enumerate(want):
        for name in w:
            where = f"{name}, step {step}"
            # 100 steps of a few operations, each within 1e-16; w - v cancels.
            assert_leaf_close(iterates[step][name], w[name], 1e-9, where)
            moved = w[name] - before[name]
            np.testing.assert_allclose(
                updates[step][name], moved, rtol=1e-9, atol=1e-9 * norm(w)
            )
        before = w
    _, m, v = want[-1]
    assert_trees_close(state.mu, m, 1e-9)
    assert_trees_close(state.average, v, 1e-9)
    assert int(state.next_reset) == next(k for k in resets if k > 100)


def test_resets_by_default_only_at_the_start():
    assert _reset_steps(oht.neumann(0.1), 12) == [1]
    assert _reset_steps(oht.neumann(0.1, burn_in_steps=3), 12) == [4]


@pytest.mark.parametrize(
    ("growth", "want"),
    [(1, [1, 4, 7, 10, 13, 16]), (2, [1, 4, 10]), (3, [1, 4, 13])],
)
def test_intervals_between_resets_grow(growth, want):
    tx = oht.neumann(0.1, reset_interval=3, reset_growth=growth)
    assert _reset_steps(tx, 17) == want


def test_intervals_stop_growing_before_they_overflow():
    tx = jitted(oht.neumann(0.1, reset_interval=2**29))
    state = tx.init(jnp.zeros(1))
    never = np.iinfo(np.int32).max
    for want in (1 + 2**29, 1 + 3 * 2**29, never, never):
        state = state._replace(count=state.next_reset - 1)
        _, state = tx.update(jnp.ones(1), state, jnp.zeros(1))
        assert int(state.next_reset) == want
        assert 0 < int(state.interval) <= never


def test_a_step_needs_no_memory_beside_parameters_state_and_gradients():
    tx, params = oht.neumann(0.1), jax.ShapeDtypeStruct((256, 256), jnp.float32)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
        params, jax.eval_shape(tx.init, params), params
    )
    # A difference w - v of its own would be all 256 x 256 numbers.
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 256 * 256


def test_the_burn_in_is_plain_sgd():
    params, grads = make_params(), make_grads()
    tx = jitted(oht.neumann(_rate, burn_in_steps=3))
    state, sgd = tx.init(params), jitted(oht.scale_by_learning_rate(_rate))
    sgd_state = sgd.init(params)
    for g in grads[:3]:
        updates, state = tx.update(g, state, params)
        want, sgd_state = sgd.update(g, sgd_state)
        assert_trees_equal(updates, want)
        params = optax.apply_updates(params, updates)
        assert_trees_equal(state.average, params)
        assert_trees_equal(oht.neumann_eval_params(state, params), params)
        assert float(state.momentum_coefficient) == 0.0
        assert norm(state.mu) == 0.0
    updates, state = tx.update(grads[3], state, params)
    assert float(state.momentum_coefficient) == 0.5  # its count starts here
    want = jax.tree.map(lambda g: -1.5 * _rate(3) * g, grads[3])
    assert_trees_close(updates, want, 1e-6)


def test_the_momentum_is_a_schedule_from_the_end_of_the_burn_in():
    tx = jitted(oht.neumann(0.1, momentum=lambda count: 0.1 * count, burn_in_steps=2))
    state = tx.init(jnp.zeros(1))
    for want in (0.0, 0.0, 0.0, 0.1, 0.2, 0.3):
        _, state = tx.update(jnp.ones(1), state, jnp.zeros(1))
        np.testing.assert_allclose(state.momentum_coefficient, want, rtol=1e-6)
    tx = jitted(oht.neumann(0.1, momentum=0.75))
    _, state = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), jnp.zeros(1))
    assert float(state.momentum_coefficient) == 0.75


def test_the_default_momentum():
    tx = jitted(oht.neumann(0.1))
    state = tx.init(jnp.zeros(1))
    for t in range(1, 15):
        _, state = tx.update(jnp.ones(1), state, jnp.zeros(1))
        np.testing.assert_allclose(state.momentum_coefficient, _mu(t), rtol=1e-6)


def _second_step(word=None):
    """The update after a reset has displaced the parameters."""
    params = make_params()
    grads = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def step(repulsive, number):
        scale = number if word is None else word
        tx = oht.neumann(
            0.1, cubic=0.0, ema_decay=1.0, repulsive=repulsive, repulsive_scale=scale
        )
        updates, state = tx.update(grads, tx.init(params), params)
        moved = optax.apply_updates(params, updates)
        return tx.update(grads, state, moved)[0]

    return step


def test_the_repulsive_force_is_scaled_by_the_number_of_leaves_or_parameters():
    """Eleven parameters in three leaves."""
    by_number = _second_step()
    for word, number in (("leaves", 3.0), ("params", 11.0)):
        by_word = _second_step(word)
        got = by_word(0.01, 0.0)
        assert_trees_close(got, by_number(0.01, number), 1e-6)
        assert_trees_close(got, by_number(0.01 * number, 1.0), 1e-6)
        other = by_number(0.01, number + 1)
        assert norm(jax.tree.map(jnp.subtract, got, other)) > 1e-3
    assert inspect.signature(oht.neumann).parameters["repulsive_scale"].default == (
        "leaves"
    )


@pytest.mark.parametrize("size", [1e-3, 1e-10])
def test_the_repulsive_force_is_bounded(size):
    """As published it throws the parameters away when w is near v."""
    rng = np.random.default_rng(0)
    grads = [{"w": size * rng.normal(size=(23,))} for _ in range(5)]
    start = {"w": np.zeros(23)}
    run = functools.partial(
        reference.neumann,
        start,
        grads,
        rate=lambda k: 0.1,
        mu=_mu,
        cubic=1e-7,
        repulsive=1e-5 * 23,
        ema_decay=0.99,
        is_reset=lambda k: k == 1,
    )
    naive = run(bounded=False)[-1][0]
    assert norm(naive) > 5.0
    tx = oht.neumann(0.1, repulsive_scale="params")
    with jax.enable_x64(True):
        _, iterates, state = follow(tx, grads, start)
    # Each step at most doubles the gradient, and the momentum is at most 0.9.
    steps = np.arange(1, 6)
    assert norm(iterates[-1]) < 2 * size * np.sum(steps) * 23**0.5
    assert_leaf_close(iterates[-1]["w"], run()[-1][0]["w"], 1e-10)
    assert np.all(np.isfinite(state.average["w"]))


@pytest.mark.parametrize("repulsive", [0.0, 1e-5])
@pytest.mark.parametrize("size", [1e-33, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e17])
def test_sizes_whose_squares_leave_float32(size, repulsive):
    """r^2 of the cubic force is representable up to 1e18, its root beyond."""
    rng = np.random.default_rng(0)
    grads = [{"w": size * rng.normal(size=(4,))} for _ in range(4)]
    start = {"w": np.zeros(4)}
    want = reference.neumann(
        start,
        grads,
        rate=lambda k: 0.1,
        mu=_mu,
        cubic=1e-20,
        repulsive=repulsive,
        ema_decay=0.99,
        is_reset=lambda k: k == 1,
    )
    tx = oht.neumann(0.1, cubic=1e-20, repulsive=repulsive, repulsive_scale=1.0)
    single = [jax.tree.map(np.float32, g) for g in grads]
    _, iterates, state = follow(tx, single, {"w": np.zeros(4, np.float32)})
    for step, (w, _, _) in enumerate(want):
        # A few roundings, of which the difference w - v magnifies each.
        assert_leaf_close(iterates[step]["w"], w["w"], 1e-5, f"step {step}")
    _, m, v = want[-1]
    assert_leaf_close(state.mu["w"], m["w"], 1e-5)
    assert_leaf_close(state.average["w"], v["w"], 1e-5)


def test_zero_gradients_from_the_start_move_nothing():
    tx = jitted(oht.neumann(0.1, reset_interval=2))
    params = make_params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(zeros, state, params)
        assert norm(updates) == 0.0


@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan])
def test_bad_entries_are_loud_everywhere_by_the_next_update(bad):
    tx = jitted(oht.neumann(0.1))
    params = jnp.ones(3)
    state = tx.init(params)
    for grads in (jnp.ones(3), jnp.array([1.0, bad, 1.0]), jnp.ones(3)):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert np.all(np.isnan(params))


def test_a_bad_entry_of_the_burn_in_stays_in_its_coordinate_until_its_end():
    tx = jitted(oht.neumann(0.1, burn_in_steps=2))
    params = jnp.ones(2)
    updates, _ = tx.update(jnp.array([1.0, jnp.nan]), tx.init(params), params)
    np.testing.assert_allclose(updates[0], -0.1, rtol=1e-6)
    assert np.isnan(updates[1])


WRAPPED = {
    "bare": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip(100.0), tx),
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": [True, True]}),
    "partition": lambda tx: optax.partition(
        {"x": tx, "y": tx}, {"kernel": "x", "bias": ["y", "y"]}
    ),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_eval_params_are_those_before_the_displacement(name):
    """Without forces they are those of SGD with the same constant momentum."""
    tx = WRAPPED[name](oht.neumann(0.1, repulsive=0.0, cubic=0.0, momentum=0.5))
    params = inner = make_params()
    state, update = tx.init(params), jax.jit(tx.update)
    sgd = jitted(optax.sgd(0.1, momentum=0.5))
    sgd_state = sgd.init(params)
    for grads in make_grads()[:2]:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        inner_updates, sgd_state = sgd.update(grads, sgd_state)
        inner = optax.apply_updates(inner, inner_updates)
        got = jax.jit(oht.neumann_eval_params)(state, params)
        assert_trees_close(got, inner, 1e-6)


def test_eval_params_of_masked_leaves_are_the_parameters():
    tx = optax.masked(oht.neumann(0.1), {"kernel": True, "bias": [False, False]})
    params = make_params()
    _, state = tx.update(make_grads()[0], tx.init(params), params)
    got = oht.neumann_eval_params(state, params)
    assert_trees_equal(got["bias"], params["bias"])
    assert norm(jax.tree.map(jnp.subtract, got["kernel"], params["kernel"])) > 0


def test_eval_params_keep_the_dtype():
    params = jnp.ones(2, jnp.bfloat16)
    tx = oht.neumann(0.1)
    _, state = tx.update(jnp.ones(2), tx.init(params), params)
    assert oht.neumann_eval_params(state, params).dtype == jnp.bfloat16


def test_eval_params_need_one_neumann_state():
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="no Neumann momentum"):
        oht.neumann_eval_params(optax.sgd(0.1).init(params), params)
    two = optax.chain(oht.neumann(0.1), oht.neumann(0.1))
    with pytest.raises(ValueError, match="2 of Neumann momentum"):
        oht.neumann_eval_params(two.init(params), params)


def test_it_is_faster_than_gradient_descent_on_an_ill_conditioned_quadratic():
    hessian = jnp.geomspace(0.01, 1.0, 6)

    def error(tx, read):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(hessian * params, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (jnp.ones(6), tx.init(jnp.ones(6)))
        (params, state), _ = jax.lax.scan(step, start, length=150)
        return norm(read(state, params))

    theirs = error(optax.sgd(0.5), lambda state, params: params)
    ours = error(oht.neumann(0.5), oht.neumann_eval_params)
    assert ours < 0.1 * theirs


def test_unknown_words_of_repulsive_scale_are_named():
    with pytest.raises(ValueError, match="repulsive_scale") as error:
        oht.neumann(0.1, repulsive_scale="leafs")
    assert str(error.value).endswith(
        "must be one of ['leaves', 'params'], got 'leafs'."
    )


def test_types_of_the_state():
    state = oht.neumann(0.1).init({"w": jnp.ones(2, jnp.float16)})
    assert state.mu["w"].dtype == state.average["w"].dtype == jnp.float32
    assert state.momentum_coefficient.dtype == jnp.float32
    updates = one_step(oht.neumann(0.1), jnp.ones(2, jnp.float16), jnp.ones(2))
    assert updates.dtype == jnp.float16


def test_no_reset_where_the_count_saturates():
    tx = jitted(oht.neumann(0.1, momentum=0.9, repulsive=0.0))
    params = jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params)
    largest = jnp.array(2**31 - 1, jnp.int32)
    near, at = (state._replace(count=largest - k) for k in (3, 0))
    for _ in range(3):
        want, near = tx.update(params, near, params)
        got, at = tx.update(params, at, params)
        np.testing.assert_array_equal(got, want)


def test_parameters_are_counted_beyond_int32():
    params = jax.ShapeDtypeStruct((3, 10**9), jnp.float32)
    tx = oht.neumann(0.1, repulsive_scale="params")
    state = jax.eval_shape(tx.init, params)
    updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert updates.shape == params.shape


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 1e-3])
def test_one_huge_gradient_is_survived_below_the_documented_size_alone(rate, dtype):
    hessian, tx = jnp.array([1.0, 5.0], dtype), jitted(oht.neumann(rate))
    limit = 1 / (rate**2 * 1e-7)
    for factor, survives in ((0.1, True), (100.0, False)):
        w = jnp.ones(2, dtype)
        state = tx.init(w)
        for step in range(60):
            huge = jnp.full(2, factor * limit, dtype)
            grads = huge if step == 20 else hessian * w
            updates, state = tx.update(grads, state, w)
            w = optax.apply_updates(w, updates)
        assert np.all(np.isfinite(state.mu)) == survives
