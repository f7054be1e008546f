"""scale_by_fast_belief and fast_adabelief."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from tests.compare import assert_leaf_close, assert_same_bits
from tests.driving import follow, heavy_gradients, jitted, one_step
from tests.registry import make_grads, make_params


def test_worked_values():
    tx, w = jitted(oht.fast_adabelief(0.1)), jnp.array(1.0)
    state, path, squares = tx.init(w), [], []
    for _ in range(3):
        updates, state = tx.update(w, state)
        w += updates
        path.append(float(w))
        squares.append(float(state[0].nu))
    np.testing.assert_allclose(path, [0.986468, 0.973618, 0.961458], rtol=2e-6)
    np.testing.assert_allclose(squares, [0.729, 0.687384, 0.6309], rtol=2e-6)


def test_30_steps_are_sadam_with_belief_for_the_square():
    grads = heavy_gradients(30)
    with jax.enable_x64(True):
        tx = oht.scale_by_fast_belief(0.8, 0.7, 0.1, amsgrad=False, step_decay=False)
        got, _, _ = follow(tx, grads)
    m, s = ({k: np.zeros_like(g) for k, g in grads[0].items()} for _ in range(2))
    for t, (u, g) in enumerate(zip(got, grads, strict=True), 1):
        for k, x in g.items():
            m[k] = 0.8 * m[k] + 0.2 * x
            s[k] = (1 - 0.7 / t) * s[k] + 0.7 / t * (x - m[k]) ** 2
            assert_leaf_close(u[k], m[k] / (s[k] + 0.1 / t), 1e-12, k)


def test_what_was_before_the_first_gradient_does_not_count_with_gamma_1():
    tx = oht.scale_by_fast_belief(0.9, 1.0)
    state = tx.init(jnp.zeros(1))._replace(nu=jnp.array([7.0]))
    _, state = jitted(tx).update(jnp.ones(1), state)
    np.testing.assert_allclose(state.nu, 0.81, rtol=1e-6)


def test_the_largest_square_counts():
    sizes = [1.0, 10.0, 0.1, 0.1]
    for amsgrad in (True, False):
        tx = jitted(oht.scale_by_fast_belief(0.5, amsgrad=amsgrad))
        state, seen = tx.init(jnp.zeros(1)), []
        for size in sizes:
            _, state = tx.update(jnp.array([size]), state)
            seen.append(float(state.nu[0]))
        if amsgrad:
            assert float(state.nu_max[0]) == max(seen) > seen[-1]
        else:
            assert state.nu_max is None


def test_regret_grows_like_the_logarithm():
    """On quadratics with moving minima: doubling the length adds a constant."""
    targets = np.float32(np.random.default_rng(0).normal(size=4096))
    best = np.cumsum(targets) / np.arange(1, 4097)
    tx = oht.fast_adabelief(4.0)

    def step(carry, target):
        w, state = carry
        updates, state = tx.update(w - target, state)
        return (w + updates, state), (w - target) ** 2 / 2

    w = jnp.array(3.0)
    _, losses = jax.jit(lambda s: jax.lax.scan(step, s, targets))((w, tx.init(w)))
    total = np.cumsum(losses)
    regrets = [
        total[n - 1] - np.sum((best[n - 1] - targets[:n]) ** 2) / 2
        for n in (512, 1024, 2048, 4096)
    ]
    assert np.all(np.diff(regrets) < 0.1 * regrets[0] + 3)


def test_zero_gradients_without_delta():
    tx = oht.scale_by_fast_belief(delta=0.0)
    np.testing.assert_array_equal(one_step(tx, jnp.zeros(3)), 0)


def test_the_alias_is_the_composition_bit_for_bit():
    parts = optax.chain(
        oht.scale_by_fast_belief(0.8, 0.5, 0.1, amsgrad=False),
        oht.add_decayed_weights(0.1),
        oht.scale_by_learning_rate(0.1),
    )
    alias = oht.fast_adabelief(0.1, 0.8, 0.5, 0.1, 0.1, amsgrad=False)
    assert_same_bits(alias, parts, make_grads(), make_params())
