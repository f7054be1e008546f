"""CClip: clipping of each coordinate of the momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._ema import ema
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform
from optax_heavytail._weight_decay import Mask, add_decayed_weights


class ClipByValueState(NamedTuple):
    """State of `clip_by_value`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen


def clip_by_value(threshold: Any) -> optax.GradientTransformationExtraArgs:
    r"""Limits the size of each entry of the updates.

    Elementwise,

    .. math:: u_k = \min\left(\frac{\tau_k}{|g_k|}, 1\right) g_k .

    Args:
      threshold: :math:`\tau` in (0, inf), in the updates' units: a number; a tree of
        numbers or arrays like the updates, or a prefix of it; or a schedule of the
        count from 0 that returns any of these, such as `clipping_threshold`. A tree
        that can be called, as Equinox's modules can, is a tree: of a schedule that is
        one pass ``lambda count: schedule(count)``.

    Returns:
      A transform with a `ClipByValueState`. Updates keep their structure, shapes and
      dtypes. Zero stays zero and no entry grows. An inf or NaN entry becomes NaN, and
      no other: an overflow is not passed off as a large gradient. An entry whose
      threshold is NaN or negative, which a schedule may return, becomes NaN as well.

    Raises:
      ValueError: a concrete threshold has an entry outside its range, or one that does
        not fit the shape of its leaf.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_value({"w": 1.0, "b": 0.1})
      >>> grads = {"w": jnp.array([0.5, -3.0]), "b": jnp.array([3.0])}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> updates["w"].tolist(), round(float(updates["b"][0]), 3)
      ([0.5, -1.0], 0.1)

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020, section 4.2, "CClip".
    """
    is_schedule = _base.is_function(threshold)
    limits = [threshold] if is_schedule else jax.tree.leaves(threshold)
    if not limits:
        raise ValueError(
            f"threshold must be a number, tree or schedule: {threshold!r}."
        )
    for leaf in limits:
        if callable(leaf) and not is_schedule:
            raise TypeError(
                "threshold must be one schedule that returns a tree, and not a tree "
                f"with a function in it: {leaf!r}."
            )
        _base.check_range(
            "threshold", leaf, 0.0, float("inf"), low_open=True, scalar=False
        )

    def init(params):
        del params
        return ClipByValueState(jnp.zeros([], jnp.int32))

    def update(grads, state):
        if callable(threshold) and not is_schedule:
            _check_prefix(threshold, grads)
        clipped = jax.tree.map(
            lambda tau, part: jax.tree.map(lambda g: _clip(tau, g), part),
            _base.at_count(threshold, state.count) if is_schedule else threshold,
            grads,
        )
        return clipped, ClipByValueState(optax.safe_increment(state.count))

    return transform(init, update)


def _check_prefix(threshold: Any, grads: Any) -> None:
    """Raises if a tree that can be called is no tree of thresholds of the updates."""
    try:
        _tree.broadcast_prefix(threshold, grads, None)
    except ValueError as error:
        raise ValueError(
            f"threshold, a {type(threshold).__name__}, is a tree that can be called; "
            "it is taken for a tree of thresholds, and has not the structure of the "
            "updates. Of a schedule pass `lambda count: schedule(count)`."
        ) from error


def cclip(
    learning_rate: _base.ScalarOrSchedule,
    threshold: Any,
    b1: jax.typing.ArrayLike = 0.9,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    mask: Mask | None = None,
    bias_correction: bool = False,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""CClip: momentum SGD with each coordinate of the momentum clipped.

    Elementwise, with :math:`m_0 = 0` and updates :math:`k \geq 1`,

    .. math::
        m_k &= \beta_1 m_{k-1} + (1 - \beta_1) g_k, \\
        w_k &= w_{k-1} - \eta_k \left(\min\left(\frac{\tau_k}{|m_k|}, 1\right) m_k
        + \lambda w_{k-1}\right).

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      threshold: :math:`\tau` in (0, inf), in the gradient's units: a number, a tree of
        numbers or arrays, or a schedule; see `clip_by_value`.
      b1: :math:`\beta_1` in [0, 1). 0 clips the gradient itself.
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; decoupled, not clipped.
      mask: which leaves decay (``True``): a tree of bools, a prefix, or a function of
        the parameters such as `decay_mask`. ``None``: all.
      bias_correction: whether to divide :math:`m_k` by :math:`1 - \beta_1^k`.
      mu_dtype: dtype of :math:`m` in the state. ``None``: the parameter's own, but at
        least float32.

    Returns:
      ``chain(ema, clip_by_value, add_decayed_weights, scale_by_learning_rate)``. Its
      ``update`` needs the parameters unless ``weight_decay`` is a Python 0. Updates
      keep the gradients' structure, shapes and dtypes. Zero gradients from the start
      give zero updates; an inf or NaN gradient makes its own coordinate's updates NaN
      from then on, and no other's.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.cclip(learning_rate=0.1, threshold=1.0, b1=0.0)
      >>> params = jnp.array([0.5, -4.0])
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.05, 0.1]

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020, algorithm 1, "CClip".
    """
    _base.check_range("b1", b1, 0.0, 1.0, high_open=True)
    _base.check_flag("bias_correction", bias_correction)
    _base.check_dtype("mu_dtype", mu_dtype)
    return optax.chain(
        ema(b1, debias=bias_correction, accumulator_dtype=mu_dtype),
        clip_by_value(threshold),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def _clip(tau: Any, g: jax.Array) -> jax.Array:
    if jnp.shape(tau) not in ((), g.shape):
        raise ValueError(
            f"threshold of shape {jnp.shape(tau)} must be a scalar or have its leaf's "
            f"shape {g.shape}."
        )
    good = jnp.isfinite(g) & (tau >= 0)  # a schedule's bad threshold is loud too
    return _tree.nan_unless(good, jnp.clip(g, -tau, tau))
