"""Exponential moving average of the gradients, with stable dtypes."""

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._transform import transform


def ema(
    decay: jax.typing.ArrayLike,
    debias: bool = True,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradients by their exponential moving average.

    Elementwise, with :math:`m_0 = 0` and updates :math:`k \geq 1`,

    .. math:: m_k = \beta m_{k-1} + (1 - \beta) g_k, \qquad
        u_k = m_k \text{ or, debiased, } m_k / (1 - \beta^k).

    The arithmetic and the arguments are those of ``optax.ema``. Unlike there, the
    average is kept in float32 or wider unless asked otherwise, its dtype never changes,
    and updates keep the gradients' dtype. The papers on clipping have it without the
    correction, ``debias=False``.

    Args:
      decay: :math:`\beta` in [0, 1), per update. 0.9 spans about 10 updates.
      debias: whether to divide by :math:`1 - \beta^k`.
      accumulator_dtype: dtype of the average. ``None``: the parameter's own, but at
        least float32. "bfloat16" halves the memory; it is rounded stochastically, which
        keeps the average right on average, where rounding to the nearest neighbour
        would stop it as soon as its increments fall below 0.4%. Updates are made of
        the average before it is rounded.

    Returns:
      A transform with an ``optax.EmaState``: ``count``, (), int32, updates seen, and
      ``ema``, like the parameters, in ``accumulator_dtype``. For bfloat16 it lies
      inside a `StochasticRoundingState`. Updates keep the
      gradients' structure, shapes and dtypes. Zero gradients decay the average; an inf
      or NaN gradient stays in its coordinate's average for good.

    Raises:
      ValueError: ``decay`` is a concrete number outside its range, or the dtype is not
        floating-point.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.ema(decay=0.5, debias=False)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (4.0, 0.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> float(updates[0])
      1.0
    """
    _base.check_range("decay", decay, 0.0, 1.0, high_open=True)
    _base.check_flag("debias", debias)
    _base.check_dtype("accumulator_dtype", accumulator_dtype)

    def init(params):
        average = _tree.zeros_like(params, accumulator_dtype)
        return optax.EmaState(jnp.zeros([], jnp.int32), average)

    def update(grads, state):
        count = optax.safe_increment(state.count)
        average = optax.tree.update_moment(grads, state.ema, decay, 1)
        smoothed = average
        if debias:
            smoothed = optax.tree.bias_correction(average, decay, count)
        return smoothed, optax.EmaState(count, average)

    return transform(init, update, dtypes={"ema": accumulator_dtype})
