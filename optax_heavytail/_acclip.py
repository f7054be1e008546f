"""ACClip: adaptive coordinate-wise clipping of the momentum."""

import jax
import optax

from optax_heavytail import _base
from optax_heavytail._clip_by_moment import clip_by_moment
from optax_heavytail._ema import ema
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._weight_decay import Mask, add_decayed_weights


def scale_by_acclip(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    alpha: jax.typing.ArrayLike = 1.0,
    eps: jax.typing.ArrayLike = 1e-5,
    *,
    bias_correction: bool | None = None,
    normalize: bool = False,
    include_current: bool = True,
    max_growth: jax.typing.ArrayLike | None = None,
    winsorise: jax.typing.ArrayLike | None = None,
    report: bool = False,
    mu_dtype: jax.typing.DTypeLike | None = None,
    threshold_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the momentum of each coordinate at a threshold learnt from its gradients.

    Elementwise, with :math:`m_0 = \tau_0 = 0` and updates :math:`k \geq 1`,

    .. math::
        m_k &= \beta_1 m_{k-1} + (1 - \beta_1) g_k, \\
        \tau_k^\alpha &= \beta_2 \tau_{k-1}^\alpha + (1 - \beta_2) |g_k|^\alpha, \\
        u_k &= \min\left(\frac{\tau_k}{|m_k| + \epsilon}, 1\right) m_k .

    This is ``clip_by_moment(ema(b1, debias=False), b2=b2, ...)``. With
    ``bias_correction`` :math:`m_k / (1 - \beta_1^k)` and
    :math:`\tau_k / (1 - \beta_2^k)^{1/\alpha}` take the places of :math:`m_k` and
    :math:`\tau_k` in the last line; with ``normalize`` the update is
    :math:`u_k / (\tau_k + \epsilon)`, within [-1, 1].

    Args:
      b1: :math:`\beta_1` in [0, 1), per update. 0 clips the gradient itself.
      b2: :math:`\beta_2` in [0, 1), per update; 0.999 is also recommended.
      alpha: order of the moment, in [1, 2]; 1 is the safe choice.
      eps: :math:`\epsilon` in [0, inf), in the gradient's units. With ``normalize`` it
        acts like Adam's: 1e-8 is a good start where gradients are small.
      bias_correction: whether to correct both averages for their start at 0. ``None``:
        as ``normalize``.
      normalize: whether to divide the update by the threshold, so that learning rates
        on the scale of Adam's apply. Without it they live on SGD's scale.
      include_current: see `clip_by_moment`, as for the next two.
      max_growth: how many times the threshold of the past a gradient counts as at most.
      winsorise: how many times the threshold of the past a gradient is at most; 8 is a
        good choice, which makes a step lost of what was a hundred. ``None``: no limit.
      report: see `clip_by_moment`.
      mu_dtype: dtype of :math:`m` in the state. ``None``: the parameter's own, but at
        least float32.
      threshold_dtype: likewise for :math:`\tau`.

    Returns:
      A transform with a `ClipByMomentState`, whose ``inner_state`` is an
      ``optax.EmaState``. Updates keep the gradients' structure, shapes and dtypes.
      Zero gradients from the start give zero updates; huge and tiny ones neither
      overflow nor underflow on the way; an inf or NaN gradient makes its own
      coordinate's updates NaN from then on, and no other's.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_acclip(b1=0.0, b2=0.5, eps=0.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (2.0, -8.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> float(updates[0])  # -8 is clipped at tau = 0.5 * 1 + 0.5 * 8
      -4.5

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020, section 5, "ACClip".
    """
    _base.check_range("b1", b1, 0.0, 1.0, high_open=True)
    _base.check_dtype("mu_dtype", mu_dtype)
    _base.check_flag("normalize", normalize)
    if bias_correction is not None:
        _base.check_flag("bias_correction", bias_correction)
    correct = normalize if bias_correction is None else bias_correction
    return clip_by_moment(
        ema(b1, debias=correct, accumulator_dtype=mu_dtype),
        b2=b2,
        alpha=alpha,
        eps=eps,
        threshold_dtype=threshold_dtype,
        bias_correction=correct,
        normalize=normalize,
        include_current=include_current,
        max_growth=max_growth,
        winsorise=winsorise,
        report=report,
    )


def acclip(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    alpha: jax.typing.ArrayLike = 1.0,
    eps: jax.typing.ArrayLike = 1e-5,
    weight_decay: _base.ScalarOrSchedule = 1e-5,
    *,
    mask: Mask | None = None,
    bias_correction: bool | None = None,
    normalize: bool = False,
    include_current: bool = True,
    max_growth: jax.typing.ArrayLike | None = None,
    winsorise: jax.typing.ArrayLike | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
    threshold_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""ACClip: adaptive coordinate-wise clipping with decoupled weight decay.

    With :math:`u_k` of `scale_by_acclip`,

    .. math:: w_k = w_{k-1} - \eta_k (u_k + \lambda w_{k-1}).

    **Learning rates are not Adam's** unless ``normalize=True``: :math:`u` has the units
    of a gradient, so the literal form wants rates on SGD's scale (1 rather than 1e-3).

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      b1: decay of the momentum, in [0, 1).
      b2: decay of the threshold, in [0, 1).
      alpha: order of the moment, in [1, 2].
      eps: added to the size of the momentum, in [0, inf).
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; multiplied by the
        learning rate, and not clipped.
      mask: which leaves decay (``True``): a tree of bools, a prefix, or a function of
        the parameters such as `decay_mask`. ``None``: all.
      bias_correction: see `scale_by_acclip`.
      normalize: see `scale_by_acclip`.
      include_current: see `clip_by_moment`.
      max_growth: see `clip_by_moment`.
      winsorise: see `clip_by_moment`.
      mu_dtype: see `scale_by_acclip`.
      threshold_dtype: see `scale_by_acclip`.

    Returns:
      ``chain(scale_by_acclip, add_decayed_weights, scale_by_learning_rate)``. Its
      ``update`` needs the parameters unless ``weight_decay`` is a Python 0. What zero,
      huge, inf and NaN gradients do is said at `scale_by_acclip`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = oht.acclip(learning_rate=0.1, normalize=True)
      >>> params = jnp.array([1.0, -2.0])
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     grads = jax.grad(lambda w: jnp.sum(w**4))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(jnp.all(jnp.abs(params) < 0.3))
      True

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020, section 5, "ACClip".
    """
    return optax.chain(
        scale_by_acclip(
            b1,
            b2,
            alpha,
            eps,
            bias_correction=bias_correction,
            normalize=normalize,
            include_current=include_current,
            max_growth=max_growth,
            winsorise=winsorise,
            mu_dtype=mu_dtype,
            threshold_dtype=threshold_dtype,
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
