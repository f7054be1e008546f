"""Heavy-ball momentum with stable dtypes."""

import jax
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._transform import transform


def trace(
    decay: jax.typing.ArrayLike,
    nesterov: bool = False,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the updates by their decaying sum.

    Elementwise, with :math:`m_0 = 0`,

    .. math:: m_t = g_t + \beta m_{t-1}, \qquad
        u_t = m_t \text{ or, with Nesterov's step, } g_t + \beta m_t.

    The arithmetic is that of ``optax.trace``. Unlike there, the sum is kept in float32
    or wider unless asked otherwise, and its dtype never changes.

    Args:
      decay: :math:`\beta` in [0, 1), per update.
      nesterov: whether to look one step ahead.
      accumulator_dtype: dtype of the sum. ``None``: the parameter's own, but at least
        float32. bfloat16 is rounded stochastically: see `ema`.

    Returns:
      A transform with an ``optax.TraceState``, for a bfloat16 sum inside a
      `StochasticRoundingState`. Updates keep the gradients' structure,
      shapes and dtypes. An inf or NaN gradient stays in its coordinate's sum for good.

    Raises:
      ValueError: ``decay`` is a concrete number outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.trace(decay=0.5)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (4.0, 1.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> float(updates[0])
      3.0
    """
    _base.check_range("decay", decay, 0.0, 1.0, high_open=True)
    _base.check_flag("nesterov", nesterov)
    _base.check_dtype("accumulator_dtype", accumulator_dtype)

    def init(params):
        return optax.TraceState(_tree.zeros_like(params, accumulator_dtype))

    def update(grads, state):
        def accumulate(g, m):
            return g + decay * m

        total = jax.tree.map(accumulate, grads, state.trace)
        ahead = jax.tree.map(accumulate, grads, total) if nesterov else total
        return ahead, optax.TraceState(total)

    return transform(init, update, dtypes={"trace": accumulator_dtype})
