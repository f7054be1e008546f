"""The last link of every alias: minus the learning rate, with stable dtypes."""

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base
from optax_heavytail._transform import transform


def scale_by_learning_rate(
    learning_rate: _base.ScalarOrSchedule, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the updates by minus the learning rate.

    .. math:: u_k = -\eta_k g_k.

    The arithmetic is that of ``optax.scale_by_learning_rate``. Unlike there, the
    product is taken in float32 or wider and rounded once, and a learning rate that is
    an array, as under ``optax.inject_hyperparams``, does not widen the updates.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule: a function from the number
        of updates made so far, starting at 0, to :math:`\eta`.
      flip_sign: ``False`` multiplies by plus the learning rate.

    Returns:
      A transform with an ``optax.ScaleByScheduleState`` (``count``, (), int32) for a
      schedule and an empty state for a number. Updates keep the gradients' structure,
      shapes and dtypes; zero, inf and NaN pass through the product.

    Raises:
      ValueError: ``learning_rate`` is a concrete number outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_learning_rate(0.5)
      >>> updates, _ = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
      >>> float(updates[0])
      -1.0
    """
    _base.check_range("learning_rate", learning_rate, 0.0, float("inf"))
    _base.check_flag("flip_sign", flip_sign)
    sign = -1 if flip_sign else 1

    def init(params):
        del params
        if callable(learning_rate):
            return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update(grads, state):
        if callable(learning_rate):
            step_size = sign * _base.at_count(learning_rate, state.count)
            state = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        else:
            step_size = sign * learning_rate
        return jax.tree.map(lambda g: step_size * g, grads), state

    return transform(init, update)
