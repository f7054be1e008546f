"""GClip: clipping of the momentum's norm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _units
from optax_heavytail._ema import ema
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform
from optax_heavytail._weight_decay import Mask, add_decayed_weights


class ClipByNormState(NamedTuple):
    """State of `clip_by_norm`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    #: share of the norm that the last update left, 1 where nothing was clipped; (), or
    #: for the scope "leaf" one for each leaf; ``None`` of a transform that has none
    kept: Any = None


def clip_by_norm(
    threshold: _base.ScalarOrSchedule,
    *,
    scope: str = "global",
    nonfinite: str = "propagate",
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the updates down so that their Euclidean norm is at most a threshold.

    .. math:: u_k = \min\left(\frac{\tau_k}{\lVert g_k \rVert}, 1\right) g_k,

    with the norm over all entries of all leaves, or of each leaf by itself.

    The norm is one sum of squares in float32 or wider, so float16 gradients of 300 and
    entries of 1e-30 or 1e30 are clipped right. Updates within the threshold pass
    unchanged, and no norm ever grows.

    Args:
      threshold: :math:`\tau` in (0, inf), in the updates' units, or a schedule of the
        count from 0, such as `clipping_threshold`.
      scope: "global" for one norm, "leaf" for one per leaf.
      nonfinite: what an inf or NaN entry does. "propagate": every entry that shares its
        norm becomes NaN, so that the step is seen to be lost. "zero": that entry alone
        becomes 0, and the norm is taken without it.
      axis_name: for updates sharded by hand inside ``shard_map`` or ``pmap``: the mesh
        axis to sum norms over, a tuple of axes, or a tree prefix of these with ``None``
        for leaves that are replicated. Nothing is needed under ``jit``.

    Returns:
      A transform with a `ClipByNormState`. Updates keep their structure, shapes and
      dtypes. Zero updates stay zero. A schedule's NaN or negative threshold makes every
      entry NaN.

    Raises:
      ValueError: a concrete threshold is outside its range, or ``scope`` or
        ``nonfinite`` is unknown.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_norm(1.0)
      >>> grads = jnp.array([300.0, 400.0], jnp.float16)
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> [round(u, 3) for u in updates.tolist()]
      [0.6, 0.8]

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020, section 4.1, "GClip".
    """
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    _base.check_choice("nonfinite", nonfinite, _units.NONFINITE)
    units = _units.Units(scope, axis_name=axis_name)

    def init(params):
        return ClipByNormState(jnp.zeros([], jnp.int32), units.all_kept(params))

    def update(grads, state):
        tau = _base.at_count(threshold, state.count)
        if nonfinite == "zero":
            grads = _units.zero_nonfinite(grads)
        norms = units.norms(grads)
        kept = units.report(_norms.clip_factor(norms, tau), grads)
        count = optax.safe_increment(state.count)
        return units.clip(grads, norms, tau), ClipByNormState(count, kept)

    return transform(init, update)


def gclip(
    learning_rate: _base.ScalarOrSchedule,
    threshold: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    weight_decay: _base.ScalarOrSchedule = 0.0,
    *,
    mask: Mask | None = None,
    bias_correction: bool = False,
    mu_dtype: jax.typing.DTypeLike | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""GClip: momentum SGD with the momentum's global norm clipped.

    With :math:`m_0 = 0` and updates :math:`k \geq 1`,

    .. math::
        m_k &= \beta_1 m_{k-1} + (1 - \beta_1) g_k, \\
        w_k &= w_{k-1} - \eta_k \left(\min\left(\frac{\tau_k}{\lVert m_k \rVert},
        1\right) m_k + \lambda w_{k-1}\right).

    The momentum is clipped, not the gradient: a spike enters it, and is limited
    together with the past. ``chain(clip_by_norm, ema, ...)`` has it the other way.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      threshold: :math:`\tau` in (0, inf), in the gradient's units, or a schedule.
      b1: :math:`\beta_1` in [0, 1). 0 clips the gradient itself.
      weight_decay: :math:`\lambda` in [0, inf), or a schedule; decoupled, not clipped.
      mask: which leaves decay (``True``): a tree of bools, a prefix, or a function of
        the parameters such as `decay_mask`. ``None``: all.
      bias_correction: whether to divide :math:`m_k` by :math:`1 - \beta_1^k`.
      mu_dtype: dtype of :math:`m` in the state. ``None``: the parameter's own, but at
        least float32.
      axis_name: see `clip_by_norm`.

    Returns:
      ``chain(ema, clip_by_norm, add_decayed_weights, scale_by_learning_rate)``. Its
      ``update`` needs the parameters unless ``weight_decay`` is a Python 0. Updates
      keep the gradients' structure, shapes and dtypes. Zero gradients from the start
      give zero updates; huge and tiny ones are clipped right; an inf or NaN gradient
      stays in the momentum, so that all updates are NaN from then on.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.gclip(learning_rate=0.1, threshold=1.0, b1=0.0)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.06, -0.08]

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020, algorithm 1, "GClip".
    """
    _base.check_range("b1", b1, 0.0, 1.0, high_open=True)
    _base.check_flag("bias_correction", bias_correction)
    _base.check_dtype("mu_dtype", mu_dtype)
    return optax.chain(
        ema(b1, debias=bias_correction, accumulator_dtype=mu_dtype),
        clip_by_norm(threshold, axis_name=axis_name),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
