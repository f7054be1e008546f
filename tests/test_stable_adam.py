"""scale_by_stable_adam and stable_adamw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_leaf_close, assert_same_bits
from tests.driving import follow, heavy_gradients, jitted
from tests.in_time import only
from tests.registry import make_grads, make_params


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


def _run(tx, steps):
    def step(state, grads):
        updates, state = tx.update(grads, state)
        return state, updates

    grads = np.array(steps, np.float32)
    return jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])(grads)


def test_worked_values():
    """With RMS 1, 1 and 1.398699."""
    want = [(1, 1), (1, -0.052632), (0.527245, 0.240076)]
    got = _run(oht.scale_by_stable_adam(), [(1, 1), (1, -1), (10, 1)])
    for updates, values in zip(got, want, strict=True):
        np.testing.assert_allclose(updates, values, atol=2e-6)


def test_without_a_threshold_it_is_adam():
    with jax.enable_x64(True):
        grads = heavy_gradients(30)
        got, _, _ = follow(oht.scale_by_stable_adam(threshold=1e30), grads)
        want, _, _ = follow(oht.scale_by_adam(0.9, 0.99, 1e-6), grads)
    for u, v in zip(got, want, strict=True):
        for name in v:
            assert_leaf_close(u[name], v[name], 1e-14, name)


def test_the_first_step_and_constant_gradients_are_never_shortened():
    for grads in ([(3, -1e-3)] * 20, [(0, 5)] * 20):
        tx = oht.scale_by_stable_adam(eps=0.0)
        got, want = _run(tx, grads), _run(oht.scale_by_adam(0.9, 0.99, 0.0), grads)
        for u, v in zip(got, want, strict=True):
            # RMS is 1 up to the rounding of a root.
            np.testing.assert_allclose(u, v, rtol=1e-6)


@pytest.mark.parametrize("b2", only({0.99}, [0.9, 0.99]))
def test_a_huge_spike_has_the_closed_form_of_its_ratio(b2):
    """RMS tends to 1 / sqrt(1 - b2), with the corrected b2 of that step."""
    steps = 200
    grads = [(1.0, 1.0)] * (steps - 1) + [(1e6, 1e6)]
    tx = functools.partial(oht.scale_by_stable_adam, 0.0, b2, 0.0)
    (*_, got), (*_, adam) = _run(tx(), grads), _run(tx(threshold=1e30), grads)
    weight = (1 - b2) / (1 - b2**steps)
    np.testing.assert_allclose(adam / got, weight**-0.5, rtol=1e-5)


def test_the_factor_scales_the_decay_and_layers_have_their_own():
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    tx = oht.scale_by_stable_adam(
        0.0, 0.9, 0.0, layer_axis=0, after=oht.add_decayed_weights(0.5)
    )
    tx = jitted(tx)
    state = tx.init(params)
    for second in (1.0, 1.0, 1e6):
        grads = {"w": jnp.array([[1.0, 1.0], [second, second]])}
        updates, state = tx.update(grads, state, params)
    directions, decay = np.array([[1.0], [1e6 / np.sqrt(0.1e12 / 0.271)]]), 0.5
    ratio = float(directions[1, 0])  # without momentum it is the direction itself
    want = (directions + decay * np.asarray(params["w"])) / [[1.0], [ratio]]
    np.testing.assert_allclose(updates["w"], want, rtol=1e-5)


def test_the_alias_is_the_composition_bit_for_bit():
    parts = optax.chain(
        oht.scale_by_stable_adam(
            0.8, 0.9, 1e-3, threshold=0.5, after=oht.add_decayed_weights(0.1, _matrices)
        ),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.stable_adamw(0.1, 0.8, 0.9, 1e-3, 0.1, threshold=0.5, mask=_matrices)
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_after_is_a_transform():
    with pytest.raises(TypeError, match="after must be a gradient transformation"):
        oht.scale_by_stable_adam(after=0.1)


def test_a_bad_entry_is_seen_in_its_leaf_alone():
    tx = jitted(oht.scale_by_stable_adam())
    grads = {"w": jnp.array([1.0, jnp.nan]), "b": jnp.array([1.0])}
    updates, _ = tx.update(grads, tx.init(grads))
    assert np.all(np.isnan(updates["w"]))
    assert np.isfinite(updates["b"])
