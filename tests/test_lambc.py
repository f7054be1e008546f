"""LAMBC, and LAMB as its special case. The authors' own numbers are in golden/."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import (
    as_float64,
    assert_same_bits,
    assert_trees_close,
    assert_trees_equal,
)
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.registry import make_grads, make_params


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


@pytest.mark.parametrize(
    ("decay", "mask"),
    [
        pytest.param(0.0, None, id="plain", marks=pytest.mark.nightly),
        pytest.param(0.1, None, id="decay", marks=pytest.mark.nightly),
        pytest.param(0.1, _matrices, id="mask"),
    ],
)
def test_without_bounds_and_with_bias_correction_it_is_lamb(decay, mask):
    """To 1e-10: in float32 optax has lost digits of its bias correction."""
    with jax.enable_x64(True):
        grads = heavy_gradients(20)
        ours = oht.lambc(
            0.01,
            0.8,
            0.9,
            1e-5,
            decay,
            mask=mask,
            trust_ratio_bounds=None,
            bias_correction=True,
        )
        theirs = optax.lamb(0.01, 0.8, 0.9, 1e-5, weight_decay=decay, mask=mask)
        got, want = (follow(tx, grads)[:2] for tx in (ours, theirs))
    assert_trees_close(got, want, 1e-10)


def test_the_defaults_are_those_of_the_authors_code():
    grads, params = make_grads()[0], make_params()
    spelled = oht.lambc(
        learning_rate=0.1,
        b1=0.9,
        b2=0.999,
        eps=1e-6,
        weight_decay=0.0,
        mask=None,
        trust_ratio_bounds=(0.0, 1.0),
        bias_correction=False,
        max_grad_norm=None,
        trust_ratio_mask=None,
        layer_axis=None,
    )
    got, want = (one_step(tx, grads, params) for tx in (oht.lambc(0.1), spelled))
    assert_trees_equal(got, want)


def test_the_alias_is_the_composition_bit_for_bit():
    parts = optax.chain(
        oht.clip_by_norm(2.0),
        oht.scale_by_adam(0.8, 0.9, 1e-5, bias_correction=True),
        oht.add_decayed_weights(0.1, _matrices),
        oht.scale_by_clipped_trust_ratio(0.1, 2.0, mask=_matrices),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.lambc(
        0.1,
        0.8,
        0.9,
        1e-5,
        0.1,
        mask=_matrices,
        trust_ratio_bounds=(0.1, 2.0),
        bias_correction=True,
        max_grad_norm=2.0,
        trust_ratio_mask=_matrices,
    )
    assert_same_bits(alias, parts, make_grads(), make_params())


def _norm(x):
    return np.linalg.norm(as_float64(x).ravel())


def test_the_length_of_a_layers_step_lies_between_the_bounds():
    """lower |s| <= |step| / rate <= upper |s|, and |w| in between."""
    params, grads = make_params(), make_grads()[0]
    free = oht.lambc(1.0, trust_ratio_bounds=None)
    steps = one_step(free, grads, params)
    for step, w in zip(jax.tree.leaves(steps), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(_norm(step), _norm(w), rtol=1e-6)
    adam = one_step(oht.scale_by_adam(eps=1e-6, bias_correction=False), grads)
    bounded = oht.lambc(1.0, trust_ratio_bounds=(0.2, 0.5))
    updates, state = jitted(bounded).update(grads, bounded.init(params), params)
    ratios = jax.tree.leaves(oht.get_trust_ratio(state))
    raw = jax.tree.leaves(oht.get_trust_ratio(state, raw=True))
    for u, s, r, free_r in zip(
        jax.tree.leaves(updates), jax.tree.leaves(adam), ratios, raw, strict=True
    ):
        assert r == np.clip(free_r, np.float32(0.2), np.float32(0.5))
        np.testing.assert_allclose(_norm(u), r * _norm(s), rtol=1e-6)


def test_leaves_that_do_not_take_the_ratio_take_adams_step():
    params, grads = make_params(), make_grads()[0]
    tx = oht.lambc(0.1, trust_ratio_bounds=None, trust_ratio_mask=_matrices)
    got = one_step(tx, grads, params)
    adam = optax.chain(
        oht.scale_by_adam(eps=1e-6, bias_correction=False),
        oht.scale_by_learning_rate(0.1),
    )
    want = one_step(adam, grads)
    assert_trees_close(got["bias"], want["bias"], 1e-6)
    assert _norm(got["kernel"]) != pytest.approx(_norm(want["kernel"]), rel=0.1)


def test_stacked_layers_move_like_separate_ones():
    rng = np.random.default_rng(0)
    params = [np.float32(s * rng.normal(size=(3, 2))) for s in (40, 0.04)]
    grads = [np.float32(rng.normal(size=(3, 2))) for _ in range(2)]
    tx = oht.lambc(0.1, weight_decay=0.01, trust_ratio_bounds=(0.0, 10.0))
    want = one_step(tx, grads, params)
    tx = oht.lambc(0.1, weight_decay=0.01, trust_ratio_bounds=(0.0, 10.0), layer_axis=1)
    got = one_step(tx, np.stack(grads, 1), np.stack(params, 1))
    assert_trees_close(got, np.stack(want, 1), 2e-6)


def test_the_gradient_is_clipped_before_all_else():
    """By its global norm: a clip of each leaf, or after Adam, would be another."""
    params, grads = make_params(), make_grads()[2]
    tx = oht.lambc(0.1, eps=0.5, max_grad_norm=0.1)
    got = one_step(tx, grads, params)
    clipped = one_step(oht.clip_by_norm(0.1), grads)
    plain = oht.lambc(0.1, eps=0.5)
    want = one_step(plain, clipped, params)
    assert_trees_close(got, want, 1e-6)
    unclipped = one_step(plain, grads, params)
    assert _norm(got["kernel"]) < 0.7 * _norm(unclipped["kernel"])


def test_bounds_may_be_schedules():
    tx = jitted(
        oht.lambc(1.0, b2=0.0, b1=0.0, trust_ratio_bounds=(None, lambda k: 4.0 - k))
    )
    params = jnp.array([100.0])
    state = tx.init(params)
    for want in (4.0, 3.0, 2.0):
        updates, state = tx.update(jnp.ones(1), state, params)
        np.testing.assert_allclose(updates, -want, rtol=1e-5)  # eps is 1e-6


def test_dtypes_of_the_averages():
    params = jnp.ones(2, jnp.bfloat16)
    tx = oht.lambc(0.1, mu_dtype=jnp.bfloat16, nu_dtype=jnp.float32)
    state = tx.init(params)
    assert optax.tree.get(state, "mu").dtype == jnp.bfloat16
    assert optax.tree.get(state, "nu").dtype == jnp.float32
