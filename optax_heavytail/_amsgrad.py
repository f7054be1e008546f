"""AMSGrad: Adam with a second moment that never shrinks."""

import jax
import optax

from optax_heavytail import _base, _moments, _tree
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform


def scale_by_amsgrad(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    bias_correction: bool = True,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the averaged gradient by the root of the largest averaged square so far.

    Elementwise, with :math:`m_0 = v_0 = \hat v_0 = 0` and updates :math:`t \geq 1`,

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \\
        \hat v_t &= \max\left(\hat v_{t-1}, \frac{v_t}{1 - \beta_2^t}\right), \qquad
        u_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{\hat v_t} + \epsilon}.

    This is ``optax.scale_by_amsgrad``. As published, it does not divide by
    :math:`1 - \beta^t`: that is ``bias_correction=False``.

    Args:
      b1: :math:`\beta_1` in [0, 1), per update.
      b2: :math:`\beta_2` in [0, 1), per update.
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      bias_correction: whether to correct both averages for their start at 0.
      mu_dtype: dtype of :math:`m` in the state. ``None``: the parameter's own, but at
        least float32. bfloat16 is rounded stochastically: see `ema`.
      nu_dtype: likewise for :math:`v` and :math:`\hat v`, which is then up to 0.8% too
        large: of several roundings of one number the maximum keeps the largest.

    Returns:
      A transform with an ``optax.ScaleByAmsgradState``, for a bfloat16 average inside a
      `StochasticRoundingState`. Updates keep the gradients' structure, shapes and
      dtypes. Zero gradients from the start give zero updates; one huge gradient damps
      its coordinate for good, and stops it if its square overflows; an inf or NaN
      gradient makes its coordinate NaN from then on.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_amsgrad(b1=0.0, b2=0.0, eps=0.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (4.0, 1.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> float(updates[0])
      0.25

    References:
      Reddi, Kale and Kumar, `On the convergence of Adam and beyond
      <https://openreview.net/forum?id=ryQu7f-RZ>`_, 2018, algorithm 2.
    """
    _moments.check(b1, b2, mu_dtype, nu_dtype)
    _base.check_range("eps", eps, 0.0, float("inf"))
    _base.check_flag("bias_correction", bias_correction)

    def init(params):
        start = _moments.start(params, mu_dtype, nu_dtype)
        nu_max = _tree.zeros_like(params, nu_dtype)
        return optax.ScaleByAmsgradState(*start, nu_max)

    def update(grads, state):
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        mean, square = mu, nu
        if bias_correction:
            mean, square = _moments.corrected(mu, nu, b1, b2, count)
        nu_max = jax.tree.map(_tree.maximum, square, state.nu_max)
        direction = _tree.divide_by_root(mean, nu_max, eps)
        return direction, optax.ScaleByAmsgradState(count, mu, nu, nu_max)

    dtypes = {"mu": mu_dtype, "nu": nu_dtype, "nu_max": nu_dtype}
    return transform(init, update, dtypes=dtypes)


def amsgrad(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    bias_correction: bool = True,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AMSGrad: Adam with a second moment that never shrinks.

    .. math:: w_t = w_{t-1} - \alpha_t u_t

    with :math:`u_t` of `scale_by_amsgrad`. This is ``optax.amsgrad``; as published it
    is with ``bias_correction=False``.

    Args:
      learning_rate: :math:`\alpha` in [0, inf), or a schedule of the count from 0.
      b1: decay of the average of the gradient, in [0, 1).
      b2: decay of the average of its square, in [0, 1).
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      bias_correction: see `scale_by_amsgrad`.
      mu_dtype: see `scale_by_amsgrad`.
      nu_dtype: see `scale_by_amsgrad`.

    Returns:
      ``chain(scale_by_amsgrad, scale_by_learning_rate)``. What zero, huge, inf and NaN
      gradients do is said at `scale_by_amsgrad`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.amsgrad(learning_rate=0.5, b1=0.0, b2=0.0, eps=0.0)
      >>> updates, _ = tx.update(jnp.array([4.0]), tx.init(jnp.zeros(1)))
      >>> float(updates[0])
      -0.5

    References:
      Reddi, Kale and Kumar, `On the convergence of Adam and beyond
      <https://openreview.net/forum?id=ryQu7f-RZ>`_, 2018, algorithm 2.
    """
    return optax.chain(
        scale_by_amsgrad(
            b1,
            b2,
            eps,
            bias_correction=bias_correction,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        scale_by_learning_rate(learning_rate),
    )
