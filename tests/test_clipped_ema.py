"""clipped_ema: an average that moves by a bounded step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_leaf_close, assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted
from tests.in_time import only


def _run(tx, grads):
    tx, state, history = jitted(tx), tx.init(grads[0]), []
    for g in grads:
        updates, state = tx.update(g, state)
        history.append(updates)
    return history, state


def test_worked_values():
    history, _ = _run(
        oht.clipped_ema(0.0, 2.0, scope="leaf"), [jnp.array([3.0, 4.0])] * 3
    )
    np.testing.assert_allclose(history, [[1.2, 1.6], [2.4, 3.2], [3, 4]], rtol=1e-6)


@pytest.mark.parametrize("scope", only({"leaf"}, ["coordinate", "leaf", "global"]))
def test_without_a_threshold_it_is_ema(scope):
    with jax.enable_x64(True):
        grads = heavy_gradients(30)
        got, _, _ = follow(oht.clipped_ema(0.9, 1e30, scope=scope), grads)
        want, _, _ = follow(oht.ema(0.9, debias=False), grads)
    for u, v in zip(got, want, strict=True):
        for name in v:
            # v + (1 - b)(a - v) for b v + (1 - b) a: after 1e6, rounding of that stays.
            np.testing.assert_allclose(u[name], v[name], rtol=1e-9, atol=1e-9)


def test_no_gradient_moves_it_by_more_than_its_share():
    grads = heavy_gradients(40)
    got, _, _ = follow(oht.clipped_ema(0.75, 0.5, scope="leaf"), grads)
    last = {name: np.zeros_like(g) for name, g in grads[0].items()}
    for u in got:
        for name in u:
            assert np.linalg.norm(u[name] - last[name]) <= 0.125 * (1 + 1e-5)
        last = u


def test_the_run_up_takes_as_long_as_said():
    """The error shrinks by (1 - decay) tau a step, and "first" has none."""
    grads, decay, tau = jnp.array([30.0, 40.0]), 0.5, 8.0
    steps = math.ceil((50 - tau) / ((1 - decay) * tau))
    history, _ = _run(oht.clipped_ema(decay, tau, scope="leaf"), [grads] * steps)
    errors = [50 - float(jnp.linalg.norm(u)) for u in history]
    np.testing.assert_allclose(-np.diff(errors), 4.0, rtol=1e-4)
    (first, *_), _ = _run(
        oht.clipped_ema(decay, tau, scope="leaf", init="first"), [grads]
    )
    np.testing.assert_array_equal(first, grads)


def test_it_settles_at_hubers_estimate_and_clipped_gradients_do_not():
    """Of a Pareto law of index 1.5 that starts at 0, as on the page."""
    rng = np.random.default_rng(0)
    draws = jnp.asarray(rng.pareto(1.5, size=(3000, 500)), jnp.float32)
    tx = oht.clipped_ema(decay=0.99, threshold=2.0)

    def step(state, g):
        updates, state = tx.update(g, state)
        return state, updates

    _, updates = jax.jit(lambda s: jax.lax.scan(step, s, draws))(tx.init(draws[0]))
    # A standard error of 0.003, and a decay of 0.99 that is not 1.
    np.testing.assert_allclose(np.mean(updates[1000:]), 0.999, atol=0.02)
    assert np.mean(np.clip(draws, -2, 2)) < 0.87


def test_two_workers_with_error_feedback_find_the_optimum():
    """Gradients 3(x - 1) and x + 2: each clipped by itself, x stays at 0.682."""

    def descend(make):
        tx = jitted(make())
        states = [tx.init(jnp.zeros(1)) for _ in range(2)]
        x = jnp.array([5.0])
        for _ in range(60):
            found = []
            for i, g in enumerate((3 * (x - 1), x + 2)):
                u, states[i] = tx.update(g, states[i])
                found.append(u)
            x = x - 0.1 * (found[0] + found[1]) / 2
        return float(x[0])

    assert abs(descend(lambda: oht.clipped_ema(0.0, 1.0)) - 0.25) < 1e-3
    assert abs(descend(lambda: oht.clip_by_value(1.0)) - 0.682) < 1e-2


def test_a_relative_threshold_forgets_a_spike():
    tx = oht.clipped_ema(0.9, relative=3.0, init="first")
    grads = [jnp.array([1.0 + 0.1 * (-1) ** k]) for k in range(30)]
    grads[20] = jnp.array([1e6])
    history, _ = _run(tx, grads)
    assert all(0.8 < float(u[0]) < 1.2 for u in history[:20])
    assert float(history[20][0]) < 1.3
    spiked, _ = _run(oht.ema(0.9), grads)
    assert float(spiked[29][0]) > 1e4


def test_bad_entries_are_lost_once_or_taken_for_no_news():
    grads = [jnp.array([1.0, 1.0]), jnp.array([jnp.nan, 1.0]), jnp.array([1.0, 1.0])]
    history, _ = _run(oht.clipped_ema(0.5, 10.0), grads)
    np.testing.assert_array_equal(history[1], [np.nan, 0.75])
    np.testing.assert_array_equal(history[2], [0.75, 0.875])
    history, _ = _run(oht.clipped_ema(0.5, 10.0, nonfinite="zero"), grads)
    np.testing.assert_array_equal(history[1], [0.5, 0.75])
    history, _ = _run(oht.clipped_ema(0.5, 10.0, scope="global"), grads)
    assert np.all(np.isnan(history[1]))
    assert np.all(history[2] == 0.75)


def test_a_schedule_and_get_momentum():
    tx = optax.chain(oht.clipped_ema(0.0, lambda count: 1.0 + count), optax.scale(-1))
    tx = jitted(tx)
    state = tx.init(jnp.zeros(1))
    for want in (1.0, 3.0):
        updates, state = tx.update(jnp.array([9.0]), state)
        assert float(updates[0]) == -want
    assert_trees_equal(oht.get_momentum(state), -updates)


@pytest.mark.parametrize("kwargs", [{}, {"threshold": 1.0, "relative": 1.0}], ids=str)
def test_one_of_two_limits(kwargs):
    with pytest.raises(ValueError, match="one of the two"):
        oht.clipped_ema(**kwargs)


def test_relative_is_positive():
    with pytest.raises(ValueError, match=r"relative must be in \(0.0, inf\)"):
        oht.clipped_ema(relative=0.0)


def test_distances_of_two_sizes_are_kept_apart():
    """Leaves of sizes 1 and 1e6, each with its own usual distance."""
    grads = [{"a": jnp.array([x]), "b": jnp.array([1e6 * x])} for x in (1.0, 1.2, 0.9)]
    history, _ = _run(oht.clipped_ema(0.5, relative=2.0, scope="leaf"), grads)
    for u in history:
        assert_leaf_close(u["b"], 1e6 * u["a"], 1e-6)
