import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models import losses
from tests.in_time import only

cross_entropy = jax.jit(losses.cross_entropy, static_argnames="smoothing")

LOG_10 = 2.302585092994046


def test_elsewhere_the_cross_entropy_of_huge_equal_logits_is_0():
    logits, label = jnp.full(10, 1e8), jnp.array(3)
    assert optax.softmax_cross_entropy_with_integer_labels(logits, label) == 0


@pytest.mark.parametrize("size", [0, 1e4, 1e8, -1e8, 1e30, 3e38])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_huge_equal_logits_cost_what_small_ones_do(size, smoothing):
    logits = np.full((2, 10), size, np.float32)
    found = cross_entropy(logits, np.array([0, 9]), smoothing=smoothing)
    np.testing.assert_allclose(found, LOG_10, rtol=1e-6)  # some roundings


@pytest.mark.parametrize("distance", [0.5, 3.0, 64.0])
def test_only_differences_of_logits_count(distance):
    # 2**30 and 2**30 + 64 are float32 numbers, and so are all others here.
    base = 2.0**30 if distance == 64 else 2.0**20
    logits = np.float32([base, base - distance, base - distance])
    found = cross_entropy(np.stack([logits] * 3), np.arange(3))
    logarithm = np.log(1 + 2 * np.exp(-distance))
    expected = [logarithm, logarithm + distance, logarithm + distance]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "dtype", only({jnp.bfloat16}, [jnp.bfloat16, jnp.float16, jnp.float32])
)
def test_narrow_logits_give_a_float32_loss(dtype):
    logits = jnp.array([3.0, 1.0, -2.0], dtype)
    loss = cross_entropy(logits, jnp.array(1))
    assert loss.dtype == jnp.float32
    expected = np.log(np.exp([2.0, 0.0, -3.0]).sum())
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    wide = cross_entropy(jnp.array([6e4, -6e4], dtype), jnp.array(1))
    np.testing.assert_allclose(wide, 1.2e5, rtol=4e-3)  # 6e4 itself is rounded
    grad = jax.jit(jax.grad(lambda x: cross_entropy(x, 1)))(logits)
    assert grad.dtype == dtype


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ordinary_logits_agree_with_optax(smoothing):
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(size=(50, 7)))
    labels = rng.integers(7, size=50)
    targets = (1 - smoothing) * np.eye(7, dtype="f")[labels] + smoothing / 7

    def ours(x):
        return cross_entropy(x, labels, smoothing=smoothing).sum()

    def theirs(x):
        return optax.softmax_cross_entropy(x, targets).sum()

    both = jax.jit(lambda x: [jax.value_and_grad(f)(x) for f in (ours, theirs)])
    (loss, found), (same, expected) = both(logits)
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    # Probabilities minus targets, of a few roundings of numbers up to 1.
    np.testing.assert_allclose(found, expected, atol=5e-7)


def test_impossible_labels_and_bad_logits():
    logits = np.float32([[0.0, -np.inf], [0.0, np.nan], [0.0, np.inf]])
    assert cross_entropy(logits, np.array([0, 0, 0]))[0] == 0
    found = cross_entropy(logits, np.array([1, 0, 0]))
    assert np.isposinf(found[0])
    assert np.isnan(found[1:]).all()
