"""Tree numerics that ``optax.tree`` lacks: safe norms, powers, stable dtypes."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

AxisName = Any  # a mesh axis name, a tuple of them, or a tree prefix of these and None


def at_least_float32(tree: Any) -> Any:
    """Casts leaves narrower than float32 to float32."""
    return jax.tree.map(lambda x: jnp.asarray(x, _wide(x)), tree)


def zeros_like(params: Any, dtype: jax.typing.DTypeLike | None = None) -> Any:
    """Zeros for a state: in ``dtype``, or in the leaf's own but at least float32."""
    return jax.tree.map(
        lambda p: jnp.zeros_like(p, dtype=_wide(p) if dtype is None else dtype), params
    )


def copy(params: Any) -> Any:
    """A copy for a state, in float32 or wider; of a shape without numbers NaN.

    Such a state is a template to restore another into. Zeros would pass for a start.
    """

    def copied(p):
        zeros = jnp.zeros_like(p, dtype=_wide(p))
        if isinstance(p, jax.ShapeDtypeStruct):
            return jnp.full_like(zeros, jnp.nan)
        return p + zeros

    return jax.tree.map(copied, params)


def cast_like(tree: Any, target: Any) -> Any:
    """Casts each leaf to the dtype of its counterpart, and to a strong type."""

    def cast(x, t):
        dtype = jnp.result_type(t)
        is_key = jnp.issubdtype(dtype, jax.dtypes.extended)
        return x if is_key else jnp.asarray(x).astype(dtype)

    return jax.tree.map(cast, tree, target)


def _wide(x: Any) -> jnp.dtype:
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``, and 0 with a zero gradient where ``y`` is 0."""
    zero = y == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, y))


def minimum(x: jax.Array, y: Any) -> jax.Array:
    """The smaller, with the slope of the one that was taken; NaN if either is.

    The slope of `jnp.minimum` compares the result with both. XLA may round a copy of
    them in another fusion otherwise, which equals neither: a slope of 0.
    """
    return jnp.where((x < y) | jnp.isnan(x), x, y)


def maximum(x: jax.Array, y: Any) -> jax.Array:
    """The larger, with the slope of the one that was taken; NaN if either is."""
    return jnp.where((x > y) | jnp.isnan(x), x, y)


def debias_weight(decay: Any, count: Any) -> jax.Array:
    """``1 - decay^count``, to full precision.

    In float32 the subtraction loses 5 digits of 7 for a decay of 0.999 at count 1, and
    so does rounding such a decay before taking its logarithm.
    """
    if isinstance(decay, int | float):
        log = math.log(decay) if decay > 0 else -math.inf
    else:
        positive = decay > 0  # the logarithm has no finite slope at 0
        log = jnp.where(positive, jnp.log(jnp.where(positive, decay, 1)), -jnp.inf)
    return -jnp.expm1(count * log)


def divide_by_root(mean: Any, square: Any, eps: Any) -> Any:
    """``mean / (sqrt(square) + eps)``, leaf by leaf; 0 where that divides by 0."""
    return jax.tree.map(lambda m, v: safe_divide(m, safe_sqrt(v) + eps), mean, square)


def power_mean(old: jax.Array, new: jax.Array, decay: Any, exponent: Any) -> jax.Array:
    """``(decay old^a + (1 - decay) new^a)^(1/a)`` of nonnegative numbers.

    The powers are taken of ratios to the larger of the two: they cannot overflow, and
    what underflows is negligible. Finite gradients everywhere.
    """
    if isinstance(exponent, int | float) and exponent == 1:
        return decay * old + (1 - decay) * new
    # The mean scales with its arguments, so its slope along this scale is 0.
    largest = jax.lax.stop_gradient(jnp.maximum(old, new))
    old, new = safe_divide(old, largest), safe_divide(new, largest)
    if isinstance(exponent, int | float) and exponent == 2:
        power, root = jnp.square, jnp.sqrt
    else:
        power, root = lambda x: x**exponent, lambda x: x ** (1 / exponent)
    mean = decay * power(old) + (1 - decay) * power(new)
    zero = mean == 0  # a root has no finite slope there
    return largest * jnp.where(zero, 0, root(jnp.where(zero, 1, mean)))


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
        value = minimum(self.scaled / self.scale, largest)
        return jnp.where(jnp.isfinite(self.scaled), value, self.scaled)


def global_norm(tree: Any, axis_name: AxisName = None) -> Norm:
    """The norm over all entries of all leaves, and over ``axis_name``'s devices."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return Norm(jnp.zeros([]), jnp.ones([]))
    dtype = jnp.result_type(jnp.float32, *leaves)
    axes = leaf_axes(axis_name, tree)

    def sums_of_squares(leaves, scales):
        squares = [sum_of_squares(x, dtype, scales[0]) for x in leaves]
        by_axis = {}
        for axis, square in zip(axes, squares, strict=True):
            by_axis.setdefault(axis, []).append(square)
        return [sum(psum(sum(group), axis) for axis, group in by_axis.items())]

    return _norms(sums_of_squares, leaves)[0]


def row_norms(tree: Any, point: Any = None) -> Norm:
    """The norm over all leaves of each slice along the leading axis: shape ``(n,)``.

    With a ``point``, a tree without that axis, the distance from it. No copy of a leaf
    is made. Every device has all n norms, also where that axis is sharded.
    """
    leaves = jax.tree.leaves(tree)
    origins = [None] * len(leaves) if point is None else jax.tree.leaves(point)
    dtype = jnp.result_type(jnp.float32, *leaves)

    def squares(x, origin, scale):
        scaled = jnp.asarray(x, dtype) * expand_layers(scale, x, 0)
        if origin is not None:  # scaled first: the difference may be no number
            scaled -= origin[None] * expand_layers(scale, x, 0)
        return whole_rows(sum_of_squares(scaled, dtype, 1, 0))

    def sums_of_squares(leaves, scales):
        pairs = zip(leaves, origins, strict=True)
        return [sum(squares(x, origin, scales[0]) for x, origin in pairs)]

    return _norms(sums_of_squares, leaves)[0]


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
    leaves, treedef = jax.tree.flatten(tree)
    axes = leaf_axes(axis_name, tree)
    layers = broadcast_prefix(layer_axis, tree, lambda x: x is None)
    for x, layer in zip(leaves, layers, strict=True):
        _check_layer_axis(layer, x)

    def sums_of_squares(leaves, scales):
        return [
            psum(sum_of_squares(x, _wide(x), scale, layer), axis)
            for x, scale, layer, axis in zip(leaves, scales, layers, axes, strict=True)
        ]

    return treedef.unflatten(_norms(sums_of_squares, leaves) if leaves else [])


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


def _norms(sums_of_squares: Any, leaves: list[jax.Array]) -> list[Norm]:
    """Norms from sums of squares, with a second, rescaled pass where that is needed.

    The pass runs under `jax.lax.cond` when a sum overflows or is too small to trust:
    scaling by the largest entry would cost a second look at everything each time.
    """
    sums = sums_of_squares(leaves, [1] * len(leaves))
    scales = [rescaling(s) for s in sums]
    wanted = jnp.any(jnp.stack([jnp.any(scale != 1) for scale in scales]))
    sums = jax.lax.cond(wanted, lambda: sums_of_squares(leaves, scales), lambda: sums)
    norms = [Norm(safe_sqrt(s), scale) for s, scale in zip(sums, scales, strict=True)]
    # Without the barrier XLA may copy the whole reduction into each of its consumers.
    return jax.lax.optimization_barrier(norms)


def rescaling(square: jax.Array) -> jax.Array:
    """A power of two that brings the entries behind a bad sum of squares near 1."""
    single = jnp.finfo(square.dtype).bits == 32
    tiny, exponent = (1e-30, 100) if single else (1e-280, 600)
    scale = jnp.where(square < tiny, 2.0**exponent, 1.0)
    scale = jnp.where(jnp.isinf(square), 2.0**-exponent, scale)
    return jax.lax.stop_gradient(scale.astype(square.dtype))


def sum_of_squares(
    x: jax.Array, dtype: Any, scale: Any, layer_axis: int | None = None
) -> jax.Array:
    """Of ``x`` times ``scale``; with a ``layer_axis`` of each slice along it."""
    axes = None if layer_axis is None else other_axes(x, layer_axis)
    wide = jnp.asarray(x, dtype)
    return jnp.sum(jnp.square(wide * expand_layers(scale, x, layer_axis)), axis=axes)


def safe_sqrt(square: jax.Array) -> jax.Array:
    """The root, and a slope of 0 at 0."""
    zero = square == 0  # a root has no finite slope there
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


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

    return broadcast_prefix(axis_name, tree, is_name)


def broadcast_prefix(prefix: Any, tree: Any, is_leaf: Any) -> list[Any]:
    """The leaves of a tree prefix, repeated so that each leaf of ``tree`` has one."""
    values = []
    # `optax.tree.map_params` initialises with a placeholder that no prefix matches.
    if not jax.tree.leaves(tree):
        return values
    jax.tree.map(
        lambda value, part: values.extend([value] * len(jax.tree.leaves(part))),
        prefix,
        tree,
        is_leaf=is_leaf,
    )
    return values


def nan_unless_finite(number: jax.Array, tree: Any) -> Any:
    """``tree`` if ``number`` is finite, else NaN throughout.

    Without this an infinite norm would zero every finite entry, silently.
    """
    good = jnp.isfinite(number)
    return jax.tree.map(lambda x: jnp.where(good, x, jnp.nan), tree)
