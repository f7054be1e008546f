"""Norms of trees, their leaves and their layers, and scaling by them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_heavytail import _parts, _tree

AxisName = Any  # a mesh axis name, a tuple of them, or a tree prefix of these and None


def size(tree: Any, axis_name: AxisName = None) -> Any:
    """The number of entries of all leaves, over ``axis_name``'s devices, as a float.

    It may be no int32.
    """
    axes = leaf_axes(axis_name, tree)
    leaves = jax.tree.leaves(tree)
    return sum(psum(float(x.size), axis) for x, axis in zip(leaves, axes, strict=True))


class Norm(NamedTuple):
    """A Euclidean norm as ``scaled / scale``: representable where its square is not."""

    scaled: jax.Array  # (), float32 or wider
    scale: jax.Array  # (), a power of two; 1 unless squares over- or underflow

    @property
    def value(self) -> jax.Array:
        """The norm itself; the largest number there is where it would overflow."""
        largest = jnp.finfo(self.scaled.dtype).max
        # The quotient comes last: see `clip_factors`.
        length = _tree.minimum(self.scaled, largest * _tree.minimum(self.scale, 1))
        # Not `jnp.isinf`, whose own inf stops `jax_debug_infs`.
        return jnp.where(self.scaled > largest, self.scaled, length) / self.scale


def global_norm(tree: Any, axis_name: AxisName = None, *, point: Any = None) -> Norm:
    """The norm over all entries of all leaves, and over ``axis_name``'s devices.

    With a ``point``, a tree that is alike, the distance from it. The difference is not
    kept in memory, also where the caller takes ``tree - point`` for its own ends.
    """
    leaves, origins = jax.tree.leaves(tree), jax.tree.leaves(point)
    if not leaves:
        return Norm(jnp.zeros([]), jnp.ones([]))
    dtype = jnp.result_type(jnp.float32, *leaves, *origins)
    parts = parts_of([tree] if point is None else [tree, point], axis_name)
    return _norms((leaves, origins), 1, _squares_of_all, tuple(parts), dtype)[0]


def _squares_of_all(trees, scales, parts, dtype):
    leaves, origins = trees
    arrays = _parts.join(leaves, parts)
    if origins:
        # The other way around than callers do: XLA would write one difference for
        # both into memory, and hold those of all leaves until the norm is there.
        arrays = map(jnp.subtract, _parts.join(origins, parts), arrays)
    by_axis = {}
    for x, part in zip(arrays, parts, strict=True):
        square = sum_of_squares(x, dtype, scales[0])
        by_axis.setdefault(part.axis, []).append(square)
    return [sum(psum(sum(group), axis) for axis, group in by_axis.items())]


def row_norms(tree: Any, point: Any = None) -> Norm:
    """The norm over all leaves of each slice along the leading axis: shape ``(n,)``.

    With a ``point``, a tree without that axis, the distance from it. No copy of a leaf
    is made. Every device has all n norms, also where that axis is sharded.
    """
    leaves = jax.tree.leaves(tree)
    origins = [None] * len(leaves) if point is None else jax.tree.leaves(point)
    dtype = jnp.result_type(jnp.float32, *leaves)
    return _norms((leaves, origins), 1, _squares_of_rows, dtype)[0]


def _squares_of_rows(trees, scales, dtype):
    def squares(x, origin):
        scaled = jnp.asarray(x, dtype) * expand_layers(scales[0], x, 0)
        if origin is not None:  # scaled first: the difference may be no number
            scaled -= origin[None] * expand_layers(scales[0], x, 0)
        return whole_rows(sum_of_squares(scaled, dtype, 1, 0))

    return [sum(map(squares, *trees))]


def whole_rows(x: jax.Array) -> jax.Array:
    """Gathers a leading axis that is sharded over explicit axes of a mesh."""
    sharding = jax.typeof(x).sharding
    if not sharding.spec or sharding.spec[0] is None:
        return x
    spec = jax.sharding.PartitionSpec(None, *sharding.spec[1:])
    return jax.sharding.reshard(x, sharding.update(spec=spec))


def leaf_norms(tree: Any, axis_name: AxisName = None, layer_axis: Any = None) -> Any:
    """The norm of each leaf, over ``axis_name``'s devices: a tree of `Norm`.

    A leaf with a ``layer_axis`` has one norm for each slice along it: the norms have
    shape ``(size of that axis,)``, and `expand_layers` fits them to the leaf.
    """
    treedef = jax.tree.structure(tree)
    parts = parts_of([tree], axis_name, layer_axis)
    norms = part_norms(tree, parts)
    fields = [_parts.split(x, parts) for x in zip(*norms, strict=True)]
    return treedef.unflatten([Norm(*norm) for norm in zip(*fields, strict=True)])


def parts_of(
    trees: Sequence[Any], axis_name: AxisName = None, layer_axis: Any = None
) -> list[_parts.Part]:
    """The parts of trees that are alike."""
    axes = leaf_axes(axis_name, trees[0])
    layers = _tree.broadcast_prefix(layer_axis, trees[0], lambda x: x is None)
    leaves = [jax.tree.leaves(tree) for tree in trees]
    for x, layer in zip(leaves[0], layers, strict=True):
        _check_layer_axis(layer, x)
    return _parts.of(leaves, axes, layers)


def part_norms(tree: Any, parts: Sequence[_parts.Part]) -> list[Norm]:
    """The norm of each leaf of each part, or of each layer of a leaf that is alone."""
    leaves = jax.tree.leaves(tree)
    return _norms(leaves, len(parts), _squares_of_parts, tuple(parts)) if parts else []


def _squares_of_parts(leaves, scales, parts):
    rows = zip(_parts.join(leaves, parts), parts, scales, strict=True)
    return [
        psum(_squares_of_part(x, part, scale), part.axis) for x, part, scale in rows
    ]


def _squares_of_part(x, part, scale):
    layer = 0 if part.is_stack else part.layer
    return sum_of_squares(x, _tree.wide_dtype(x), scale, layer)


def expand_layers(values: jax.Array, x: jax.Array, layer_axis: int | None) -> jax.Array:
    """Reshapes one value per slice of ``x`` so that it broadcasts against ``x``."""
    if layer_axis is None or jnp.ndim(values) == 0:
        return values
    return jnp.expand_dims(values, other_axes(x, layer_axis))


def _check_layer_axis(layer_axis: int | None, x: jax.Array) -> None:
    if layer_axis is not None and not -x.ndim <= layer_axis < x.ndim:
        raise ValueError(
            f"layer_axis must be an axis of each leaf it is for, got {layer_axis} for "
            f"one of shape {x.shape}."
        )


def other_axes(x: jax.Array, layer_axis: int) -> tuple[int, ...]:
    """All axes of ``x`` but one."""
    return tuple(axis for axis in range(x.ndim) if axis != layer_axis % x.ndim)


def _norms(
    arrays: Any, count: int, sums_of_squares: Callable[..., Any], *fixed: Any
) -> list[Norm]:
    """Norms from sums of squares, with a second, rescaled pass where that is needed.

    The pass runs under `jax.lax.cond` when a sum overflows or is too small to trust:
    scaling by the largest entry would cost a second look at everything each time.
    """
    sums = sums_of_squares(arrays, [1] * count, *fixed)
    scales = [rescaling(s) for s in sums]
    wanted = jnp.any(jnp.stack([jnp.any(scale != 1) for scale in scales]))
    again, once = _passes(sums_of_squares, *fixed)
    sums = jax.lax.cond(wanted, again, once, arrays, scales, sums)
    norms = [
        Norm(_tree.safe_sqrt(s), scale) for s, scale in zip(sums, scales, strict=True)
    ]
    # Without the barrier XLA may copy the whole reduction into each of its consumers.
    return jax.lax.optimization_barrier(norms)


@functools.lru_cache(maxsize=1024)
def _passes(sums_of_squares: Callable[..., Any], *fixed: Any) -> tuple[Any, Any]:
    """Branches of a conditional, the same two functions each time.

    Outside of `jax.jit` JAX compiles a conditional for each function it has not seen.
    """

    def again(arrays, scales, sums):
        del sums
        # Of constants, as the gradient of a parameter that the loss does not have is
        # one, XLA takes the scales out of the squares: 0 times what overflows is NaN.
        arrays, scales = _tree.held((arrays, scales))
        return sums_of_squares(arrays, scales, *fixed)

    def once(arrays, scales, sums):
        del arrays, scales
        return sums

    return again, once


def rescaling(square: jax.Array) -> jax.Array:
    """A power of two that brings the entries behind a bad sum of squares near 1."""
    single = jnp.finfo(square.dtype).bits == 32
    tiny, exponent = (1e-30, 100) if single else (1e-280, 600)
    scale = jnp.where(square < tiny, 2.0**exponent, 1.0)
    # Not isinf, whose constant is an inf at which `jax_debug_infs` stops.
    overflows = ~jnp.isfinite(square) & ~jnp.isnan(square)
    scale = jnp.where(overflows, 2.0**-exponent, scale)
    return jax.lax.stop_gradient(scale.astype(square.dtype))


def sum_of_squares(
    x: jax.Array, dtype: Any, scale: Any, layer_axis: int | None = None
) -> jax.Array:
    """Of ``x`` times ``scale``; with a ``layer_axis`` of each slice along it."""
    axes = None if layer_axis is None else other_axes(x, layer_axis)
    wide = jnp.asarray(x, dtype)
    return jnp.sum(jnp.square(wide * expand_layers(scale, x, layer_axis)), axis=axes)


def psum(x: Any, axis: Any) -> Any:
    """The sum over the devices of a mesh axis; ``None``: of this one alone."""
    return x if axis is None else jax.lax.psum(x, axis)


def leaf_axes(axis_name: AxisName, tree: Any) -> list[Any]:
    """The axis names of each leaf of ``tree``, from a tree prefix of names."""

    def is_name(x):
        return (
            x is None
            or isinstance(x, str)
            or (isinstance(x, tuple) and bool(x) and all(isinstance(a, str) for a in x))
        )

    return _tree.broadcast_prefix(axis_name, tree, is_name)


def nan_unless_finite(number: jax.Array, tree: Any) -> Any:
    """``tree`` if ``number`` is finite, else NaN throughout.

    Without this an infinite norm would zero every finite entry, silently.
    """
    good = jnp.isfinite(number)
    return jax.tree.map(lambda x: _tree.nan_unless(good, x), tree)


def is_norm(x: Any) -> bool:
    """Whether ``x`` is a `Norm`, which is a leaf of a tree of norms."""
    return isinstance(x, Norm)


def clip_factors(norm: Norm, tau: Any) -> tuple[jax.Array, ...]:
    """Three factors whose product is ``min(tau / norm, 1)``, or NaN for a bad norm.

    The product itself may be too small a number where the clipped update is not: two of
    the factors are powers of two that keep everything in range on the way. All are
    quotients at last: of those XLA makes no copy in each leaf's own program.

    The largest number is no limit, also for a norm that is beyond it.
    """
    scaled, scale = norm
    single = jnp.finfo(scaled.dtype).bits == 32
    far, lift = (1e-20, 2.0**96) if single else (1e-200, 2.0**700)
    tau = jnp.asarray(tau, scaled.dtype)
    # Products are of 0 where they are not used: an inf on the way stops debuggers.
    is_limit = _tree.is_limit(tau)
    over = is_limit & (scaled > jnp.where(is_limit, tau, 0) * scale)
    is_far = over & (tau < scaled * far)
    # 1 where it is not used: an infinite one there has a slope that is NaN.
    far_tau = jnp.where(is_far, tau, 0)
    lifted = jnp.where(is_far, far_tau * lift, jnp.where(over, tau, 1))
    # Without this an infinite norm would zero every finite entry, silently.
    # A schedule's bad threshold is loud too.
    lifted = _tree.nan_unless(jnp.isfinite(scaled) & (tau >= 0), lifted)
    return (
        1 / jnp.where(over, 1 / scale, 1),
        lifted / jnp.where(over, scaled, 1),
        1 / jnp.where(is_far, lift, 1),
    )


def clip_factor(norm: Norm, tau: Any) -> jax.Array:
    """The product of `clip_factors`, for a report: 0 where it is no number."""
    first, second, third = clip_factors(norm, tau)
    return first * second * third


def apply_factors(
    factors: tuple[jax.Array, ...], g: jax.Array, layer_axis: int | None = None
) -> jax.Array:
    """``g`` times the factors of `clip_factors`, of each slice along ``layer_axis``."""
    for factor in factors:
        g = g * expand_layers(factor, g, layer_axis)
    return g
