"""Adam's direction with stable dtypes, and AdamW as its authors wrote it."""

import jax
import optax

from optax_heavytail import _base, _moments, _tree
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform
from optax_heavytail._weight_decay import Mask, add_decayed_weights


def scale_by_adam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    bias_correction: bool = True,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the averaged gradient by the root of its averaged square.

    Elementwise, with :math:`m_0 = v_0 = 0` and updates :math:`t \geq 1`,

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \\
        u_t &= \frac{m_t / (1 - \beta_1^t)}
        {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon},

    without the two corrections if ``bias_correction`` is off. The arithmetic is that of
    ``optax.scale_by_adam``. Unlike there, both averages are kept in float32 or wider
    unless asked otherwise, and their dtypes never change.

    Args:
      b1: :math:`\beta_1` in [0, 1), per update.
      b2: :math:`\beta_2` in [0, 1), per update.
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      bias_correction: whether to correct both averages for their start at 0.
      mu_dtype: dtype of :math:`m` in the state. ``None``: the parameter's own, but at
        least float32. bfloat16 is rounded stochastically: see `ema`.
      nu_dtype: likewise for :math:`v`.

    Returns:
      A transform with an ``optax.ScaleByAdamState``, for a bfloat16 average inside a
      `StochasticRoundingState`. Updates keep the gradients'
      structure, shapes and dtypes. Zero gradients from the start give zero updates.
      Squares of gradients below 1e-19 underflow in float32: :math:`\epsilon` then rules
      the update. Above 1e19 they overflow and the update is 0. An inf or NaN gradient
      makes its coordinate NaN from then on.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_adam()
      >>> updates, _ = tx.update(jnp.array([-3.0, 0.1]), tx.init(jnp.zeros(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [-1.0, 1.0]

    References:
      Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2015, algorithm 1.
    """
    _moments.check(b1, b2, mu_dtype, nu_dtype)
    _base.check_range("eps", eps, 0.0, float("inf"))
    _base.check_flag("bias_correction", bias_correction)

    def init(params):
        return optax.ScaleByAdamState(*_moments.start(params, mu_dtype, nu_dtype))

    def update(grads, state):
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        mean, square = mu, nu
        if bias_correction:
            mean, square = _moments.corrected(mu, nu, b1, b2, count)
        direction = _tree.divide_by_root(mean, square, eps)
        return direction, optax.ScaleByAdamState(count, mu, nu)

    return transform(init, update, dtypes={"mu": mu_dtype, "nu": nu_dtype})


def adamw_decoupled(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    multiplier: _base.ScalarOrSchedule = 1.0,
    bias_correction: bool = True,
    mask: Mask | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW with a weight decay that the learning rate does not multiply.

    With :math:`u_t` of `scale_by_adam` and a common multiplier :math:`\eta_t`,

    .. math:: w_t = w_{t-1} - \eta_t (\alpha u_t + \lambda w_{t-1}).

    ``optax.adamw`` has :math:`\alpha \lambda` in place of :math:`\lambda`: divide its
    weight decay by the learning rate to go from here to there.

    Args:
      learning_rate: :math:`\alpha` in [0, inf), or a schedule of the count from 0.
      b1: decay of the average of the gradient, in [0, 1).
      b2: decay of the average of its square, in [0, 1).
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      weight_decay: :math:`\lambda` in [0, inf), or a schedule.
      multiplier: :math:`\eta` in [0, inf), or a schedule: the paper's "schedule
        multiplier", such as `warm_restarts`.
      bias_correction: see `scale_by_adam`.
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      mu_dtype: see `scale_by_adam`.
      nu_dtype: see `scale_by_adam`.

    Returns:
      A chain of `scale_by_adam`, the learning rate, `add_decayed_weights` and a change
      of sign. Its ``update`` needs the parameters unless ``weight_decay`` is 0.
      What zero, huge, inf and NaN gradients do is said at `scale_by_adam`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.adamw_decoupled(learning_rate=0.0, weight_decay=0.1)
      >>> params = jnp.array([10.0])
      >>> updates, _ = tx.update(jnp.zeros(1), tx.init(params), params)
      >>> float(updates[0])
      -1.0

    References:
      Loshchilov and Hutter, `Decoupled weight decay regularization
      <https://arxiv.org/abs/1711.05101>`_, 2019, algorithm 2.
    """
    _base.check_range("weight_decay", weight_decay, 0.0, float("inf"))
    _base.check_range("learning_rate", learning_rate, 0.0, float("inf"))
    _base.check_range("multiplier", multiplier, 0.0, float("inf"))
    return optax.chain(
        scale_by_adam(
            b1,
            b2,
            eps,
            bias_correction=bias_correction,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        scale_by_learning_rate(
            _base.product(learning_rate, multiplier), flip_sign=False
        ),
        add_decayed_weights(_base.product(weight_decay, multiplier), mask),
        optax.scale(-1),
    )
