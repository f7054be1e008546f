"""Snapshots at the ends of the cycles, in a ring of fixed size, and their average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_trees_close, types
from tests.registry import make_grads, make_params


def _count_up(num_snapshots, steps, wrap=lambda tx: tx, **cycles):
    """A parameter that is the number of updates made; the last state."""
    tx = wrap(oht.snapshot_ensemble(optax.sgd(1.0), num_snapshots, **cycles))
    params = jnp.zeros(1)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(-jnp.ones(1), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (params, tx.init(params))
    (_, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(start)
    return state


@pytest.mark.parametrize(
    ("t_0", "t_mult", "ends"),
    [
        (3, 1, [3, 6, 9, 12, 15, 18]),
        (1, 1, list(range(1, 21))),
        (2, 2, [2, 6, 14]),
        (4, 1.5, [4, 10, 19]),
        (30, 1, []),
    ],
)
def test_snapshots_are_taken_at_the_end_of_each_cycle(t_0, t_mult, ends):
    """Of the parameters after the last update of the cycle of warm_restarts."""
    state = _count_up(25, 20, t_0=t_0, t_mult=t_mult)
    assert int(state.taken) == len(ends)
    np.testing.assert_array_equal(state.snapshots[: len(ends), 0], ends)
    np.testing.assert_array_equal(state.snapshots[len(ends) :], 0)
    rate = oht.warm_restarts(1.0, t_0, t_mult)
    restarts = [k for k in range(1, 21) if float(rate(k)) == 1.0]
    assert ends == restarts  # the next update starts a cycle


def test_the_newest_stay():
    state = _count_up(3, 17, t_0=2)
    assert int(state.taken) == 8
    assert sorted(state.snapshots[:, 0].tolist()) == [12, 14, 16]
    mean = oht.snapshot_predictions(state, lambda params: params[0] ** 2)
    np.testing.assert_allclose(mean, (12**2 + 14**2 + 16**2) / 3, rtol=1e-6)


def test_predictions_are_averaged_over_those_taken():
    """Not over the empty places; of predictions, not of parameters."""

    def predict(params):
        return {"square": params**2, "inverse": 1 / params}

    for steps, ends in ((4, [4.0]), (9, [4.0, 8.0]), (13, [4.0, 8.0, 12.0])):
        state = _count_up(3, steps, t_0=4)
        got = oht.snapshot_predictions(state, predict)
        for name, f in (("square", np.square), ("inverse", np.reciprocal)):
            np.testing.assert_allclose(got[name], [np.mean(f(ends))], rtol=1e-6)


def test_before_the_first_snapshot_there_is_no_prediction():
    state = _count_up(2, 3, t_0=4)
    got = oht.snapshot_predictions(state, lambda params: jnp.ones((2, 3)))
    assert got.shape == (2, 3)
    assert np.all(np.isnan(got))


def test_predictions_under_jit_and_of_any_shape():
    state = _count_up(2, 8, t_0=4)

    @jax.jit
    def predict(state, x):
        return oht.snapshot_predictions(
            state, lambda params: (jnp.outer(x, params), jnp.sum(params))
        )

    outer, total = predict(state, jnp.arange(3.0))
    np.testing.assert_allclose(outer, 6 * np.arange(3.0)[:, None], rtol=1e-6)
    assert float(total) == 6.0


def test_memory_is_fixed_from_the_start():
    tx = oht.snapshot_ensemble(oht.gclip(0.1, 1.0), 4, t_0=1)
    params = make_params(jnp.bfloat16)
    state = tx.init(params)
    for leaf, kept in zip(
        jax.tree.leaves(params), jax.tree.leaves(state.snapshots), strict=True
    ):
        assert kept.shape == (4, *leaf.shape)
        assert kept.dtype == leaf.dtype
    _, new_state = tx.update(make_grads(jnp.bfloat16)[0], state, params)
    assert types(new_state) == types(state)


def test_the_inner_updates_pass_unchanged():
    params, grads = make_params(), make_grads()
    inner = oht.acclip(0.1, normalize=True)
    tx = oht.snapshot_ensemble(inner, 2, t_0=3)
    update, inner_update = jax.jit(tx.update), jax.jit(inner.update)
    state, inner_state = tx.init(params), inner.init(params)
    for g in grads:
        updates, state = update(g, state, params)
        want, inner_state = inner_update(g, inner_state, params)
        assert_trees_close(updates, want, 1e-6)
        params = optax.apply_updates(params, updates)
        if int(state.count) == 3:
            third = params
    kept = jax.tree.map(lambda s: s[0], state.snapshots)
    # Inside, sum and step may be fused: a contracted product is rounded once.
    assert_trees_close(kept, third, 2e-7)


def test_extra_arguments_reach_the_inner_transform():
    tx = oht.snapshot_ensemble(oht.neumann_two_loop(1.0, 1), 1, t_0=1)
    w = jnp.ones(1)
    updates, _ = tx.update(0.5 * w, tx.init(w), w, grad_fn=lambda w: 0.5 * w)
    np.testing.assert_allclose(updates, -0.75, rtol=1e-6)


def test_the_state_is_found_inside_others():
    def wrap(tx):
        return optax.chain(optax.clip(10.0), optax.apply_if_finite(tx, 3))

    state = _count_up(2, 8, wrap, t_0=4)
    assert float(oht.snapshot_predictions(state, lambda params: params[0])) == 6.0


def test_no_ensemble_and_two_are_clear_errors():
    params = jnp.ones(1)
    one = oht.snapshot_ensemble(optax.sgd(0.1), 1, t_0=1)
    for tx, number in ((optax.sgd(0.1), 0), (optax.chain(one, one), 2)):
        with pytest.raises(ValueError, match=f"not {number}") as error:
            oht.snapshot_predictions(tx.init(params), lambda params: params)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_snapshots", 0),
        ("num_snapshots", 1.5),
        ("t_0", 0),
        ("t_0", 2.0),
        ("t_mult", 0.5),
    ],
)
def test_numbers_out_of_range_are_named(name, value):
    kwargs = {"num_snapshots": 2, "t_0": 2, "t_mult": 1} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        oht.snapshot_ensemble(optax.sgd(0.1), **kwargs)
