"""The dtype-stable last link of the aliases."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_same_bits
from tests.registry import make_grads, make_params


def _schedule(count):
    return 0.3 / (count + 1)


@pytest.mark.parametrize("rate", [0.1, _schedule], ids=["number", "schedule"])
@pytest.mark.parametrize("flip_sign", [True, False])
def test_equal_to_optax_in_float32(rate, flip_sign):
    ours = oht.scale_by_learning_rate(rate, flip_sign=flip_sign)
    theirs = optax.scale_by_learning_rate(rate, flip_sign=flip_sign)
    assert_same_bits(ours, theirs, make_grads(), make_params())


def test_schedules_start_at_count_zero():
    tx = oht.scale_by_learning_rate(lambda count: 10.0**-count)
    state, rates = tx.init(jnp.ones(1)), []
    for _ in range(3):
        updates, state = tx.update(jnp.ones(1), state)
        rates.append(float(updates[0]))
    np.testing.assert_allclose(rates, [-1, -0.1, -0.01], rtol=1e-6)  # powers of 10
    assert int(state.count) == 3


def test_an_array_does_not_widen_the_updates():
    grads = jnp.full(2, 3.0, jnp.bfloat16)
    theirs = optax.scale_by_learning_rate(jnp.float32(0.1))
    assert theirs.update(grads, theirs.init(grads))[0].dtype == jnp.float32
    ours = oht.scale_by_learning_rate(jnp.float32(0.1))
    updates, _ = ours.update(grads, ours.init(grads))
    assert updates.dtype == jnp.bfloat16
    # The product is rounded once, and 0.1 itself not at all to bfloat16.
    np.testing.assert_array_equal(updates, jnp.asarray(-0.3, jnp.bfloat16))


def test_bad_numbers_pass():
    tx = oht.scale_by_learning_rate(0.5)
    updates, _ = tx.update(jnp.array([np.nan, np.inf, 0.0]), tx.init(jnp.ones(3)))
    np.testing.assert_array_equal(updates, [np.nan, -np.inf, 0.0])
