"""Tree numerics that ``optax.tree`` lacks: powers, quotients and stable dtypes."""

import math
from typing import Any

import jax
import jax.numpy as jnp

# Its exponential is 0, and no count makes it inf, at which `jax_debug_infs` stops.
_LOG_0 = -1e28


def at_least_float32(tree: Any) -> Any:
    """Casts leaves narrower than float32 to float32."""
    return jax.tree.map(lambda x: jnp.asarray(x, wide_dtype(x)), tree)


def zeros_like(params: Any, dtype: jax.typing.DTypeLike | None = None) -> Any:
    """Zeros for a state: in ``dtype``, or in the leaf's own but at least float32."""
    return jax.tree.map(
        lambda p: jnp.zeros_like(p, dtype=wide_dtype(p) if dtype is None else dtype),
        params,
    )


def copy(params: Any) -> Any:
    """A copy for a state, in float32 or wider; of a shape without numbers NaN.

    Such a state is a template to restore another into. Zeros would pass for a start.
    """

    def copied(p):
        zeros = jnp.zeros_like(p, dtype=wide_dtype(p))
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


def wide_dtype(x: Any) -> jnp.dtype:
    """The dtype of ``x``, but at least float32."""
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def no_limit(dtype: Any) -> Any:
    """The largest number of a dtype, which clips take for no limit at all.

    An inf is none of a finite gradient: `jax_debug_infs` stops at it.
    """
    return jnp.finfo(dtype).max


def is_limit(bound: jax.Array) -> jax.Array:
    """Whether it is below `no_limit`; a NaN is not."""
    return bound < no_limit(bound.dtype)


def safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``, and 0 with a zero gradient where ``y`` is 0."""
    zero = y == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, y))


def nan_unless(good: jax.Array, x: jax.Array) -> jax.Array:
    """``x``, and NaN where it is not good.

    The NaN is made of the condition. A constant would be a NaN also where all is good,
    at which `jax_debug_nans` stops; and 0 / 0 is 0 where XLA divides a known 0.
    """
    return jnp.where(good, x, jnp.sqrt(good.astype(x.dtype) - 1))


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
        log = math.log(decay) if decay > 0 else _LOG_0
    else:
        positive = decay > 0  # the logarithm has no finite slope at 0
        log = jnp.where(positive, jnp.log(jnp.where(positive, decay, 1)), _LOG_0)
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


def safe_sqrt(square: jax.Array) -> jax.Array:
    """The root, and a slope of 0 at 0."""
    zero = square == 0  # a root has no finite slope there
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def held(tree: Any) -> Any:
    """The tree, of which the compiler may not use that it knows its numbers.

    Leaf by leaf: one barrier for all would make each vary over the axes of any.
    """
    return jax.tree.map(jax.lax.optimization_barrier, tree)


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
