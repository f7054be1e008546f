"""LARSC: LARS with a clipped trust ratio."""

from typing import Any

import jax
import optax

from optax_heavytail import _base
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._trace import trace
from optax_heavytail._trust_ratio import (
    Bounds,
    check_bounds,
    scale_by_clipped_trust_ratio,
)
from optax_heavytail._weight_decay import Mask, add_decayed_weights, check_mask


def larsc(
    learning_rate: _base.ScalarOrSchedule,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    mask: Mask | None = None,
    trust_coefficient: jax.typing.ArrayLike = 1e-3,
    trust_ratio_bounds: Bounds | None = (0.0, 1.0),
    momentum: jax.typing.ArrayLike = 0.9,
    nesterov: bool = False,
    trust_ratio_mask: Mask | None = None,
    eps: jax.typing.ArrayLike = 0.0,
    layer_axis: Any = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LARSC: momentum SGD with a bounded learning rate for each layer.

    Per leaf, with :math:`m_0 = 0`,

    .. math::
        s_t &= g_t + \lambda w_{t-1}, \qquad
        r_t = c \, \frac{\lVert w_{t-1} \rVert}{\lVert s_t \rVert + \epsilon}, \\
        m_t &= \beta m_{t-1} + \eta_t \min(\max(r_t, l), h) \, s_t, \qquad
        w_t = w_{t-1} - m_t .

    The bounds apply to the ratio with its coefficient :math:`c`. With
    ``trust_ratio_bounds=None`` it is ``optax.lars``. Departure from the paper, as
    there: it divides by the norm of the sum :math:`s_t`, not by the sum of the norms.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; part of the layer's
        step, so the ratio scales it too.
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      trust_coefficient: :math:`c` in (0, inf), without unit.
      trust_ratio_bounds: :math:`(l, h)`, each a number, a schedule or ``None`` for no
        bound; ``None`` for neither.
      momentum: :math:`\beta` in [0, 1), per update; applied after the ratio.
      nesterov: whether the momentum looks one step ahead.
      trust_ratio_mask: which leaves take the ratio (``True``). ``None``: all.
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      layer_axis: axis of stacked layers; see `scale_by_clipped_trust_ratio`.
      accumulator_dtype: dtype of :math:`m` in the state; see `trace`.
      axis_name: see `clip_by_norm`.

    Returns:
      A chain of `add_decayed_weights`, `scale_by_clipped_trust_ratio`,
      `scale_by_learning_rate` and `trace`. Its ``update`` needs the parameters. Updates
      keep the gradients' structure, shapes and dtypes. What zero, huge, inf and NaN
      gradients do is said at the parts; an inf or NaN stays in the momentum.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.larsc(learning_rate=1.0, trust_coefficient=0.1)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(jnp.array([0.0, 50.0]), tx.init(params), params)
      >>> [round(u, 3) for u in (updates + 0.0).tolist()]
      [0.0, -0.5]

    References:
      You, Gitman and Ginsburg, `Large batch training of convolutional networks
      <https://arxiv.org/abs/1708.03888>`_, 2017, algorithm 1; Fong, Chen and Chen,
      `Improving layer-wise adaptive rate methods using trust ratio clipping
      <https://arxiv.org/abs/2011.13584>`_, 2020.
    """
    _base.check_range("momentum", momentum, 0.0, 1.0, high_open=True)
    _base.check_flag("nesterov", nesterov)
    check_mask("trust_ratio_mask", trust_ratio_mask)
    lower, upper = check_bounds("trust_ratio_bounds", trust_ratio_bounds)
    return optax.chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_clipped_trust_ratio(
            lower,
            upper,
            layer_axis=layer_axis,
            mask=trust_ratio_mask,
            axis_name=axis_name,
            trust_coefficient=trust_coefficient,
            eps=eps,
        ),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov, accumulator_dtype),
    )
