"""AdaShift: a second moment that has not seen the gradient it scales."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform


class ScaleByAdashiftState(NamedTuple):
    """State of `scale_by_adashift`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    nu: Any  #: v, like the parameters, float32 or wider or in nu_dtype
    window: Any  #: the last n gradients; a leading axis n, then like the parameters


def scale_by_adashift(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-10,
    *,
    n: int = 10,
    nu_dtype: jax.typing.DTypeLike | None = None,
    window_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides an average of the last gradients by the root of an older second moment.

    Elementwise, for updates :math:`t > n`, with :math:`v_n = 0`,

    .. math::
        m_t &= \sum_{i=0}^{n-1} \beta_1^i g_{t-i} \Big/ \sum_{i=0}^{n-1} \beta_1^i, \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_{t-n}^2, \qquad
        u_t = \frac{m_t}{\sqrt{v_t / (1 - \beta_2^{t-n})} + \epsilon};

    the first :math:`n` updates are 0. The state holds :math:`n + 1` copies of the
    parameters, and each update reads them all.

    Args:
      b1: :math:`\beta_1` in [0, 1): weight of a gradient one update older.
      b2: :math:`\beta_2` in [0, 1), per update.
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      n: delay in updates, a Python integer, at least 1.
      nu_dtype: dtype of :math:`v` in the state. ``None``: the parameter's own, but at
        least float32. bfloat16 is rounded stochastically: see `ema`.
      window_dtype: likewise for the last gradients; a gradient is rounded once.

    Returns:
      A transform with a `ScaleByAdashiftState`. Updates keep the gradients' structure,
      shapes and dtypes. Zero gradients give zero updates. A coordinate's first
      gradient other than 0 is divided by :math:`\epsilon` alone: take a larger one
      where gradients are sparse. A NaN makes its coordinate NaN for good. An inf makes
      its updates inf or NaN while it is in the window; after it, as after a gradient
      whose square overflows, they are 0 for good.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_adashift(n=1)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (4.0, 1.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> round(float(updates[0]), 3)
      0.25

    References:
      Zhou et al., `AdaShift <https://arxiv.org/abs/1810.00143>`_, 2019, algorithm 3
      with the identity for its spatial function.
    """
    _base.check_range("b1", b1, 0.0, 1.0, high_open=True)
    _base.check_range("b2", b2, 0.0, 1.0, high_open=True)
    _base.check_range("eps", eps, 0.0, float("inf"))
    _base.check_static_integer("n", n, 1)
    _base.check_dtype("nu_dtype", nu_dtype)
    _base.check_dtype("window_dtype", window_dtype)

    def init(params):
        nu = _tree.zeros_like(params, nu_dtype)
        zeros = _tree.zeros_like(params, window_dtype)
        window = jax.tree.map(lambda v: jnp.stack([v] * n), zeros)
        return ScaleByAdashiftState(jnp.zeros([], jnp.int32), nu, window)

    def update(grads, state):
        count = optax.safe_increment(state.count)
        slot = state.count % n  # of the oldest gradient, and of the newest from now on
        oldest = jax.tree.map(lambda w: w[slot], state.window)
        window = jax.tree.map(
            lambda w, g: w.at[slot].set(g.astype(w.dtype)), state.window, grads
        )
        weights = b1 ** ((slot - jnp.arange(n)) % n)
        weights = weights / jnp.sum(weights)
        mean = jax.tree.map(
            # The default precision is bfloat16 on a TPU.
            lambda w: jnp.tensordot(weights, w, 1, precision="highest"),
            window,
        )
        seen = jnp.maximum(count - n, 1)
        nu = optax.tree.update_moment(oldest, state.nu, b2, 2)
        square = optax.tree.scale(1 / _tree.debias_weight(b2, seen), nu)
        direction = _tree.divide_by_root(mean, square, eps)
        started = jnp.asarray(count) > n
        nu = optax.tree.where(started, nu, state.nu)
        direction = jax.tree.map(lambda u: jnp.where(started, u, 0), direction)
        return direction, ScaleByAdashiftState(count, nu, window)

    dtypes = {"nu": nu_dtype, "window": window_dtype}
    return transform(init, update, dtypes=dtypes)


def adashift(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-10,
    *,
    n: int = 10,
    nu_dtype: jax.typing.DTypeLike | None = None,
    window_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaShift: Adam without the correlation of a gradient and its own scale.

    .. math:: w_t = w_{t-1} - \alpha_t u_t

    with :math:`u_t` of `scale_by_adashift`.

    Args:
      learning_rate: :math:`\alpha` in [0, inf), or a schedule of the count from 0.
      b1: weight of a gradient one update older, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      n: delay in updates, a Python integer, at least 1. The state holds n + 1 copies of
        the parameters.
      nu_dtype: see `scale_by_adashift`.
      window_dtype: see `scale_by_adashift`.

    Returns:
      ``chain(scale_by_adashift, scale_by_learning_rate)``. What zero, huge, inf and NaN
      gradients do is said at `scale_by_adashift`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.adashift(learning_rate=1.0, n=1)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (4.0, 1.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> round(float(updates[0]), 3)
      -0.25

    References:
      Zhou et al., `AdaShift <https://arxiv.org/abs/1810.00143>`_, 2019.
    """
    return optax.chain(
        scale_by_adashift(
            b1, b2, eps, n=n, nu_dtype=nu_dtype, window_dtype=window_dtype
        ),
        scale_by_learning_rate(learning_rate),
    )
