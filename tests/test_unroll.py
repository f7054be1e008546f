"""unroll: derivatives that are known, by both modes and all settings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.in_time import only


def _inner(w, decay):
    return (w - 1) ** 2 / 2 + decay * w**2 / 2


def _outer(num_steps=4, tx=None, **kwargs):
    solve = oht.unroll(
        optax.sgd(0.3) if tx is None else tx, _inner, num_steps, **kwargs
    )
    return lambda decay, start=0.0: (solve(decay, start) - 0.5) ** 2 / 2


def _slope(w, num_steps, decay=0.7, rate=0.3):
    """d w_T / d decay by hand: w_T = (1 - r^T) / (1 + decay)."""
    r = 1 - rate * (1 + decay)
    return rate * num_steps * r ** (num_steps - 1) / (1 + decay) - w / (1 + decay)


def test_worked():
    with jax.enable_x64(True):
        w = float(oht.unroll(optax.sgd(0.3), _inner, 4)(0.7, 0.0))
        slope = float(jax.grad(_outer())(0.7))
    assert round(w, 6) == 0.554325
    assert round(slope, 6) == -0.013202
    np.testing.assert_allclose(slope, (w - 0.5) * _slope(w, 4), rtol=1e-12)


@pytest.mark.parametrize("num_steps", only({7}, [1, 4, 7]))
def test_both_modes_with_and_without_checkpoints(num_steps):
    """7 steps are 3 segments of 2 and one step more."""
    with jax.enable_x64(True):
        kept = _outer(num_steps, checkpoint=False)
        want = jax.grad(kept, (0, 1))(0.7, 0.1)
        for outer in (kept, _outer(num_steps)):
            got = jax.grad(outer, (0, 1))(0.7, 0.1)
            np.testing.assert_allclose(got, want, rtol=1e-13)
        forward = jax.jacfwd(_outer(num_steps), (0, 1))(0.7, 0.1)
        np.testing.assert_allclose(forward, want, rtol=1e-13)


def test_truncated_to_the_last_steps():
    """The slope of the last two of five from where the first three end."""
    with jax.enable_x64(True):
        solve = oht.unroll(optax.sgd(0.3), _inner, 5, truncate=2)
        whole = oht.unroll(optax.sgd(0.3), _inner, 5)
        last = oht.unroll(optax.sgd(0.3), _inner, 2)
        middle = oht.unroll(optax.sgd(0.3), _inner, 3)(0.7, 0.4)
        assert float(solve(0.7, 0.4)) == pytest.approx(
            float(whole(0.7, 0.4)), rel=1e-14
        )
        got = jax.grad(solve, (0, 1))(0.7, 0.4)
        want = jax.grad(last)(0.7, middle)
        np.testing.assert_allclose(got, [want, 0.0], rtol=1e-13)
        more = oht.unroll(optax.sgd(0.3), _inner, 5, truncate=9)
        np.testing.assert_allclose(
            jax.grad(more)(0.7, 0.4), jax.grad(whole)(0.7, 0.4), rtol=1e-13
        )


def test_many_steps_are_implicit_differentiation():
    """w = 1 / (1 + decay), whose slope is -w^2."""
    with jax.enable_x64(True):
        solve = oht.unroll(optax.sgd(0.3, momentum=0.5), _inner, 200)
        w, slope = jax.value_and_grad(solve)(0.7, 0.0)
    np.testing.assert_allclose([w, slope], [1 / 1.7, -1 / 1.7**2], rtol=1e-12)


def test_three_levels():
    """z = h x; x = 2 h / (1 + h^2); and the slope of x is 2 (1 - h^2) / (1 + h^2)^2."""
    lowest = oht.unroll(optax.sgd(1.0), lambda z, hyper: (z - hyper) ** 2 / 2, 1)

    def middle_loss(x, h):
        return (lowest(h * x, 0.0) - 2) ** 2 / 2 + x**2 / 2

    with jax.enable_x64(True):
        middle = oht.unroll(optax.sgd(0.5), middle_loss, 60)
        x, slope = jax.value_and_grad(middle)(0.5, 0.0)
    np.testing.assert_allclose([x, slope], [0.8, 0.96], rtol=1e-12)


def test_the_rate_is_learnt_with_further_arguments_and_trees():
    def loss(params, hyper, target):
        return hyper["weight"] * jnp.sum((params["w"] - target) ** 2) / 2

    def outer(hyper, target):
        solve = oht.unroll(optax.sgd(hyper["rate"]), loss, 1)
        return solve(hyper, {"w": jnp.zeros(2)}, target)["w"][1]

    hyper = {"rate": 0.25, "weight": 2.0}
    target = jnp.array([1.0, 3.0])
    got = jax.grad(outer)(hyper, target)  # of rate * weight * target
    np.testing.assert_allclose([got["rate"], got["weight"]], [6.0, 0.75])


def test_what_looks_at_the_loss_gets_it_and_multi_steps_pass():
    guarded = oht.skip_if_unsafe(optax.sgd(0.3), max_value_deviations=5.0)
    every_second = optax.MultiSteps(optax.sgd(0.3), 2)
    with jax.enable_x64(True):
        want = _outer(4)(0.7)
        np.testing.assert_allclose(_outer(4, guarded)(0.7), want, rtol=1e-14)
        # It takes its means with a count in float32.
        np.testing.assert_allclose(_outer(8, every_second)(0.7), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be an integer of at least 1"),
        ({"truncate": 0}, ValueError, "truncate must be an integer of at least 1"),
        ({"checkpoint": 1}, TypeError, "checkpoint must be True or False"),
        ({"tx": 0.1}, TypeError, "tx must be a gradient transformation, got 0.1"),
    ],
)
def test_what_is_refused(kwargs, error, message):
    valid = {"tx": optax.sgd(0.1), "loss_fn": _inner, "num_steps": 2}
    with pytest.raises(error, match=message):
        oht.unroll(**(valid | kwargs))
