import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models.losses import cross_entropy

LOG_10 = 2.302585092994046


def test_elsewhere_the_cross_entropy_of_huge_equal_logits_is_0():
    logits, label = jnp.full(10, 1e8), jnp.array(3)
    assert optax.softmax_cross_entropy_with_integer_labels(logits, label) == 0


@pytest.mark.parametrize("size", [0, 1e4, 1e8, -1e8, 1e30, 3e38])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_huge_equal_logits_cost_what_small_ones_do(size, smoothing):
    found = jax.jit(cross_entropy, static_argnums=2)(
        jnp.full((2, 10), size), jnp.array([0, 9]), smoothing
    )
    np.testing.assert_allclose(found, LOG_10, rtol=1e-6)  # some roundings


@pytest.mark.parametrize("distance", [0.5, 3.0, 64.0])
def test_only_differences_of_logits_count(distance):
    # 2**30 and 2**30 + 64 are float32 numbers, and so are all others here.
    base = 2.0**30 if distance == 64 else 2.0**20
    logits = jnp.array([base, base - distance, base - distance])
    found = cross_entropy(jnp.stack([logits] * 3), jnp.arange(3))
    logarithm = np.log(1 + 2 * np.exp(-distance))
    expected = [logarithm, logarithm + distance, logarithm + distance]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_narrow_logits_give_a_float32_loss(dtype):
    logits = jnp.array([3.0, 1.0, -2.0], dtype)
    loss = cross_entropy(logits, jnp.array(1))
    assert loss.dtype == jnp.float32
    expected = np.log(np.exp([2.0, 0.0, -3.0]).sum())
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    wide = cross_entropy(jnp.array([6e4, -6e4], dtype), jnp.array(1))
    np.testing.assert_allclose(wide, 1.2e5, rtol=4e-3)  # 6e4 itself is rounded
    grad = jax.grad(lambda x: cross_entropy(x, jnp.array(1)))(logits)
    assert grad.dtype == dtype


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ordinary_logits_agree_with_optax(smoothing):
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.normal(size=(50, 7)), jnp.float32)
    labels = jnp.array(rng.integers(7, size=50))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 7), smoothing)

    def ours(x):
        return cross_entropy(x, labels, smoothing).sum()

    def theirs(x):
        return optax.softmax_cross_entropy(x, targets).sum()

    np.testing.assert_allclose(ours(logits), theirs(logits), rtol=1e-6)
    # Probabilities minus targets, of a few roundings of numbers up to 1.
    found, expected = jax.grad(ours)(logits), jax.grad(theirs)(logits)
    np.testing.assert_allclose(found, expected, atol=5e-7)


def test_impossible_labels_and_bad_logits():
    logits = jnp.array([[0.0, -jnp.inf], [0.0, jnp.nan], [0.0, jnp.inf]])
    assert cross_entropy(logits, jnp.array([0, 0, 0]))[0] == 0
    found = cross_entropy(logits, jnp.array([1, 0, 0]))
    assert np.isposinf(found[0])
    assert np.isnan(found[1:]).all()
