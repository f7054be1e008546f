"""Exponential moving average of the gradients, with stable dtypes."""

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._transform import transform


def ema(
    decay: _base.ScalarOrSchedule,
    debias: bool = True,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    *,
    init: str = "zero",
    nesterov: bool = False,
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
      decay: :math:`\beta` in [0, 1), per update. 0.9 spans about 10 updates. Or a
        schedule of the count from 0, such as that of `normalized_momentum`.
      debias: whether to divide by :math:`1 - \beta^k`. A schedule has no such number:
        pass False, or ``init="first"``.
      accumulator_dtype: dtype of the average. ``None``: the parameter's own, but at
        least float32. "bfloat16" halves the memory; it is rounded stochastically, which
        keeps the average right on average, where rounding to the nearest neighbour
        would stop it as soon as its increments fall below 0.4%. Updates are made of
        the average before it is rounded.
      init: "zero", or "first": :math:`m_1 = g_1`. The weights then sum to 1 from the
        start, and there is nothing to debias.
      nesterov: whether :math:`u_k = \beta m_k + (1 - \beta) g_k`, or, debiased, this
        over :math:`1 - \beta^{k+1}`.

    Returns:
      A transform with an ``optax.EmaState``: ``count``, (), int32, updates seen, and
      ``ema``, like the parameters, in ``accumulator_dtype``. For bfloat16 it lies
      inside a `StochasticRoundingState`. Updates keep the
      gradients' structure, shapes and dtypes. Zero gradients decay the average; an inf
      or NaN gradient stays in its coordinate's average for good.

    Raises:
      ValueError: ``decay`` is a concrete number outside its range, or a schedule that
        is to be debiased, ``init`` is unknown, or the dtype is not floating-point.
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
    _base.check_choice("init", init, ("zero", "first"))
    _base.check_flag("nesterov", nesterov)
    if debias and init == "zero" and callable(decay):
        raise ValueError(
            "debias must be False where decay is a schedule, whose weights have no "
            'closed sum; init="first" needs no correction.'
        )

    def init_fn(params):
        average = _tree.zeros_like(params, accumulator_dtype)
        return optax.EmaState(jnp.zeros([], jnp.int32), average)

    def update(grads, state):
        count = optax.safe_increment(state.count)
        beta = _base.at_count(decay, state.count)
        average = optax.tree.update_moment(grads, state.ema, beta, 1)
        if init == "first":
            average = jax.tree.map(
                lambda m, g: jnp.where(state.count == 0, g, m), average, grads
            )
        smoothed = average
        if nesterov:
            smoothed = optax.tree.update_moment(grads, average, beta, 1)
        if debias and init == "zero":
            smoothed = optax.tree.bias_correction(smoothed, beta, count + nesterov)
        return smoothed, optax.EmaState(count, average)

    return transform(init_fn, update, dtypes={"ema": accumulator_dtype})
