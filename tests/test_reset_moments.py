"""reset_moments: a fresh state now and then, and a warm-up."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_same_bits, assert_trees_equal
from tests.driving import jitted
from tests.registry import make_grads, make_params


def _run(tx, sizes, params=None):
    tx, state = jitted(tx), tx.init(jnp.zeros(1))
    for size in sizes:
        updates, state = tx.update(jnp.array([size]), state, params)
        yield float(updates[0]), state


def test_beyond_the_run_it_is_the_inner_transform():
    inner = oht.scale_by_adam()
    tx = oht.reset_moments(inner, period=1000)
    params, both = make_params(), (jitted(tx), jitted(inner))
    states = [t.init(params) for t in both]
    for grads in make_grads():
        (u, states[0]), (v, states[1]) = (
            t.update(grads, s, params) for t, s in zip(both, states, strict=True)
        )
        assert_trees_equal(u, v)
    assert_trees_equal(states[0].inner_state, states[1])


def test_a_reset_is_a_new_start_with_all_counts():
    sizes = [1.0, -3.0, 0.5, 2.0, -1.0]
    tx = oht.reset_moments(oht.scale_by_adam(), period=3, warmup_steps=0)
    (*_, a, b, c), fresh = _run(tx, sizes), list(_run(oht.scale_by_adam(), sizes[2:]))
    for (got, state), (want, inner) in zip((a, b, c), fresh, strict=True):
        assert got == want
        assert_trees_equal(state.inner_state, inner)


def test_without_bias_correction_anew_the_first_step_is_three_times_as_long():
    """As in published code, which resets the averages and keeps their counts."""
    tx = oht.reset_moments(oht.scale_by_adam(), period=200, warmup_steps=0)
    *_, (ours, _) = _run(tx, [1.0] * 200)
    adam = oht.scale_by_adam()
    *_, (_, state) = _run(adam, [1.0] * 1000)
    zeros = jnp.zeros(1)
    theirs, _ = jitted(adam).update(jnp.ones(1), state._replace(mu=zeros, nu=zeros))
    assert abs(ours - 1) < 1e-5
    np.testing.assert_allclose(theirs[0], 0.1 / 0.001**0.5, rtol=0.3)


def test_the_warm_up_is_a_cosine():
    tx = oht.reset_moments(optax.identity(), 5, warmup_steps=3, warmup_start=0.2)
    got = [u for u, _ in _run(tx, [1.0] * 11)]
    cosine = [1 - 0.8 * (1 + np.cos(np.pi * j / 4)) / 2 for j in range(3)]
    want = [1, 1, 1, 1, *cosine, 1, 1, *cosine[:2]]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_parameters_are_those_of_now():
    """An inner transform that starts at the parameters starts at the present ones."""
    inner = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (state, state)
    )
    tx = oht.reset_moments(inner, 2, warmup_steps=0)
    tx = jitted(tx)
    state = tx.init(jnp.array([1.0]))
    for now, want in ((2.0, 1.0), (3.0, 3.0), (4.0, 3.0), (5.0, 5.0)):
        updates, state = tx.update(jnp.zeros(1), state, jnp.array([now]))
        assert float(updates[0]) == want


def test_a_nan_is_gone_with_the_next_reset():
    tx = oht.reset_moments(oht.scale_by_adam(), 4, warmup_steps=0)
    got = [u for u, _ in _run(tx, [1.0, np.nan, 1.0, 1.0, 1.0])]
    assert np.isnan(got[1])
    assert np.isnan(got[2])
    np.testing.assert_allclose(got[3:], 1.0, rtol=1e-5)


def test_the_alias_is_the_composition_bit_for_bit():
    inner = oht.scale_by_spam(0.8, 0.9, 1e-3, threshold=9.0, grace=1)
    parts = optax.chain(
        oht.reset_moments(inner, 3, warmup_steps=2, warmup_start=0.5),
        oht.add_decayed_weights(0.1),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.spam(
        0.1,
        0.8,
        0.9,
        1e-3,
        0.1,
        threshold=9.0,
        grace=1,
        period=3,
        warmup_steps=2,
        warmup_start=0.5,
    )
    assert_same_bits(alias, parts, make_grads(), make_params())


@pytest.mark.parametrize("name", ["period", "warmup_steps"])
def test_counts_are_whole_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
        oht.reset_moments(optax.identity(), **{name: 1.5})
