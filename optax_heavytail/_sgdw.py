"""Momentum SGD with decoupled weight decay, as its authors wrote it."""

import jax
import optax

from optax_heavytail import _base
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._trace import trace
from optax_heavytail._weight_decay import Mask, add_decayed_weights


def sgdw(
    learning_rate: _base.ScalarOrSchedule,
    momentum: jax.typing.ArrayLike = 0.9,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    multiplier: _base.ScalarOrSchedule = 1.0,
    mask: Mask | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGDW: the learning rate multiplies the gradient alone.

    With :math:`m_0 = 0`, updates :math:`t \geq 1` and a common multiplier
    :math:`\eta_t`,

    .. math::
        m_t &= \beta_1 m_{t-1} + \eta_t \alpha g_t, \\
        w_t &= w_{t-1} - m_t - \eta_t \lambda w_{t-1}.

    Args:
      learning_rate: :math:`\alpha` in [0, inf), or a schedule of the count from 0.
      momentum: :math:`\beta_1` in [0, 1), per update.
      weight_decay: :math:`\lambda` in [0, inf), or a schedule.
      multiplier: :math:`\eta` in [0, inf), or a schedule: the paper's "schedule
        multiplier", such as `warm_restarts`.
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      accumulator_dtype: dtype of :math:`m` in the state; see `trace`.

    Returns:
      A chain of the learning rate, `trace`, `add_decayed_weights` and a change of sign.
      Its ``update`` needs the parameters unless ``weight_decay`` is a Python 0. Updates
      keep the gradients' structure, shapes and dtypes. Zero gradients from the start
      leave the decay alone; an inf or NaN gradient stays in its coordinate's momentum.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.sgdw(learning_rate=0.5, weight_decay=0.1)
      >>> params = jnp.array([10.0])
      >>> updates, _ = tx.update(jnp.array([2.0]), tx.init(params), params)
      >>> float(updates[0])
      -2.0

    References:
      Loshchilov and Hutter, `Decoupled weight decay regularization
      <https://arxiv.org/abs/1711.05101>`_, 2019, algorithm 1.
    """
    _base.check_range("momentum", momentum, 0.0, 1.0, high_open=True)
    _base.check_range("weight_decay", weight_decay, 0.0, float("inf"))
    _base.check_range("learning_rate", learning_rate, 0.0, float("inf"))
    _base.check_range("multiplier", multiplier, 0.0, float("inf"))
    return optax.chain(
        scale_by_learning_rate(
            _base.product(learning_rate, multiplier), flip_sign=False
        ),
        trace(momentum, accumulator_dtype=accumulator_dtype),
        add_decayed_weights(_base.product(weight_decay, multiplier), mask),
        optax.scale(-1),
    )
