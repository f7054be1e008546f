"""`guarded`: the two guards around an optimizer, and what they report."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_trees_equal
from tests.driving import jitted


def test_calm_steps_are_those_of_the_optimizer():
    rng = np.random.default_rng(0)
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    # Without jit: XLA contracts a * b + c in another way beside other operations.
    tx, bare = oht.guarded(optax.adamw(0.1)), optax.adamw(0.1)
    states = tx.init(params), bare.init(params)
    for _ in range(12):
        grads = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params
        )
        loss = jnp.asarray(rng.normal(1.0, 0.1))
        got, state = tx.update(grads, states[0], params, value=loss)
        want, other = bare.update(grads, states[1], params)
        states = state, other
        assert_trees_equal(got, want)


def test_its_reports():
    tx = jitted(oht.guarded(optax.sgd(1.0), window=4, warmup_steps=2))
    state = tx.init(jnp.zeros(1))
    steps = [(1.0, 1.0)] * 4 + [(1e6, 1.0), (1.0, 1e3), (1.0, jnp.nan), (jnp.nan, 1.0)]
    out = []
    for grad, loss in steps:
        updates, state = tx.update(jnp.array([grad]), state, value=loss)
        out.append(float(updates[0]))
    assert out == [-1.0] * 4 + [-2.0, 0.0, 0.0, 0.0]
    names = ("num_clipped", "num_nonfinite", "num_value_spikes", "num_spikes")
    assert [int(optax.tree.get(state, name)) for name in names] == [1, 2, 1, 0]
    assert float(oht.get_threshold(state)) == 2.0
    assert not optax.tree.get(state, "limit_reached")


def test_without_a_loss_there_is_no_rule_on_it():
    tx = jitted(oht.guarded(optax.sgd(1.0), window=2))
    state = tx.init(jnp.zeros(1))
    for _ in range(4):
        _, state = tx.update(jnp.ones(1), state)
    assert int(state.values.seen) == 0


@pytest.mark.nightly
def test_elsewhere_a_nan_microbatch_stays_in_the_sum():
    """All that the guard inside can do is to say so; Optax has another way."""
    steps, safe = [1.0, jnp.nan] + [1.0] * 24, oht.skip_if_unsafe(optax.sgd(1.0))
    skipping = {"should_skip_update_fn": optax.skip_not_finite}
    for kwargs, moves in (({}, 0), (skipping, 12)):
        tx = jitted(optax.MultiSteps(safe, 2, **kwargs))
        state = tx.init(jnp.zeros(1))
        out = []
        for grad in steps:
            updates, state = tx.update(jnp.array([grad]), state)
            out.append(float(updates[0]))
        assert out.count(-1.0) == moves
        assert bool(optax.tree.get(state, "limit_reached")) == (moves == 0)


@pytest.mark.parametrize("wrap", [oht.guarded, oht.skip_if_unsafe])
def test_a_nan_microbatch_is_left_out_of_the_sum(wrap):
    """Inside ``optax.MultiSteps`` it would stay there for good."""
    tx = jitted(wrap(optax.MultiSteps(optax.sgd(1.0), 2)))
    state = tx.init(jnp.zeros(1))
    out = []
    for grad in (1.0, jnp.nan, 3.0, 1.0, 1.0):
        updates, state = tx.update(jnp.array([grad]), state, value=1.0)
        out.append(float(updates[0]))
    assert out == [0.0, 0.0, -2.0, 0.0, -1.0]
