"""Finite gradients make no NaN and no inf on the way: JAX's flags do not stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from tests.in_time import in_time
from tests.registry import CASES, make_grads, make_params

# Limits that are not known yet are inf elsewhere.
WITHOUT_INF = {
    *("acclip", "gclip", "cclip", "norm", "norm-leaf", "value", "lambc-all"),
    *("larsc-all", "neumann", "by_adam", "by_amsgrad", "by_adashift", "sgdw-all"),
    *("by_powersign", "by_addsign", "normalize", "clipped_gd", "ratio", "average"),
}


def _steps(case):
    params, (first, second, *_) = make_params(), make_grads()
    tx = case.make()
    state = tx.init(params)
    for grads in (first, second, jax.tree.map(jnp.zeros_like, first)):
        updates, state = tx.update(grads, state, params, **case.extra_args)
    return updates


@pytest.mark.parametrize(
    "name", in_time({n: n for n in CASES}, lambda n: not CASES[n].variant)
)
def test_operation_by_operation(name):
    with jax.debug_nans(True), jax.debug_infs(name in WITHOUT_INF), jax.disable_jit():
        for u in jax.tree.leaves(_steps(CASES[name])):
            assert np.all(np.isfinite(u))


@pytest.mark.parametrize("name", ["acclip", "lambc", "gclip", "neumann", "cclip"])
def test_as_one_program(name):
    case = CASES[name]
    params, grads = make_params(), make_grads()[0]
    tx = case.make()
    with jax.debug_nans(True), jax.debug_infs(True):
        jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)


def test_the_flags_do_stop_at_a_gradient_that_is_not_finite():
    tx, grads = oht.clip_by_norm(1.0), jnp.array([1.0, jnp.nan])
    state = tx.init(grads)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        tx.update(grads, state)
