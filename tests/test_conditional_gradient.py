"""conditional_gradient: minima that are known, and their optimality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from tests.compare import assert_leaf_close
from tests.driving import one_step

B = np.array([3.0, 1.0, -0.5])


def _minimise(tx, target, steps=2000):
    """Of |w - target|^2 / 2 and the penalty, from 1."""

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(w - target, state, w)
        return (w + updates, state), w

    start = jnp.ones_like(target)
    run = jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0][0])
    return np.asarray(run((start, tx.init(start))))


@pytest.mark.parametrize(
    ("gauge", "target", "want"),
    [
        ("l2", B, B / 3),
        # |b_i - w_i| <= lambda |w|_1 with equality where w is not 0.
        ("l1", B, [1.0, 0.0, 0.0]),
        # Everything above the largest size m is cut to it: sum of (b - m)_+ = 2 m.
        ("linf", B, [1.0, 1.0, -0.5]),
        ("spectral", np.diag(B), np.diag([1.0, 1.0, -0.5])),
    ],
)
def test_minima(gauge, target, want):
    """With a strength of 2, up to what is left of a gap that falls like 1 / t."""
    with jax.enable_x64(True):
        got = _minimise(oht.conditional_gradient(2.0, gauge), jnp.asarray(target))
    np.testing.assert_allclose(got, want, atol=0.02)


def test_one_large_entry_of_all_leaves():
    """The first of those that are equally large; with a first step that forgets."""
    grads = [jnp.array([[1.0, -2.0]]), jnp.array([0.5, 2.0, -2.0])]
    params = jax.tree.map(jnp.ones_like, grads)
    got = one_step(oht.conditional_gradient(4.0), grads, params)
    np.testing.assert_array_equal(got[0], [[-1.0, 0.5 - 1.0]])
    np.testing.assert_array_equal(got[1], [-1.0, -1.0, -1.0])
    within = one_step(oht.conditional_gradient(4.0), grads[1:], params[1:])
    np.testing.assert_array_equal(within[0], [-1.0, -1.5, -1.0])


def test_linf_is_sign_descent_with_decay():
    grads, params = (
        [jnp.array([3.0, -1.0]), jnp.array(0.0)],
        [jnp.ones(2), jnp.ones(())],
    )
    got = one_step(oht.conditional_gradient(2.0, "linf", step=0.25), grads, params)
    np.testing.assert_allclose(got[0], [0.25 * (-2 - 1), 0.25 * (2 - 1)])
    np.testing.assert_allclose(got[1], -0.25)


def test_spectral_is_the_nuclear_norm_times_the_polar_factor():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 4, 3))
        tx = oht.conditional_gradient(2.0, "spectral", step=1.0)
        got = one_step(tx, jnp.asarray(x), jnp.zeros((2, 4, 3)))
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        want = -0.5 * s.sum(-1)[:, None, None] * (u @ vt)
        assert_leaf_close(got, want, 1e-10)


@pytest.mark.parametrize("gauge", ["l1", "linf", "spectral"])
def test_nan_is_seen(gauge):
    grads = [jnp.array([[1.0, jnp.nan], [2.0, 3.0]])]
    got = one_step(oht.conditional_gradient(1.0, gauge), grads, [jnp.zeros((2, 2))])
    assert np.all(np.isnan(got[0]))


def test_a_schedule_is_of_the_count():
    tx = oht.conditional_gradient(1.0, "l2", step=lambda count: 0.5**count)
    w, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    for want in (-2.0, -1.0):
        updates, state = tx.update(jnp.array([2.0]), state, w)
        np.testing.assert_allclose(updates, [want])


def test_unknown_gauge():
    with pytest.raises(ValueError, match=r"gauge must be one of .* got 'l3'"):
        oht.conditional_gradient(1.0, "l3")
