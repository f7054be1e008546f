"""Langevin steps: gradient descent with noise of a temperature."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._transform import transform

Skew = jax.typing.ArrayLike | Callable[[Any], Any]


class OverdampedLangevinState(NamedTuple):
    """State of `overdamped_langevin`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    rng_key: jax.Array  #: uint32, the data of a random key; it changes at each update


class UnderdampedLangevinState(NamedTuple):
    """State of `underdamped_langevin`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    rng_key: jax.Array  #: uint32, the data of a random key; it changes at each update
    mu: Any  #: the velocity v, like the parameters, float32 or wider


def overdamped_langevin(
    learning_rate: _base.ScalarOrSchedule,
    inverse_temperature: jax.typing.ArrayLike,
    *,
    skew: Skew = 0.0,
    key: jax.Array | int,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent with the noise that samples from :math:`e^{-\beta F}`.

    For the gradient :math:`g` of :math:`F` and independent standard normal
    :math:`\xi`,

    .. math:: w_t = w_{t-1} - \eta_t (g_t + J g_t) + \sqrt{2 \eta_t / \beta} \, \xi_t

    with an antisymmetric :math:`J`. With :math:`J = 0` this is SGLD; another one leaves
    the law that is sampled as it is and can lead there faster. Small rates sample from
    the law itself: on a quadratic function the covariance is off by a share of the
    order :math:`\eta`.

    It is there to escape from flat places and shallow minima, and as gradient noise of
    a known law. It owns its rate, on which the noise depends: no learning rate follows.
    For inference there are packages with more samplers.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      inverse_temperature: :math:`\beta` in (0, inf]. inf is gradient descent. For the
        mean loss of N examples N is the temperature of their posterior.
      skew: :math:`J`: a finite number :math:`a`, for which neighbours :math:`(x, y)` in
        each flattened leaf go to :math:`a (y, -x)` and an odd last entry to 0; or an
        antisymmetric linear function from gradients to a tree like them.
      key: a key of ``jax.random.key``, or an integer as its seed.

    Returns:
      A transform with an `OverdampedLangevinState`. Updates keep the gradients'
      structure, shapes and dtypes. The noise of a leaf depends on its path and shape:
      it is the same in a masked tree. Inside ``shard_map`` give each shard its own key.
      Zero gradients give the noise. An inf or NaN entry passes, with a skew to its
      neighbour too.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point, or ``key`` is no
        key.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.overdamped_langevin(0.5, float("inf"), skew=2.0, key=0)
      >>> updates, _ = tx.update(jnp.array([1.0, 0.0]), tx.init(jnp.zeros(2)))
      >>> updates.tolist()  # g is (1, 0), and J g is 2 (0, -1)
      [-0.5, 1.0]

    References:
      Gao, Gurbuzbalaban and Zhu, `Breaking reversibility accelerates Langevin dynamics
      for non-convex optimization <https://arxiv.org/abs/1812.07725>`_, 2020.
    """
    _base.check_range("learning_rate", learning_rate, 0.0, float("inf"))
    _check_inverse_temperature(inverse_temperature)
    rotate = _rotation(skew)
    data, wrap = _key(key)

    def init(params):
        del params
        return OverdampedLangevinState(jnp.zeros([], jnp.int32), jnp.copy(data))

    def update(grads, state):
        rate = _base.at_count(learning_rate, state.count)
        drift = optax.tree.add(grads, rotate(grads)) if rotate else grads
        rng_key, noise = _noise(state.rng_key, wrap, grads)
        size = _tree.safe_sqrt(jnp.asarray(2 * rate / inverse_temperature))
        updates = jax.tree.map(lambda d, xi: size * xi - rate * d, drift, noise)
        count = optax.safe_increment(state.count)
        return updates, OverdampedLangevinState(count, rng_key)

    return transform(init, update)


def underdamped_langevin(
    learning_rate: _base.ScalarOrSchedule,
    friction: jax.typing.ArrayLike,
    inverse_temperature: jax.typing.ArrayLike,
    *,
    key: jax.Array | int,
) -> optax.GradientTransformationExtraArgs:
    r"""Descent with a velocity, friction and the noise that belongs to it.

    With :math:`v_0 = 0`, the gradient :math:`g` of :math:`F` and independent standard
    normal :math:`\xi`,

    .. math::
        v_t &= v_{t-1} - \eta_t (\gamma v_{t-1} + g_t)
        + \sqrt{2 \gamma \eta_t / \beta} \, \xi_t, \\
        w_t &= w_{t-1} + \eta_t v_t .

    For small rates it samples from :math:`e^{-\beta F}`, like `overdamped_langevin`,
    and often gets there faster. The step takes the new velocity, with which the
    variance is off by a share of the order :math:`\eta^2`; with the old one it would be
    :math:`\eta`.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0. It is
        a time: the first update has the length :math:`\eta^2 \lVert g \rVert`.
      friction: :math:`\gamma` in [0, inf), per unit of that time. Heavy ball with the
        momentum :math:`1 - \eta \gamma`.
      inverse_temperature: :math:`\beta` in (0, inf]. inf is no noise. For the mean loss
        of N examples N is the temperature of their posterior.
      key: a key of ``jax.random.key``, or an integer as its seed.

    Returns:
      A transform with an `UnderdampedLangevinState`. What is said of noise, devices and
      zero gradients at `overdamped_langevin` holds. An inf or NaN entry stays in the
      velocity: put `skip_if_unsafe` around.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point, or ``key`` is no
        key.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.underdamped_langevin(0.5, 1.0, float("inf"), key=0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for _ in range(2):
      ...     updates, state = tx.update(jnp.array([1.0]), state)
      ...     print(float(updates[0]))
      -0.25
      -0.375

    References:
      Gao, Gurbuzbalaban and Zhu, `Breaking reversibility accelerates Langevin dynamics
      for non-convex optimization <https://arxiv.org/abs/1812.07725>`_, 2020.
    """
    _base.check_range("learning_rate", learning_rate, 0.0, float("inf"))
    _base.check_range("friction", friction, 0.0, float("inf"))
    _check_inverse_temperature(inverse_temperature)
    data, wrap = _key(key)

    def init(params):
        count, rng_key = jnp.zeros([], jnp.int32), jnp.copy(data)
        return UnderdampedLangevinState(count, rng_key, _tree.zeros_like(params))

    def update(grads, state):
        rate = _base.at_count(learning_rate, state.count)
        rng_key, noise = _noise(state.rng_key, wrap, grads)
        size = _tree.safe_sqrt(jnp.asarray(2 * friction * rate / inverse_temperature))
        mu = jax.tree.map(
            lambda v, g, xi: v - rate * (friction * v + g) + size * xi,
            state.mu,
            grads,
            noise,
        )
        updates = jax.tree.map(lambda v: rate * v, mu)
        count = optax.safe_increment(state.count)
        return updates, UnderdampedLangevinState(count, rng_key, mu)

    return transform(init, update, dtypes={"mu": None})


def _check_inverse_temperature(value: Any) -> None:
    is_number = isinstance(value, float | np.floating | jax.Array) and not jnp.ndim(
        value
    )
    if isinstance(value, jax.core.Tracer) or (is_number and value == float("inf")):
        return
    _base.check_range("inverse_temperature", value, 0.0, float("inf"), low_open=True)


def _rotation(skew: Any) -> Callable[[Any], Any] | None:
    """J as a function, ``None`` for 0."""
    if _base.is_function(skew):
        return skew
    _base.check_range("skew", skew, -float("inf"), float("inf"))
    if isinstance(skew, int | float) and skew == 0:
        return None
    return lambda grads: jax.tree.map(lambda g: skew * _turned(g), grads)


def _turned(x: jax.Array) -> jax.Array:
    """Neighbours (x, y) of the flattened array as (y, -x), an odd last one as 0."""
    flat = x.reshape(-1)
    pairs = flat[: x.size // 2 * 2].reshape(-1, 2)
    turned = jnp.stack([pairs[:, 1], -pairs[:, 0]], axis=1).reshape(-1)
    return jnp.concatenate([turned, 0 * flat[turned.size :]]).reshape(x.shape)


def _key(key: Any) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The data of a key, and the function that makes a key of such data."""
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        key = jax.random.key(key)
    dtype = getattr(key, "dtype", None)
    if (
        dtype is None
        or not jnp.issubdtype(dtype, jax.dtypes.prng_key)
        or jnp.shape(key)
    ):
        raise TypeError(f"key must be an integer or one `jax.random.key`, got {key!r}.")
    impl = jax.random.key_impl(key)
    return jax.random.key_data(key), lambda data: jax.random.wrap_key_data(
        data, impl=impl
    )


def _noise(data: jax.Array, wrap: Any, tree: Any) -> tuple[jax.Array, Any]:
    """The data of the next key, and standard normal numbers like ``tree``."""
    later, now = jax.random.split(wrap(data))

    def normal(path, x):
        seed = np.uint32(zlib.crc32(jax.tree_util.keystr(path).encode()))
        return jax.random.normal(jax.random.fold_in(now, seed), x.shape, x.dtype)

    return jax.random.key_data(later), jax.tree_util.tree_map_with_path(normal, tree)
