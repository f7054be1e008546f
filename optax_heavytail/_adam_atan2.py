"""Adam without an epsilon."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _moments, _tree
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform
from optax_heavytail._weight_decay import Mask, add_decayed_weights

_SCALE = 4 / math.pi  # 1 where the averages agree


class ScaleByAdamAtan2State(NamedTuple):
    """State of `scale_by_adam_atan2`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    mu: Any  #: m, like the parameters, float32 or wider or in mu_dtype
    root: Any  #: the root of v, likewise in nu_dtype


def scale_by_adam_atan2(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    *,
    scale: jax.typing.ArrayLike = _SCALE,
    ratio: jax.typing.ArrayLike = 1.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam's direction as an angle: bounded, and the same for gradients of any size.

    Elementwise, with Adam's averages corrected for their start at 0,

    .. math:: u_t = a \operatorname{atan2}\left(\hat m_t, \rho \sqrt{\hat v_t}\right).

    Where :math:`\hat m` is small against :math:`\sqrt{\hat v}` that is near to
    :math:`(4 / \pi) \hat m / \sqrt{\hat v}`, and 1 where they agree, with the defaults.
    There is no :math:`\epsilon` to set: gradients times any positive number give the
    same updates, down to the smallest number there is.

    Args:
      b1: :math:`\beta_1` in [0, 1), per update.
      b2: :math:`\beta_2` in [0, 1), per update.
      scale: :math:`a` in (0, inf). No update is larger than :math:`a \pi / 2`, which is
        2 by default.
      ratio: :math:`\rho` in (0, inf).
      mu_dtype: dtype of :math:`m` in the state. ``None``: the parameter's own, but at
        least float32. bfloat16 is rounded stochastically: see `ema`.
      nu_dtype: likewise for the root of :math:`v`.

    Returns:
      A transform with a `ScaleByAdamAtan2State`, for bfloat16 inside a
      `StochasticRoundingState`. Updates keep the gradients' structure, shapes and
      dtypes. Zero gradients from the start give zero updates. An inf or NaN gradient
      makes its coordinate NaN from then on, and no other.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_adam_atan2()
      >>> updates, _ = tx.update(jnp.array([-3.0, 1e-30, 0.0]), tx.init(jnp.zeros(3)))
      >>> [round(u, 3) for u in updates.tolist()]
      [-1.0, 1.0, 0.0]

    References:
      Everett et al., `Scaling exponents across parameterizations and optimizers
      <https://arxiv.org/abs/2407.05872>`_, 2024.
    """
    _moments.check(b1, b2, mu_dtype, nu_dtype)
    for name, value in (("scale", scale), ("ratio", ratio)):
        _base.check_range(name, value, 0.0, float("inf"), low_open=True)

    def init(params):
        return ScaleByAdamAtan2State(*_moments.start(params, mu_dtype, nu_dtype))

    def update(grads, state):
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        root = jax.tree.map(
            lambda r, g: _tree.power_mean(r, jnp.abs(g), b2, 2), state.root, grads
        )
        weight = ratio * _tree.debias_weight(b2, count) ** -0.5
        angles = jax.tree.map(
            lambda m, r: scale * _angle(m, weight * r),
            optax.tree.bias_correction(mu, b1, count),
            root,
        )
        return angles, ScaleByAdamAtan2State(count, mu, root)

    return transform(init, update, dtypes={"mu": mu_dtype, "root": nu_dtype})


def adam_atan2(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    scale: jax.typing.ArrayLike = _SCALE,
    ratio: jax.typing.ArrayLike = 1.0,
    mask: Mask | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam-atan2: AdamW with an angle in place of its quotient.

    With :math:`u_t` of `scale_by_adam_atan2`,

    .. math:: w_t = w_{t-1} - \eta_t (u_t + \lambda w_{t-1}).

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0. Adam's
        is a good start.
      b1: decay of the average of the gradient, in [0, 1).
      b2: decay of the average of its square, in [0, 1).
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; multiplied by the
        learning rate.
      scale: see `scale_by_adam_atan2`.
      ratio: see `scale_by_adam_atan2`.
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      mu_dtype: see `scale_by_adam_atan2`.
      nu_dtype: see `scale_by_adam_atan2`.

    Returns:
      ``chain(scale_by_adam_atan2, add_decayed_weights, scale_by_learning_rate)``. Its
      ``update`` needs the parameters unless ``weight_decay`` is a Python 0. What zero,
      huge, inf and NaN gradients do is said at `scale_by_adam_atan2`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.adam_atan2(learning_rate=0.1, weight_decay=0.5)
      >>> params = jnp.array([2.0])
      >>> updates, _ = tx.update(jnp.array([1e-30]), tx.init(params), params)
      >>> round(float(updates[0]), 3)
      -0.2

    References:
      Everett et al., `Scaling exponents across parameterizations and optimizers
      <https://arxiv.org/abs/2407.05872>`_, 2024.
    """
    return optax.chain(
        scale_by_adam_atan2(
            b1, b2, scale=scale, ratio=ratio, mu_dtype=mu_dtype, nu_dtype=nu_dtype
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def _angle(mean: jax.Array, root: jax.Array) -> jax.Array:
    """``atan2(mean, root)``, with a slope of 0 at the origin."""
    origin = (mean == 0) & (root == 0)
    return jnp.where(origin, 0, jnp.arctan2(mean, jnp.where(origin, 1, root)))
