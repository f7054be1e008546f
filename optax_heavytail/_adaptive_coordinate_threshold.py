"""ACClip's threshold, measured and not used."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._clip_by_moment import magnitudes, update_threshold
from optax_heavytail._transform import transform


class AdaptiveCoordinateThresholdState(NamedTuple):
    """State of `adaptive_coordinate_threshold`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    threshold: Any  #: tau, like the parameters, float32 or wider or in threshold_dtype


def adaptive_coordinate_threshold(
    b2: jax.typing.ArrayLike = 0.99,
    alpha: jax.typing.ArrayLike = 1.0,
    *,
    threshold_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Measures ACClip's threshold and passes the updates unchanged.

    Elementwise, with :math:`\tau_0 = 0` and updates :math:`k \geq 1`,

    .. math:: \tau_k^\alpha = \beta_2 \tau_{k-1}^\alpha + (1 - \beta_2) |g_k|^\alpha .

    Read it with `get_threshold`.

    Args:
      b2: :math:`\beta_2` in [0, 1), per update. 0.99 spans about 100 updates.
      alpha: order of the moment, in [1, 2].
      threshold_dtype: dtype of the threshold in the state. ``None``: the parameter's
        own, but at least float32. bfloat16 is rounded stochastically: see `ema`.

    Returns:
      A transform with an `AdaptiveCoordinateThresholdState`, for a bfloat16 threshold
      inside a `StochasticRoundingState`. Zero gradients let the
      threshold decay; huge and tiny ones neither overflow nor underflow; inf and NaN
      pass on in the updates and do not enter the threshold.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.adaptive_coordinate_threshold(b2=0.75, alpha=2.0)
      >>> _, state = tx.update(jnp.array([4.0]), tx.init(jnp.zeros(1)))
      >>> float(oht.get_threshold(state)[0])
      2.0

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020, section 5.
    """
    _base.check_range("b2", b2, 0.0, 1.0, high_open=True)
    _base.check_range("alpha", alpha, 1.0, 2.0)
    _base.check_dtype("threshold_dtype", threshold_dtype)

    def init(params):
        threshold = _tree.zeros_like(params, threshold_dtype)
        return AdaptiveCoordinateThresholdState(jnp.zeros([], jnp.int32), threshold)

    def update(grads, state):
        sizes = magnitudes(grads, "coordinate", None)
        threshold = update_threshold(state.threshold, sizes, b2, alpha)
        count = optax.safe_increment(state.count)
        return grads, AdaptiveCoordinateThresholdState(count, threshold)

    return transform(init, update, dtypes={"threshold": threshold_dtype})
