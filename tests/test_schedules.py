"""Step sizes and thresholds from the theory."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from optax_heavytail import schedules

COUNTS = (0, 1, 2, 9, 999, 10**6)


def _check(schedule, formula):
    """At Python, numpy and traced counts; steps k are counted from 1."""
    for count in COUNTS:
        # A power in float32: 1e-7 times the logarithm of its argument.
        for got in (schedule(count), schedule(np.int32(count))):
            np.testing.assert_allclose(got, formula(count + 1), rtol=1e-6)
    traced = jax.jit(jax.vmap(schedule))(jnp.array(COUNTS))
    want = [formula(count + 1) for count in COUNTS]
    np.testing.assert_allclose(traced, want, rtol=1e-6)
    assert traced.dtype == jnp.float32
    with jax.enable_x64(True):
        got = schedule(jnp.asarray(COUNTS[-1]))
        np.testing.assert_allclose(got, want[-1], rtol=1e-13)


def test_strongly_convex_step():
    _check(oht.strongly_convex_step(0.5), lambda k: 4 / (0.5 * (k + 1)))
    assert float(oht.strongly_convex_step(4.0)(0)) == 0.5  # 2 / mu


@pytest.mark.parametrize("order", [1.2, 1.5, 2.0, 2])
def test_clipping_threshold(order):
    _check(oht.clipping_threshold(3.0, order), lambda k: 3.0 * k ** (1 / order))
    assert float(oht.clipping_threshold(3.0, order)(0)) == 3.0


def test_clipping_threshold_of_a_tree():
    bounds = {"w": np.float32([1.0, 2.0]), "b": 4.0}
    schedule = oht.clipping_threshold(bounds, 1.5)
    got = jax.jit(schedule)(7)
    np.testing.assert_allclose(got["w"], [4.0, 8.0], rtol=1e-6)
    np.testing.assert_allclose(got["b"], 16.0, rtol=1e-6)


@pytest.mark.parametrize("order", [1.2, 1.5, 2.0])
@pytest.mark.parametrize("steps", [1, 1000, 10**7])
def test_nonconvex_schedules_are_constant(order, steps):
    a = order
    _check(
        oht.nonconvex_step(0.3, steps, order),
        lambda k: 0.3 * steps ** (-a / (3 * a - 2)),
    )
    _check(
        oht.nonconvex_threshold(2.0, steps, order),
        lambda k: 2.0 * steps ** (1 / (3 * a - 2)),
    )


def test_hyperparameters_may_be_traced():
    @jax.jit
    def values(x, order):
        return (
            oht.strongly_convex_step(x)(3),
            oht.clipping_threshold(x, order)(3),
            oht.nonconvex_step(x, 100 * x, order)(3),
            oht.nonconvex_threshold(x, 100 * x, order)(3),
        )

    want = (
        4 / (2 * 5),
        2 * 4 ** (1 / 1.5),
        2 * 200 ** (-1.5 / 2.5),
        2 * 200 ** (1 / 2.5),
    )
    np.testing.assert_allclose(values(2.0, 1.5), want, rtol=1e-6)


def test_they_fit_optax():
    tx = optax.scale_by_schedule(oht.strongly_convex_step(1.0))
    state = tx.init(jnp.zeros(1))
    for want in (2.0, 4 / 3, 1.0):
        updates, state = tx.update(jnp.ones(1), state)
        np.testing.assert_allclose(updates, want, rtol=1e-6)


def test_all_are_exported():
    public = {
        name
        for name, value in inspect.getmembers(schedules, inspect.isfunction)
        if not name.startswith("_") and value.__module__ == schedules.__name__
    }
    assert public == {name for name in oht.__all__ if hasattr(schedules, name)}
    assert len(public) == 4
