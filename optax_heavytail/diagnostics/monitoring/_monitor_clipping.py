"""What a clip takes away: how often, how much, and in which direction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _readers, _tree
from optax_heavytail._clip_by_moment import ClipByMomentState, is_clipped
from optax_heavytail._stochastic_rounding import StochasticRoundingState
from optax_heavytail._transform import wrapper
from optax_heavytail.diagnostics.monitoring import _rows

_INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)


class MonitorClippingState(NamedTuple):
    """State of `monitor_clipping`; read it with `read_monitor`.

    Averages start at 0 and are not corrected for it.
    """

    coordinate_shares: jax.Array  #: (rows,), average share of coordinates clipped
    norm_shares: jax.Array  #: (rows,), average share of the norm that was left
    weight: jax.Array  #: (), what the weights of the averages add up to, up to 1
    raw_mean: Any  #: like the parameters, average of what is clipped, or ``None``
    clipped_mean: Any  #: like the parameters, average of what comes out, or ``None``
    #: (bytes,), uint8, the leaves' paths in UTF-8; ``None`` without per_leaf
    leaf_names: Any
    inner_state: optax.OptState


def monitor_clipping(
    clip: optax.GradientTransformation,
    *,
    window: jax.typing.ArrayLike = 100,
    bias: bool = False,
    per_leaf: bool = True,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Measures what a clipping transform does, and changes nothing.

    With :math:`m_k` that is clipped to :math:`u_k`, for all leaves together and for
    each, the averages of

    .. math::
        \frac{\#\{i : |u_{k,i}| < 0.999 \, |m_{k,i}|\}}{d}
        \quad\text{and}\quad
        1 - \frac{\lVert u_k \rVert}{\lVert m_k \rVert} ,

    the share of coordinates that were clipped and the share of the norm that was taken
    away; and with ``bias`` the cosine between the averages of :math:`m_k` and of
    :math:`u_k`: 1 if clipping leaves the mean direction as it is, less if noise of one
    sign is cut more than of the other. All averages have weights
    :math:`\beta^{k-j}`, :math:`\beta = 1 - 1/\text{window}`.

    Wrap the transform that clips, and not the optimizer around it. Written so, the
    three of this library are what they are without it:

    .. code-block:: python

        watch = diagnostics.monitor_clipping
        momentum = oht.ema(0.9, debias=False)
        rest = (oht.add_decayed_weights(1e-4), oht.scale_by_learning_rate(0.1))
        gclip = optax.chain(momentum, watch(oht.clip_by_norm(1.0)), *rest)
        cclip = optax.chain(momentum, watch(oht.clip_by_value(0.1)), *rest)
        acclip = optax.chain(watch(oht.scale_by_acclip(report=True)), *rest)

    Args:
      clip: the transform. What is clipped are the updates that it receives, but for
        `~optax_heavytail.clip_by_moment` and `~optax_heavytail.scale_by_acclip`, where
        it is what ``inner`` makes of them, in the units of the output. These two must
        tell it: make them with ``report=True``.
      window: about how many updates the averages span, at least 1.
      bias: whether to measure the cosine, which takes two more copies of the
        parameters in float32 or wider.
      per_leaf: whether to have numbers for each leaf.
      axis_name: as for `monitor`. Nothing is needed under ``jit``.

    Returns:
      A transform with a `MonitorClippingState`, constant in its tree, shapes and
      dtypes; `read_monitor` makes numbers of it. Where :math:`m_k` is 0, no share of
      the norm is taken away. An update with an inf or NaN in :math:`m_k` or
      :math:`u_k` enters no average.

    Raises:
      ValueError: ``window`` is outside its range, or ``clip`` has
        ``clip_by_moment`` or ``scale_by_acclip`` inside a chain, a mask, a partition or
        another wrapper, or without ``report``.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> from optax_heavytail import diagnostics
      >>> tx = diagnostics.monitor_clipping(oht.clip_by_value(1.0), bias=True)
      >>> state = tx.init(jnp.zeros(2))
      >>> for grad in ([3.0, 1.0], [4.0, 0.0], [-1.0, 1.0]):
      ...     updates, state = tx.update(jnp.array(grad), state)
      >>> found = diagnostics.read_monitor(state)
      >>> round(found["clipped_coordinates"], 2)  # 1, 1 and 0 of 2
      0.33
      >>> found["clip_cosine"] < 0.9  # (6, 2) has become (1, 2)
      True
    """
    _base.check_range("window", window, 1.0, float("inf"))
    _base.check_flag("bias", bias)
    _base.check_flag("per_leaf", per_leaf)
    inner_tx = optax.with_extra_args_support(clip)

    def init(params):
        rows, dtype = _rows.num_rows(params, per_leaf), _rows.dtype(params)
        inner_state = inner_tx.init(params)
        _check_told(inner_state)
        return MonitorClippingState(
            coordinate_shares=jnp.zeros(rows, dtype),
            norm_shares=jnp.zeros(rows, dtype),
            weight=jnp.zeros([], dtype),
            raw_mean=_tree.zeros_like(params) if bias else None,
            clipped_mean=_tree.zeros_like(params) if bias else None,
            leaf_names=_rows.encoded_names(params, per_leaf),
            inner_state=inner_state,
        )

    def update(updates, state, params, **extra_args):
        out, inner_state = inner_tx.update(
            updates, state.inner_state, params, **extra_args
        )
        told = _told(inner_state)
        raw = _tree.at_least_float32(updates if told is None else told.raw)
        clipped = _tree.at_least_float32(out)
        before, after = (_rows.norms(t, per_leaf, axis_name) for t in (raw, clipped))
        shrunk = jax.tree.map(is_clipped, raw, clipped)
        measured = {
            "coordinate_shares": _rows.shares(shrunk, per_leaf, axis_name),
            "norm_shares": jnp.where(before == 0, 1, _tree.safe_divide(after, before)),
            "weight": jnp.ones([]),
            "raw_mean": raw if bias else None,
            "clipped_mean": clipped if bias else None,
        }
        averages = {name: getattr(state, name) for name in measured}
        good = jnp.all(jnp.isfinite(before) & jnp.isfinite(after))

        def average(mean, x):
            return jnp.where(good, mean + (x - mean) / window, mean)

        averages = _tree.cast_like(jax.tree.map(average, averages, measured), averages)
        new_state = state._replace(**averages, inner_state=inner_state)
        return out, new_state

    return wrapper(init, update)


def _told(state: Any) -> ClipByMomentState | None:
    """The state of `clip_by_moment`, alone or where numbers or a dtype wrap it."""
    wrappers = (StochasticRoundingState, MonitorClippingState, *_INJECTED)
    while isinstance(state, wrappers):
        state = state.inner_state
    return state if isinstance(state, ClipByMomentState) else None


def _check_told(state: Any) -> None:
    """Raises where what is clipped is neither the input nor told."""
    if not _readers.get_states(state, ClipByMomentState):
        return
    told = _told(state)
    if told is None:
        raise ValueError(
            "monitor_clipping must be around clip_by_moment or scale_by_acclip alone, "
            "not around a chain, mask, partition or wrapper that contains it."
        )
    if told.raw is None:
        raise ValueError(
            "monitor_clipping cannot see what this transform clips: pass report=True "
            "to it, as in `monitor_clipping(scale_by_acclip(report=True))`."
        )
