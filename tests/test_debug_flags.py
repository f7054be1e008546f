"""Finite gradients make no NaN and no inf on the way: JAX's flags do not stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from tests.registry import make_grads, make_params
from tests.test_contract import A_FEW, each_in_time, each_in_turn


def _steps(case):
    params, (first, second, *_) = make_params(), make_grads()
    tx = case.make()
    state = tx.init(params)
    for grads in (first, second, jax.tree.map(jnp.zeros_like, first)):
        updates, state = tx.update(grads, state, params, **case.extra_args)
    return updates


@each_in_turn(1)
def test_operation_by_operation(case):
    with jax.debug_nans(True), jax.debug_infs(True), jax.disable_jit():
        for u in jax.tree.leaves(_steps(case)):
            assert np.all(np.isfinite(u))


@each_in_time(lambda name: name in A_FEW)
def test_as_one_program(case):
    """What comes out, the state too, is finite, and XLA makes no NaN of its own."""
    params, grads = make_params(), make_grads()[0]
    tx = case.make()
    with jax.debug_nans(True), jax.debug_infs(True):
        state = jax.jit(tx.init)(params)
        update = jax.jit(lambda *args: tx.update(*args, **case.extra_args))
        for _ in range(2):
            _, state = update(grads, state, params)


def test_the_flags_do_stop_at_a_gradient_that_is_not_finite():
    tx, grads = oht.clip_by_norm(1.0), jnp.array([1.0, jnp.nan])
    state = tx.init(grads)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        tx.update(grads, state)
