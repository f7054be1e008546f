"""LAMBC: LAMB with a clipped trust ratio."""

from typing import Any

import jax
import optax

from optax_heavytail import _base
from optax_heavytail._adam import scale_by_adam
from optax_heavytail._gclip import clip_by_norm
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._trust_ratio import (
    Bounds,
    check_bounds,
    scale_by_clipped_trust_ratio,
)
from optax_heavytail._weight_decay import Mask, add_decayed_weights, check_mask


def lambc(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    mask: Mask | None = None,
    trust_ratio_bounds: Bounds | None = (0.0, 1.0),
    bias_correction: bool = False,
    max_grad_norm: _base.ScalarOrSchedule | None = None,
    trust_ratio_mask: Mask | None = None,
    layer_axis: Any = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LAMBC: Adam's direction, scaled to each layer's norm within bounds.

    With :math:`u_t` of `scale_by_adam`, per leaf,

    .. math::
        s_t = u_t + \lambda w_{t-1}, \qquad
        r_t = \frac{\lVert w_{t-1} \rVert}{\lVert s_t \rVert}, \qquad
        w_t = w_{t-1} - \eta_t \min(\max(r_t, l), h) \, s_t .

    The defaults are those of the authors' code: no bias correction, and the bound also
    applies where :math:`r = 1` came from a zero norm. (That code builds a new optimizer
    in every epoch, so that its moments restart; this one does not.) With
    ``trust_ratio_bounds=None`` and ``bias_correction=True`` it is ``optax.lamb``.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      b1: decay of the average of the gradient, in [0, 1).
      b2: decay of the average of its square, in [0, 1).
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; part of the layer's
        step, so the ratio scales it too.
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      trust_ratio_bounds: :math:`(l, h)`, each a number, a schedule or ``None`` for no
        bound; ``None`` for neither.
      bias_correction: see `scale_by_adam`.
      max_grad_norm: bound on the gradient's global norm, in (0, inf), before all else.
        ``None``: none.
      trust_ratio_mask: which leaves take the ratio (``True``); the others take Adam's
        step. ``None``: all.
      layer_axis: axis of stacked layers; see `scale_by_clipped_trust_ratio`.
      mu_dtype: see `scale_by_adam`.
      nu_dtype: see `scale_by_adam`.
      axis_name: see `clip_by_norm`.

    Returns:
      A chain of `clip_by_norm` (if asked for), `scale_by_adam`, `add_decayed_weights`,
      `scale_by_clipped_trust_ratio` and `scale_by_learning_rate`. Its ``update`` needs
      the parameters. Updates keep the gradients' structure, shapes and dtypes. What
      zero, huge, inf and NaN gradients do is said at the parts.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> params = {"a": jnp.array([40.0]), "b": jnp.array([0.25])}
      >>> tx = oht.lambc(learning_rate=0.1, b1=0.0, b2=0.0, eps=0.0)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> {k: round(float(u[0]), 3) for k, u in updates.items()}
      {'a': -0.1, 'b': -0.025}
      >>> {k: float(r) for k, r in oht.get_trust_ratio(state).items()}
      {'a': 1.0, 'b': 0.25}

    References:
      Fong, Chen and Chen, `Improving layer-wise adaptive rate methods using trust ratio
      clipping <https://arxiv.org/abs/2011.13584>`_, 2020; You et al., `LAMB
      <https://arxiv.org/abs/1904.00962>`_, 2020, algorithm 2.
    """
    check_mask("trust_ratio_mask", trust_ratio_mask)
    lower, upper = check_bounds("trust_ratio_bounds", trust_ratio_bounds)
    clip = optax.identity()
    if max_grad_norm is not None:
        _base.check_range(
            "max_grad_norm", max_grad_norm, 0.0, float("inf"), low_open=True
        )
        clip = clip_by_norm(max_grad_norm, axis_name=axis_name)
    return optax.chain(
        clip,
        scale_by_adam(
            b1,
            b2,
            eps,
            bias_correction=bias_correction,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_clipped_trust_ratio(
            lower,
            upper,
            layer_axis=layer_axis,
            mask=trust_ratio_mask,
            axis_name=axis_name,
        ),
        scale_by_learning_rate(learning_rate),
    )
