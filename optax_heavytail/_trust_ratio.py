"""Layer-wise rates with a bounded trust ratio."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _parts, _tree
from optax_heavytail._transform import wrapper
from optax_heavytail._weight_decay import Mask, check_mask, masked

Bounds = tuple[_base.ScalarOrSchedule | None, _base.ScalarOrSchedule | None]


class ScaleByClippedTrustRatioState(NamedTuple):
    """State of `scale_by_clipped_trust_ratio`.

    The ratios are those of the last update, 1 before the first: per leaf a float32 or
    wider scalar, or a vector with one entry for each slice along the ``layer_axis``.
    """

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    trust_ratio: Any  #: the ratios used
    raw_trust_ratio: Any  #: the ratios before the bounds


def scale_by_clipped_trust_ratio(
    lower: _base.ScalarOrSchedule | None = 0.0,
    upper: _base.ScalarOrSchedule | None = 1.0,
    *,
    layer_axis: Any = None,
    mask: Mask | None = None,
    axis_name: Any = None,
    trust_coefficient: jax.typing.ArrayLike = 1.0,
    eps: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales each layer's update to a bounded multiple of the layer's own norm.

    For each leaf with parameters :math:`w` and incoming update :math:`u`,

    .. math::
        r = c \, \frac{\lVert w \rVert}{\lVert u \rVert + \epsilon}, \quad
        r = 1 \text{ if } \lVert w \rVert = 0 \text{ or } \lVert u \rVert = 0, \qquad
        u \leftarrow \min(\max(r, l), h) \, u .

    Args:
      lower: :math:`l` in [0, inf), a schedule of the count from 0, or ``None`` for no
        bound.
      upper: :math:`h` in (0, inf), likewise. 1, LAMBC's bound, never lengthens a step.
      layer_axis: for layers that are stacked in one leaf, as a scan over layers has
        them: the axis that counts the layers, so that each slice has its own ratio. An
        int, ``None``, or a tree prefix of these.
      mask: which leaves take the ratio (``True``; biases and norms usually do not): a
        tree of bools, a prefix, or a function of the parameters. The others pass.
      axis_name: for parameters sharded by hand inside ``shard_map`` or ``pmap``: the
        mesh axis to sum norms over, a tuple of axes, or a tree prefix of these with
        ``None`` for leaves that are replicated. Nothing is needed under ``jit``.
      trust_coefficient: :math:`c` in (0, inf), without unit. LARS uses 0.001.
      eps: :math:`\epsilon` in [0, inf), in the update's units.

    Returns:
      A transform with a `ScaleByClippedTrustRatioState` (inside an
      ``optax.MaskedState`` if there is a mask); read it with `get_trust_ratio`. Its
      ``update`` needs the parameters. Updates keep their structure, shapes and dtypes.
      Zero updates stay zero; norms of huge and tiny updates, in any dtype, neither
      overflow nor underflow; an inf or NaN entry makes its whole layer NaN.

    Raises:
      ValueError: a concrete number is outside its range, the bounds are in the wrong
        order, or ``update`` was called without parameters.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_clipped_trust_ratio(upper=10.0)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jnp.array([0.0, 1.0]), tx.init(params), params)
      >>> updates.tolist(), float(oht.get_trust_ratio(state))
      ([0.0, 5.0], 5.0)

    References:
      Fong, Chen and Chen, `Improving layer-wise adaptive rate methods using trust ratio
      clipping <https://arxiv.org/abs/2011.13584>`_, 2020, algorithm 1. ``lower`` and
      ``upper`` are its bounds; ``raw_trust_ratio`` is its :math:`r`.
    """
    _check_bounds(("lower", "upper"), (lower, upper))
    _base.check_range(
        "trust_coefficient", trust_coefficient, 0.0, float("inf"), low_open=True
    )
    _base.check_range("eps", eps, 0.0, float("inf"))
    _base.check_static("layer_axis", layer_axis)
    check_mask("mask", mask)

    def init(params):
        return _start(params, layer_axis)

    # Not `transform`: a second pass of the norms would read a wide copy of narrow
    # parameters, where it can widen them on the way.
    def update(updates, state, params, **extra_args):
        del extra_args
        wide = _tree.at_least_float32(updates)
        parts = _norms.parts_of([params, wide], axis_name, layer_axis)
        norms = (_norms.part_norms(tree, parts) for tree in (params, wide))
        raw = [
            _ratio(w, u, trust_coefficient, eps) for w, u in zip(*norms, strict=True)
        ]
        raw = [
            _parts.shared(r) if part.is_stack else r
            for r, part in zip(raw, parts, strict=True)
        ]
        low, high = (_base.at_count(bound, state.count) for bound in (lower, upper))
        ratio = [_bound(r, low, high) for r in raw]
        # Without the barrier XLA may copy both norms into each of their consumers.
        ratio, raw = jax.lax.optimization_barrier((ratio, raw))
        leaves, treedef = jax.tree.flatten(wide)
        ratio, raw = (_parts.split(x, parts) for x in (ratio, raw))
        layers = _tree.broadcast_prefix(layer_axis, wide, lambda x: x is None)
        scaled = [
            _norms.expand_layers(r, u, layer) * u
            for r, u, layer in zip(ratio, leaves, layers, strict=True)
        ]
        new_state = ScaleByClippedTrustRatioState(
            optax.safe_increment(state.count), *map(treedef.unflatten, (ratio, raw))
        )
        return _tree.cast_like(treedef.unflatten(scaled), updates), new_state

    dtypes = {"trust_ratio": None, "raw_trust_ratio": None}
    tx = wrapper(init, update, dtypes=dtypes, needs_params=True)
    return masked(tx, mask)


def check_bounds(name: str, bounds: Bounds | None) -> Bounds:
    """The pair, after a check that speaks of ``name``."""
    if bounds is None:
        return None, None
    _base.check_pair(name, bounds)
    _check_bounds((f"{name}[0]", f"{name}[1]"), bounds)
    return bounds


def _start(params, layer_axis):
    """The state before the first update."""
    # From shapes alone: inside shard_map the sum over devices does not vary with them,
    # and ones made from the parameters' own shards would.
    norms = jax.eval_shape(
        lambda p: _norms.leaf_norms(p, layer_axis=layer_axis), params
    )
    ones = (
        jax.tree.map(
            lambda n: jnp.ones(
                n.scale.shape, n.scale.dtype, out_sharding=n.scale.sharding
            ),
            norms,
            is_leaf=_norms.is_norm,
        )
        for _ in range(2)
    )
    return ScaleByClippedTrustRatioState(jnp.zeros([], jnp.int32), *ones)


def _check_bounds(names: tuple[str, str], bounds: Bounds) -> None:
    lower, upper = bounds
    if lower is not None:
        _base.check_range(names[0], lower, 0.0, float("inf"))
    if upper is not None:
        _base.check_range(names[1], upper, 0.0, float("inf"), low_open=True)
    _base.check_order(names[0], lower, names[1], upper)


def _bound(ratio: jax.Array, low: Any, high: Any) -> jax.Array:
    if low is not None:
        ratio = _tree.maximum(ratio, low)
    return ratio if high is None else _tree.minimum(ratio, high)


def _ratio(w: _norms.Norm, u: _norms.Norm, coefficient: Any, eps: Any) -> jax.Array:
    zero = (w.scaled == 0) | (u.scaled == 0)
    length = jnp.where(zero, 1, u.scaled + eps * u.scale)
    # One factor after the other: the quotient of the two scales may be no number.
    ratio = coefficient * (w.scaled / length) * u.scale / w.scale
    ratio = jnp.where(zero, 1, ratio)
    # Without this an infinite norm would zero every finite entry, silently.
    return _tree.nan_unless(jnp.isfinite(w.scaled + u.scaled), ratio)
