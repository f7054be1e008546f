"""Clipped and normalised gradient descent for (L0, L1)-smooth objectives."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree, _units
from optax_heavytail._ema import ema
from optax_heavytail._gclip import ClipByNormState, clip_by_norm
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform


def clipped_gd(
    learning_rate: _base.ScalarOrSchedule,
    max_update_norm: _base.ScalarOrSchedule,
    *,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent whose update has a bounded norm.

    With the norm over all leaves,

    .. math:: w_k = w_{k-1} - \min\left(h_k, \frac{c_k}{\lVert g_k \rVert}\right) g_k .

    The bound is on the update, so a learning rate schedule does not scale it.

    Args:
      learning_rate: :math:`h` in [0, inf), or a schedule of the count from 0.
      max_update_norm: :math:`c` in (0, inf), in the parameters' units, or a schedule.
      axis_name: see `clip_by_norm`.

    Returns:
      A transform with a `ClipByNormState`. Updates keep the gradients' structure,
      shapes and dtypes; zero gradients give zero updates; huge and tiny ones neither
      overflow nor underflow on the way; an inf or NaN entry makes every entry NaN.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clipped_gd(learning_rate=0.1, max_update_norm=1.0)
      >>> grads = jnp.array([30.0, 40.0])
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.6, -0.8]

    References:
      Zhang et al., `Why gradient clipping accelerates training
      <https://arxiv.org/abs/1905.11881>`_, 2020, eq. (5).
    """
    _base.check_range("learning_rate", learning_rate, 0.0, float("inf"))
    _base.check_range(
        "max_update_norm", max_update_norm, 0.0, float("inf"), low_open=True
    )

    def init(params):
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return ClipByNormState(jnp.zeros([], jnp.int32), jnp.ones([], dtype))

    def update(grads, state):
        rate = _base.at_count(learning_rate, state.count)
        bound = jnp.asarray(_base.at_count(max_update_norm, state.count))
        bound = _tree.nan_unless(bound >= 0, bound)  # a schedule's bad one is loud
        norm = _norms.global_norm(grads, axis_name)
        is_short = rate * norm.scaled <= bound * norm.scale
        inverse = 1 / jnp.where(norm.scaled == 0, 1, norm.scaled)
        inverse, is_short = jax.lax.optimization_barrier((inverse, is_short))
        # The direction first: the whole step, or bound / norm, may be no number.
        steps = jax.tree.map(
            lambda g: jnp.where(
                is_short, rate * g, bound * (inverse * (norm.scale * g))
            ),
            grads,
        )
        steps = _norms.nan_unless_finite(norm.scaled, optax.tree.scale(-1, steps))
        kept = _tree.safe_divide(bound * inverse * norm.scale, rate)
        kept = _norms.nan_unless_finite(norm.scaled, jnp.where(is_short, 1, kept))
        return steps, ClipByNormState(optax.safe_increment(state.count), kept)

    return transform(init, update)


def normalize_by_norm(
    offset: jax.typing.ArrayLike = 1e-8,
    *,
    scope: str = "global",
    layer_axis: Any = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides the updates by their Euclidean norm.

    .. math:: u_k = \frac{g_k}{\lVert g_k \rVert + b},

    with the norm over all entries of all leaves, or of each leaf by itself.

    Args:
      offset: :math:`b` in [0, inf), in the updates' units.
      scope: "global" for one norm, "leaf" for one per leaf.
      layer_axis: with scope "leaf" the axis that stacks layers, each of which has its
        own norm: an int, ``None``, or a tree prefix of these.
      axis_name: see `clip_by_norm`.

    Returns:
      A transform without state. Updates keep their structure, shapes and dtypes. Zero
      updates stay zero, also with ``offset=0``; huge and tiny ones neither overflow nor
      underflow on the way; an inf or NaN entry makes every entry that shares its norm
      NaN.

    Raises:
      ValueError: ``offset`` is a concrete number outside its range, ``scope`` is
        unknown, or there is a ``layer_axis`` with the scope "global".
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.normalize_by_norm()
      >>> updates, _ = tx.update(jnp.array([3e-30, 4e-30]), tx.init(jnp.zeros(2)))
      >>> bool(jnp.all(updates < 1e-20))  # far below the offset
      True
      >>> tx = oht.normalize_by_norm(offset=0.0)
      >>> updates, _ = tx.update(jnp.array([3e-30, 4e-30]), tx.init(jnp.zeros(2)))
      >>> [round(u, 3) for u in updates.tolist()]
      [0.6, 0.8]
    """
    _base.check_range("offset", offset, 0.0, float("inf"))
    units = _units.Units(scope, layer_axis, axis_name)

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state):
        norms = units.norms(updates)
        lengths = norms.scaled + offset * norms.scale
        return _units.divide(units, updates, norms, lengths), state

    return transform(init, update)


def normalized_gd(
    learning_rate: _base.ScalarOrSchedule,
    offset: jax.typing.ArrayLike = 1e-8,
    b1: _base.ScalarOrSchedule = 0.0,
    *,
    init: str = "zero",
    scope: str = "global",
    max_norm: _base.ScalarOrSchedule | None = None,
    nesterov: bool = False,
    mu_dtype: jax.typing.DTypeLike | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent along the direction of the averaged gradient.

    With :math:`m_0 = 0` and the norm over all leaves, or of each leaf,

    .. math:: m_k = \beta_1 m_{k-1} + (1 - \beta_1) g_k, \qquad
        w_k = w_{k-1} - h_k \frac{m_k}{\lVert m_k \rVert + b} .

    `normalized_momentum` has the rates and averages of the theory for gradients of
    heavy-tailed noise.

    Args:
      learning_rate: :math:`h` in [0, inf), in the parameters' units, or a schedule of
        the count from 0.
      offset: :math:`b` in [0, inf), in the gradient's units.
      b1: :math:`\beta_1` in [0, 1), or a schedule. 0 takes the gradient itself.
      init: "zero", or "first": :math:`m_1 = g_1`.
      scope: "global" for one norm, "leaf" for one per leaf: steps of one length for
        each, as LARS has them.
      max_norm: in (0, inf), or a schedule: each gradient's norm is clipped to it before
        it is averaged. ``None``: not.
      nesterov: whether :math:`\beta_1 m_k + (1 - \beta_1) g_k` takes the place of
        :math:`m_k` in the step.
      mu_dtype: dtype of :math:`m` in the state; see `ema`.
      axis_name: see `clip_by_norm`.

    Returns:
      ``chain(ema, normalize_by_norm, scale_by_learning_rate)``, with ``max_norm``
      behind a `clip_by_norm`. Updates keep the gradients' structure, shapes and dtypes.
      Zero gradients from the start give zero updates; an inf or NaN gradient makes all
      updates NaN from then on. The average is rounded to the gradients' dtype before it
      is normalised.

    Raises:
      ValueError: a concrete number is outside its range, or a word is unknown.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.normalized_gd(learning_rate=0.1)
      >>> grads = jnp.array([30.0, 40.0])
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> [round(u, 3) for u in updates.tolist()]
      [-0.06, -0.08]

    References:
      Zhang et al., `Why gradient clipping accelerates training
      <https://arxiv.org/abs/1905.11881>`_, 2020, eq. (6); Cutkosky and Mehta,
      `High-probability bounds for non-convex stochastic optimization with heavy tails
      <https://arxiv.org/abs/2106.14343>`_, 2021, algorithm 1, for ``max_norm``; Liu and
      Zhou, `Nonconvex stochastic optimization under heavy-tailed noises
      <https://arxiv.org/abs/2412.19529>`_, 2025, for ``init="first"``.
    """
    _base.check_range("b1", b1, 0.0, 1.0, high_open=True)
    _base.check_dtype("mu_dtype", mu_dtype)
    if max_norm is not None:
        _base.check_range("max_norm", max_norm, 0.0, float("inf"), low_open=True)
    clips = (
        ()
        if max_norm is None
        else (clip_by_norm(max_norm, scope=scope, axis_name=axis_name),)
    )
    return optax.chain(
        *clips,
        ema(b1, False, mu_dtype, init=init, nesterov=nesterov),
        normalize_by_norm(offset, scope=scope, axis_name=axis_name),
        scale_by_learning_rate(learning_rate),
    )
