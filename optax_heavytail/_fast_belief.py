"""FastAdaBelief: AdaBelief for strongly convex objectives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _moments, _tree
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform
from optax_heavytail._weight_decay import Mask, add_decayed_weights


class ScaleByFastBeliefState(NamedTuple):
    """State of `scale_by_fast_belief`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    mu: Any  #: m, like the parameters, float32 or wider or in mu_dtype
    nu: Any  #: s, likewise in nu_dtype
    nu_max: Any  #: the largest s, likewise; ``None`` without amsgrad


def scale_by_fast_belief(
    b1: jax.typing.ArrayLike = 0.9,
    gamma: jax.typing.ArrayLike = 0.9,
    delta: jax.typing.ArrayLike = 0.01,
    *,
    amsgrad: bool = True,
    step_decay: bool = True,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the averaged gradient by its averaged squared error, without a root.

    Elementwise, with :math:`m_0 = s_0 = \hat s_0 = 0` and updates :math:`t \geq 1`,

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \\
        s_t &= \left(1 - \frac{\gamma}{t}\right) s_{t-1} +
        \frac{\gamma}{t} (g_t - m_t)^2, \qquad
        \hat s_t = \max(\hat s_{t-1}, s_t), \\
        u_t &= \frac{1}{t} \cdot \frac{m_t}{\hat s_t + \delta / t} .

    For strongly convex objectives, whose regret then grows like :math:`\log T`. The
    update has the unit of 1 / gradient: a loss times :math:`c` needs a learning rate
    times :math:`c^2`.

    Args:
      b1: :math:`\beta_1` in [0, 1), per update.
      gamma: :math:`\gamma` in (0, 1]: each update has a share of :math:`\gamma / t` in
        :math:`s`, which therefore spans a part of the whole past.
      delta: :math:`\delta` in [0, inf), in the units of a squared gradient.
      amsgrad: whether :math:`\hat s` is the largest :math:`s` so far, as in the proofs;
        else it is :math:`s`.
      step_decay: whether there is the factor :math:`1 / t`. Without it give the
        learning rate a schedule.
      mu_dtype: dtype of :math:`m` in the state. ``None``: the parameter's own, but at
        least float32. bfloat16 is rounded stochastically: see `ema`.
      nu_dtype: likewise for :math:`s` and :math:`\hat s`.

    Returns:
      A transform with a `ScaleByFastBeliefState`, for bfloat16 inside a
      `StochasticRoundingState`. Updates keep the gradients' structure, shapes and
      dtypes. Zero gradients from the start give zero updates, also with ``delta=0``.
      Squares of gradients above 1e19 overflow in float32, and the update is 0. An inf
      or NaN gradient makes its coordinate NaN from then on.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_fast_belief()
      >>> w, state = jnp.array(1.0), tx.init(jnp.array(0.0))
      >>> for _ in range(3):  # down w^2 / 2
      ...     updates, state = tx.update(w, state)
      ...     w = w - 0.1 * updates
      ...     print(round(float(w), 6))
      0.986468
      0.973618
      0.961458

    References:
      Zhou et al., `FastAdaBelief <https://arxiv.org/abs/2104.13790>`_, 2021, algorithm
      1.
    """
    _base.check_range("b1", b1, 0.0, 1.0, high_open=True)
    _base.check_range("gamma", gamma, 0.0, 1.0, low_open=True)
    _base.check_range("delta", delta, 0.0, float("inf"))
    _base.check_flag("amsgrad", amsgrad)
    _base.check_flag("step_decay", step_decay)
    _base.check_dtype("mu_dtype", mu_dtype)
    _base.check_dtype("nu_dtype", nu_dtype)

    def init(params):
        start = _moments.start(params, mu_dtype, nu_dtype)
        largest = _tree.zeros_like(params, nu_dtype) if amsgrad else None
        return ScaleByFastBeliefState(*start, largest)

    def update(grads, state):
        count = optax.safe_increment(state.count)
        # An int32 below an int gives a float32 even where x64 is on.
        t = jnp.asarray(count, jnp.result_type(float))
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        error = optax.tree.sub(grads, mu)
        nu = optax.tree.update_moment(error, state.nu, 1 - gamma / t, 2)
        largest = jax.tree.map(_tree.maximum, state.nu_max, nu) if amsgrad else None
        step = jax.tree.map(
            lambda m, s: _tree.safe_divide(m, s + delta / t),
            mu,
            largest if amsgrad else nu,
        )
        if step_decay:
            step = optax.tree.scale(1 / t, step)
        return step, ScaleByFastBeliefState(count, mu, nu, largest)

    dtypes = {"mu": mu_dtype, "nu": nu_dtype}
    if amsgrad:
        dtypes["nu_max"] = nu_dtype
    return transform(init, update, dtypes=dtypes)


def fast_adabelief(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    gamma: jax.typing.ArrayLike = 0.9,
    delta: jax.typing.ArrayLike = 0.01,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    amsgrad: bool = True,
    step_decay: bool = True,
    mask: Mask | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""FastAdaBelief, for strongly convex objectives.

    With :math:`u_t` of `scale_by_fast_belief`,

    .. math:: w_t = w_{t-1} - \eta_t (u_t + \lambda w_{t-1}).

    Args:
      learning_rate: :math:`\eta` in [0, inf), in squared units of the gradient, or a
        schedule of the count from 0. The factor :math:`1 / t` is in :math:`u`.
      b1: :math:`\beta_1` in [0, 1).
      gamma: :math:`\gamma` in (0, 1].
      delta: :math:`\delta` in [0, inf).
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; multiplied by the
        learning rate, but not by :math:`1 / t`.
      amsgrad: see `scale_by_fast_belief`.
      step_decay: see `scale_by_fast_belief`.
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      mu_dtype: see `scale_by_fast_belief`.
      nu_dtype: see `scale_by_fast_belief`.

    Returns:
      ``chain(scale_by_fast_belief, add_decayed_weights, scale_by_learning_rate)``. Its
      ``update`` needs the parameters unless ``weight_decay`` is a Python 0. What zero,
      huge, inf and NaN gradients do is said at `scale_by_fast_belief`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.fast_adabelief(learning_rate=0.1)
      >>> updates, _ = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 6)
      -0.013532

    References:
      Zhou et al., `FastAdaBelief <https://arxiv.org/abs/2104.13790>`_, 2021, algorithm
      1.
    """
    return optax.chain(
        scale_by_fast_belief(
            b1,
            gamma,
            delta,
            amsgrad=amsgrad,
            step_decay=step_decay,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
