"""StableAdamW: Adam whose rate falls where its second moment is out of date."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _moments, _tree, _units
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import wrapper
from optax_heavytail._weight_decay import Mask, add_decayed_weights


class ScaleByStableAdamState(NamedTuple):
    """State of `scale_by_stable_adam`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    mu: Any  #: m, like the parameters, float32 or wider or in mu_dtype
    nu: Any  #: v, likewise in nu_dtype
    inner_state: optax.OptState  #: of ``after``


def scale_by_stable_adam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    eps: jax.typing.ArrayLike = 1e-6,
    *,
    threshold: jax.typing.ArrayLike = 1.0,
    layer_axis: Any = None,
    axis_name: Any = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
    after: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam's direction, shortened where the gradient exceeds its second moment.

    With Adam's averages, corrected for their start at 0, and for each leaf or slice

    .. math::
        \hat m_t &= \frac{\beta_1 m_{t-1} + (1 - \beta_1) g_t}{1 - \beta_1^t}, \qquad
        \hat v_t = \frac{\beta_2 v_{t-1} + (1 - \beta_2) g_t^2}{1 - \beta_2^t}, \\
        R_t &= \operatorname{RMS}\left(\frac{g_t}
        {\max(\sqrt{\hat v_t}, \epsilon)}\right), \\
        u_t &= \frac{1}{\max(1, R_t / d)}
        \operatorname{after}\left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}\right).

    :math:`R_t` is about 1 while the second moment is up to date and at most 1 in the
    first update, which is never shortened with :math:`d = 1`. A spike after a long calm
    has :math:`R_t \to 1 / \sqrt{1 - \beta_2}`. It is the *gradient* that is measured
    here; `clip_by_rms` behind `scale_by_adam` measures the direction.

    Args:
      b1: :math:`\beta_1` in [0, 1), per update.
      b2: :math:`\beta_2` in [0, 1), per update.
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      threshold: :math:`d` in (0, inf).
      layer_axis: the axis that stacks layers, each of which has its own mean: an int,
        ``None``, or a tree prefix of these.
      axis_name: see `clip_by_norm`.
      mu_dtype: dtype of :math:`m` in the state. ``None``: the parameter's own, but at
        least float32. bfloat16 is rounded stochastically: see `ema`.
      nu_dtype: likewise for :math:`v`.
      after: a transform between Adam's direction and the factor. With
        `add_decayed_weights` the factor scales the weight decay too, as published.
        ``None``: none.

    Returns:
      A transform with a `ScaleByStableAdamState`, for a bfloat16 average inside a
      `StochasticRoundingState`. Updates keep the gradients' structure, shapes and
      dtypes. Zero gradients from the start give zero updates. Squares under- and
      overflow as in `scale_by_adam`. An inf or NaN gradient makes its whole leaf or
      slice NaN, and its own coordinate stays NaN, so that the leaf does.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point, or ``after`` is no
        transform.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_stable_adam(b1=0.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (1.0, 1.0, 1000.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> round(float(updates[0]), 3)  # Adam has 1.723
      1.0

    References:
      Wortsman et al., `Stable and low-precision training for large-scale
      vision-language models <https://arxiv.org/abs/2304.13013>`_, 2023, algorithm 2.
    """
    _moments.check(b1, b2, mu_dtype, nu_dtype)
    _base.check_range("eps", eps, 0.0, float("inf"))
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    if after is not None:
        _base.check_transform("after", after)
    after_tx = optax.with_extra_args_support(after or optax.identity())
    units = _units.Units("leaf", layer_axis, axis_name)

    def init(params):
        start = _moments.start(params, mu_dtype, nu_dtype)
        return ScaleByStableAdamState(*start, after_tx.init(params))

    def update(updates, state, params, **extra_args):
        grads = _tree.at_least_float32(updates)
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        mean, square = _moments.corrected(mu, nu, b1, b2, count)
        step, inner_state = after_tx.update(
            _tree.divide_by_root(mean, square, eps),
            state.inner_state,
            params,
            **extra_args,
        )
        ratios = jax.tree.map(lambda g, v: _relative(g, v, eps), grads, square)
        limit = jnp.asarray(threshold) * units.counts(ratios) ** 0.5
        step = units.clip(step, units.norms(ratios), limit)
        new_state = ScaleByStableAdamState(count, mu, nu, inner_state)
        return _tree.cast_like(step, updates), new_state

    return wrapper(init, update, dtypes={"mu": mu_dtype, "nu": nu_dtype})


def stable_adamw(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    eps: jax.typing.ArrayLike = 1e-6,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    threshold: jax.typing.ArrayLike = 1.0,
    mask: Mask | None = None,
    layer_axis: Any = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""StableAdamW: AdamW whose step shrinks where its second moment is outdated.

    With :math:`R_t`, :math:`\hat m_t` and :math:`\hat v_t` of `scale_by_stable_adam`,
    for each leaf or slice,

    .. math:: w_t = w_{t-1} - \frac{\eta_t}{\max(1, R_t / d)}
        \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \lambda w_{t-1}\right).

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      b1: decay of the average of the gradient, in [0, 1).
      b2: decay of the average of its square, in [0, 1).
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; multiplied by the
        learning rate and by the factor.
      threshold: :math:`d` in (0, inf).
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      layer_axis: see `scale_by_stable_adam`.
      mu_dtype: see `scale_by_stable_adam`.
      nu_dtype: see `scale_by_stable_adam`.
      axis_name: see `clip_by_norm`.

    Returns:
      ``chain(scale_by_stable_adam, scale_by_learning_rate)``. Its ``update`` needs the
      parameters unless ``weight_decay`` is a Python 0. What zero, huge, inf and NaN
      gradients do is said at `scale_by_stable_adam`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.stable_adamw(learning_rate=0.1, weight_decay=0.5)
      >>> params = jnp.array([2.0])
      >>> updates, _ = tx.update(jnp.array([3.0]), tx.init(params), params)
      >>> round(float(updates[0]), 3)
      -0.2

    References:
      Wortsman et al., `Stable and low-precision training for large-scale
      vision-language models <https://arxiv.org/abs/2304.13013>`_, 2023, algorithm 2.
    """
    return optax.chain(
        scale_by_stable_adam(
            b1,
            b2,
            eps,
            threshold=threshold,
            layer_axis=layer_axis,
            axis_name=axis_name,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            after=add_decayed_weights(weight_decay, mask),
        ),
        scale_by_learning_rate(learning_rate),
    )


def _relative(g, v, eps):
    return _tree.safe_divide(g, _tree.maximum(_tree.safe_sqrt(v), eps))
