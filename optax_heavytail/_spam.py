"""SPAM: Adam whose single coordinates are clipped by their own history."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _moments, _tree
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._reset_moments import reset_moments
from optax_heavytail._transform import transform
from optax_heavytail._weight_decay import Mask, add_decayed_weights


class ClipSpikesState(NamedTuple):
    """State of `clip_spikes`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    #: the root of v, like the parameters, float32 or wider or in nu_dtype
    root: Any


class ScaleBySpamState(NamedTuple):
    """State of `scale_by_spam`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    mu: Any  #: m, like the parameters, float32 or wider or in mu_dtype
    root: Any  #: the root of v, likewise in nu_dtype


def clip_spikes(
    threshold: jax.typing.ArrayLike = 5000.0,
    b2: jax.typing.ArrayLike = 0.999,
    *,
    grace: jax.typing.ArrayLike = 20,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Limits each entry to a multiple of the root of its averaged square so far.

    Elementwise, with :math:`v_0 = 0` and updates :math:`t \geq 1`,

    .. math::
        u_t &= \operatorname{sign}(g_t) \min\left(|g_t|, \sqrt{\theta v_{t-1}}\right)
        \quad \text{where } v_{t-1} > 0 \text{ and } t \geq N, \text{ else } g_t, \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) u_t^2 .

    :math:`v` is not corrected for its start at 0, so that the limit is low at first:
    :math:`t < N` is for that. A coordinate that has seen nothing but zeros passes its
    first gradient, whenever that comes. Published code makes it 0, and so for ever.

    Args:
      threshold: :math:`\theta` in (0, inf), of squares.
      b2: :math:`\beta_2` in [0, 1), per update.
      grace: :math:`N`, an integer of at least 0: earlier updates pass.
      nu_dtype: dtype in which the root of :math:`v` is kept. ``None``: the parameter's
        own, but at least float32. bfloat16 is rounded stochastically: see `ema`.

    Returns:
      A transform with a `ClipSpikesState`, for bfloat16 inside a
      `StochasticRoundingState`. Updates keep their structure, shapes and dtypes. Zero
      stays zero and no entry grows; roots of huge and tiny gradients are right. An inf
      is limited as any other number where there is a limit; it passes where there is
      none, as a NaN does everywhere, and neither enters :math:`v`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_spikes(threshold=16.0, b2=0.0, grace=2)
      >>> state = tx.init(jnp.zeros(2))
      >>> for grad in ([1.0, 0.0], [-50.0, -50.0]):
      ...     updates, state = tx.update(jnp.array(grad), state)
      >>> updates.tolist()
      [-4.0, -50.0]

    References:
      Huang et al., `SPAM <https://arxiv.org/abs/2501.06842>`_, 2025, section 3.
    """
    _check(threshold, b2, grace)
    _base.check_dtype("nu_dtype", nu_dtype)

    def init(params):
        root = _tree.zeros_like(params, nu_dtype)
        return ClipSpikesState(jnp.zeros([], jnp.int32), root)

    def update(updates, state):
        count = jnp.asarray(optax.safe_increment(state.count))
        clipped = _clip(updates, state.root, threshold, count >= grace)
        return clipped, ClipSpikesState(count, _follow(state.root, clipped, b2))

    return transform(init, update, dtypes={"root": nu_dtype})


def scale_by_spam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    *,
    threshold: jax.typing.ArrayLike = 5000.0,
    grace: jax.typing.ArrayLike = 20,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""`clip_spikes` in front of `scale_by_adam`, with one second moment for both.

    With :math:`c_t` what `clip_spikes` makes of :math:`g_t`, and its :math:`v`,

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) c_t, \qquad
        u_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}.

    Args:
      b1: :math:`\beta_1` in [0, 1), per update.
      b2: :math:`\beta_2` in [0, 1), per update.
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      threshold: see `clip_spikes`.
      grace: see `clip_spikes`.
      mu_dtype: dtype of :math:`m` in the state. ``None``: the parameter's own, but at
        least float32. bfloat16 is rounded stochastically: see `ema`.
      nu_dtype: likewise for the root of :math:`v`.

    Returns:
      A transform with a `ScaleBySpamState`, for bfloat16 inside a
      `StochasticRoundingState`. Updates keep the gradients' structure, shapes and
      dtypes. Zero gradients from the start give zero updates; roots of huge and tiny
      ones are right. A NaN, and an inf where there is no limit, makes its coordinate
      NaN until `reset_moments` ends that.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_spam()
      >>> updates, _ = tx.update(jnp.array([-3.0, 0.1]), tx.init(jnp.zeros(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [-1.0, 1.0]

    References:
      Huang et al., `SPAM <https://arxiv.org/abs/2501.06842>`_, 2025, section 3.
    """
    _check(threshold, b2, grace)
    _base.check_range("b1", b1, 0.0, 1.0, high_open=True)
    _base.check_range("eps", eps, 0.0, float("inf"))
    _base.check_dtype("mu_dtype", mu_dtype)
    _base.check_dtype("nu_dtype", nu_dtype)

    def init(params):
        return ScaleBySpamState(*_moments.start(params, mu_dtype, nu_dtype))

    def update(grads, state):
        count = jnp.asarray(optax.safe_increment(state.count))
        clipped = _clip(grads, state.root, threshold, count >= grace)
        root = _follow(state.root, clipped, b2)
        mu = optax.tree.update_moment(clipped, state.mu, b1, 1)
        scale = _tree.debias_weight(b2, count) ** -0.5
        step = jax.tree.map(
            lambda m, r: _tree.safe_divide(m, scale * r + eps),
            optax.tree.bias_correction(mu, b1, count),
            root,
        )
        return step, ScaleBySpamState(count, mu, root)

    return transform(init, update, dtypes={"mu": mu_dtype, "root": nu_dtype})


def spam(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    threshold: jax.typing.ArrayLike = 5000.0,
    grace: jax.typing.ArrayLike = 20,
    period: jax.typing.ArrayLike = 500,
    warmup_steps: jax.typing.ArrayLike = 150,
    warmup_start: jax.typing.ArrayLike = 0.01,
    mask: Mask | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SPAM: Adam with clipped spikes and averages that start anew.

    With :math:`u_t` of `scale_by_spam` inside `reset_moments`,

    .. math:: w_t = w_{t-1} - \eta_t (u_t + \lambda w_{t-1}).

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      b1: decay of the average of the gradient, in [0, 1).
      b2: decay of the average of its square, in [0, 1).
      eps: :math:`\epsilon` in [0, inf), in the gradient's units.
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; multiplied by the
        learning rate, and not by the warm-up's factor.
      threshold: see `clip_spikes`.
      grace: see `clip_spikes`.
      period: see `reset_moments`.
      warmup_steps: see `reset_moments`.
      warmup_start: see `reset_moments`.
      mask: which leaves decay (``True``); see `add_decayed_weights`.
      mu_dtype: see `scale_by_spam`.
      nu_dtype: see `scale_by_spam`.

    Returns:
      ``chain(reset_moments(scale_by_spam), add_decayed_weights,
      scale_by_learning_rate)``. Its ``update`` needs the parameters unless
      ``weight_decay`` is a Python 0. What zero, huge, inf and NaN gradients do is said
      at `scale_by_spam`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.spam(learning_rate=0.1, weight_decay=0.5)
      >>> params = jnp.array([2.0])
      >>> updates, _ = tx.update(jnp.array([3.0]), tx.init(params), params)
      >>> round(float(updates[0]), 3)
      -0.2

    References:
      Huang et al., `SPAM <https://arxiv.org/abs/2501.06842>`_, 2025, algorithm 1.
    """
    inner = scale_by_spam(
        b1,
        b2,
        eps,
        threshold=threshold,
        grace=grace,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )
    return optax.chain(
        reset_moments(
            inner, period, warmup_steps=warmup_steps, warmup_start=warmup_start
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def _check(threshold: Any, b2: Any, grace: Any) -> None:
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    _base.check_range("b2", b2, 0.0, 1.0, high_open=True)
    _base.check_integer("grace", grace, 0)


def _clip(updates: Any, roots: Any, threshold: Any, is_on: jax.Array) -> Any:
    def clip(g, root):
        limit = jnp.sqrt(jnp.asarray(threshold, g.dtype)) * root
        is_spike = is_on & (root > 0) & (jnp.abs(g) > limit)
        return jnp.where(is_spike, jnp.sign(g) * limit, g)

    return jax.tree.map(clip, updates, roots)


def _follow(roots: Any, clipped: Any, decay: Any) -> Any:
    """The roots with the entries in them that are finite."""

    def follow(root, g):
        is_good = jnp.isfinite(g)
        size = jnp.abs(jnp.where(is_good, g, 0))
        return jnp.where(is_good, _tree.power_mean(root, size, decay, 2), root)

    return jax.tree.map(follow, roots, clipped)
