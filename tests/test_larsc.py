"""LARSC, and LARS as its special case."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_same_bits, assert_trees_close, assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.in_time import only
from tests.registry import make_grads, make_params


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


def _vectors(params):
    return jax.tree.map(lambda p: jnp.ndim(p) == 1, params)


VARIANTS = {
    "plain": ({}, {}),
    "nesterov": ({"nesterov": True}, {"nesterov": True}),
    "decay": ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "masks": (
        {"weight_decay": 0.1, "mask": _matrices, "trust_ratio_mask": _vectors},
        {
            "weight_decay": 0.1,
            "weight_decay_mask": _matrices,
            "trust_ratio_mask": _vectors,
        },
    ),
    "numbers": (
        {"trust_coefficient": 0.1, "eps": 0.5, "momentum": 0.5, "nesterov": True},
        {"trust_coefficient": 0.1, "eps": 0.5, "momentum": 0.5, "nesterov": True},
    ),
}


@pytest.mark.parametrize("variant", only({"masks", "numbers"}, VARIANTS))
def test_without_bounds_it_is_lars(variant):
    ours, theirs = VARIANTS[variant]
    with jax.enable_x64(True):
        grads = heavy_gradients(20)
        rate = optax.cosine_decay_schedule(0.5, 20)
        got = follow(oht.larsc(rate, trust_ratio_bounds=None, **ours), grads)[:2]
        want = follow(optax.lars(rate, **theirs), grads)[:2]
    # 20 steps of a few operations, each within 1e-16, and norms.
    assert_trees_close(got, want, 1e-12)


def test_the_bounds_hold_the_ratio_with_its_coefficient():
    params = {"a": jnp.array([8.0]), "b": jnp.array([1.0]), "c": jnp.array([0.25])}
    ones = jax.tree.map(jnp.ones_like, params)
    tx = oht.larsc(1.0, trust_coefficient=0.5, trust_ratio_bounds=(0.25, 1.0))
    tx = jitted(tx)
    updates, state = tx.update(ones, tx.init(params), params)
    assert oht.get_trust_ratio(state, raw=True) == {"a": 4.0, "b": 0.5, "c": 0.125}
    want = {"a": 1.0, "b": 0.5, "c": 0.25}
    assert oht.get_trust_ratio(state) == want
    assert {name: -float(u[0]) for name, u in updates.items()} == want


def test_the_alias_is_the_composition_bit_for_bit():
    parts = optax.chain(
        oht.add_decayed_weights(0.1, _matrices),
        oht.scale_by_clipped_trust_ratio(
            0.1, 0.5, mask=_matrices, trust_coefficient=0.2, eps=1e-3
        ),
        oht.scale_by_learning_rate(0.1),
        oht.trace(0.8, nesterov=True),
    )
    alias = oht.larsc(
        0.1,
        0.1,
        mask=_matrices,
        trust_coefficient=0.2,
        trust_ratio_bounds=(0.1, 0.5),
        momentum=0.8,
        nesterov=True,
        trust_ratio_mask=_matrices,
        eps=1e-3,
    )
    assert_same_bits(alias, parts, make_grads(), make_params())


def test_past_steps_keep_the_rate_of_their_time():
    """The learning rate comes before the momentum, as in the paper."""
    tx = jitted(
        oht.larsc(
            lambda count: 0.25**count,
            trust_coefficient=1.0,
            trust_ratio_bounds=(1.0, 1.0),
            momentum=0.5,
        )
    )
    params = jnp.ones(1)
    state = tx.init(params)
    for g, want in ((1.0, 1.0), (1.0, 0.75), (0.0, 0.375)):
        updates, state = tx.update(jnp.array([g]), state, params)
        assert float(updates[0]) == -want


def test_stacked_layers_move_like_separate_ones():
    rng = np.random.default_rng(0)
    params = [np.float32(s * rng.normal(size=(3, 2))) for s in (40, 0.04)]
    grads = [np.float32(rng.normal(size=(3, 2))) for _ in range(2)]
    want = one_step(oht.larsc(0.1, weight_decay=0.01), grads, params)
    tx = oht.larsc(0.1, weight_decay=0.01, layer_axis=0)
    got = one_step(tx, np.stack(grads), np.stack(params))
    assert_trees_close(got, np.stack(want), 2e-6)


def test_defaults():
    grads, params = make_grads()[0], make_params()
    spelled = oht.larsc(
        learning_rate=0.1,
        weight_decay=0.0,
        mask=None,
        trust_coefficient=1e-3,
        trust_ratio_bounds=(0.0, 1.0),
        momentum=0.9,
        nesterov=False,
        trust_ratio_mask=None,
        eps=0.0,
        layer_axis=None,
    )
    got, want = (
        one_step(jitted(tx), grads, params) for tx in (oht.larsc(0.1), spelled)
    )
    assert_trees_equal(got, want)
