"""Shared types, texts and argument checks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

ScalarOrSchedule = jax.typing.ArrayLike | Callable[[jax.Array], jax.typing.ArrayLike]

LARGEST_INTEGER = int(np.iinfo(np.int32).max)  # of the counts

NO_PARAMS = (
    "This transformation needs the current parameters: call "
    "`update(updates, state, params)`."
)


def check_range(
    name: str,
    value: Any,
    low: float,
    high: float,
    *,
    low_open: bool = False,
    high_open: bool = False,
    scalar: bool = True,
) -> None:
    """Raises if a concrete ``value`` is not a number between the bounds.

    With ``scalar=False`` an array of such numbers passes as well.

    Traced values and schedules cannot be looked at and pass. A bound of infinity is
    never attained: hyperparameters are finite.
    """
    if isinstance(value, jax.core.Tracer) or callable(value):
        return
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return
    array = np.asarray(value)
    is_real = array.dtype.kind in "iu" or jnp.issubdtype(array.dtype, jnp.floating)
    if not is_real or isinstance(value, list | tuple) or (scalar and array.shape):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    array = array.astype(np.float64)
    above = array > low if low_open or math.isinf(low) else array >= low
    below = array < high if high_open or math.isinf(high) else array <= high
    if not np.all(above & below):
        left = "(" if low_open or math.isinf(low) else "["
        right = ")" if high_open or math.isinf(high) else "]"
        raise ValueError(f"{name} must be in {left}{low}, {high}{right}, got {value}.")


def check_static(name: str, value: Any) -> None:
    """Raises if ``value``, which the program depends on, holds an array."""
    if any(isinstance(x, jax.Array | np.ndarray) for x in jax.tree.leaves(value)):
        raise TypeError(
            f"{name} decides what is compiled and cannot be an array; under "
            f'`optax.inject_hyperparams` pass `static_args=("{name}",)`.'
        )


def check_flag(name: str, value: Any) -> None:
    """Raises if ``value`` is not True or False."""
    check_static(name, value)
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def check_choice(name: str, value: Any, allowed: Sequence[str | None]) -> None:
    """Raises if ``value`` is not one of the ``allowed`` words."""
    check_static(name, value)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}.")


def check_transform(name: str, value: Any) -> None:
    """Raises if ``value`` is no gradient transformation."""
    if not hasattr(value, "init") or not hasattr(value, "update"):
        raise TypeError(f"{name} must be a gradient transformation, got {value!r}.")


def check_dtype(name: str, dtype: Any) -> None:
    """Raises if ``dtype`` is none that a state can be kept in."""
    check_static(name, dtype)
    # float16 ends at 6e-8: the square of a gradient of 1e-4 would be 0.
    allowed = (jnp.bfloat16, jnp.float32, jnp.float64)
    try:
        good = dtype is None or jnp.dtype(dtype) in map(jnp.dtype, allowed)
    except TypeError:
        good = False
    if not good:
        raise ValueError(
            f"{name} must be None, bfloat16, float32 or float64, got {dtype!r}."
        )


def check_arrays(tree: Any, what: str) -> None:
    """Raises if a leaf of ``tree`` is neither an array nor a number."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise _odd_leaf(what, path, f"is a {type(leaf).__name__}")


def check_floating(tree: Any, what: str) -> None:
    """Raises if a leaf of ``tree`` is not an array of real floating-point numbers."""
    check_arrays(tree, what)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        dtype = jnp.result_type(leaf) if dtype is None else dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise _odd_leaf(what, path, f"has dtype {dtype}")
        if dtype.itemsize < 2:
            found = f"has dtype {dtype}, which JAX widens to no other by itself"
            raise _odd_leaf(what, path, found)


def _odd_leaf(what: str, path: Any, found: str) -> TypeError:
    return TypeError(
        f"{what} must be real floating-point arrays, but {place_of(path)} {found}; put "
        "None there, or leave it out with `optax.masked` or `optax.partition`."
    )


def check_alike(tree: Any, like: Any, what: str) -> None:
    """Raises if ``tree`` has not the structure of the updates ``like``."""
    structures = jax.tree.structure(tree), jax.tree.structure(like)
    if structures[0] == structures[1]:
        return
    paths, others = (
        [path for path, _ in jax.tree_util.tree_leaves_with_path(t)]
        for t in (tree, like)
    )
    odd = [p for p in paths if p not in others] + [p for p in others if p not in paths]
    where = (
        f"only one of them has a leaf at {place_of(odd[0])}"
        if odd
        else (f"they are {structures[0]} and {structures[1]}")
    )
    raise ValueError(
        f"{what} and updates must be trees of one structure, but {where}; what is not "
        "trained must be None, or masked, in parameters and gradients alike."
    )


def place_of(path: Any) -> str:
    """How errors call the leaf at a path."""
    return jax.tree_util.keystr(path) or "the only leaf"


def is_function(value: Any) -> bool:
    """Whether ``value`` can be called, and is no tree: an Equinox module can be both.

    The question to ask where a schedule or a function may come and a tree as well.
    """
    is_partial = isinstance(value, jax.tree_util.Partial)  # a tree of what it binds
    return callable(value) and (is_partial or jax.tree_util.all_leaves([value]))


def at_count(value: Any, count: Any) -> Any:
    """``value(count)`` for a schedule, ``value`` itself otherwise."""
    if not callable(value):
        return value
    # An int32 over an int is a float32 even where x64 is on; a default integer is not.
    return value(jnp.asarray(count, jnp.result_type(int)))


def product(a: Any, b: Any) -> Any:
    """The product of two numbers or schedules, as one of these."""
    if any(isinstance(x, int | float) and x == 0 for x in (a, b)):
        return 0.0
    if callable(a) or callable(b):
        return lambda count: at_count(a, count) * at_count(b, count)
    return a * b


def check_integer(name: str, value: Any, low: int) -> None:
    """Raises if a concrete ``value`` is not an integer of at least ``low``."""
    if isinstance(value, jax.core.Tracer):
        return
    array = np.asarray(value)
    is_integer = type(value) is int or array.dtype.kind in "iu"  # of any length
    if not is_integer or array.shape or array < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}.")
    if array > LARGEST_INTEGER:
        raise ValueError(f"{name} must be at most {LARGEST_INTEGER}, got {value!r}.")


def check_static_integer(name: str, value: Any, low: int) -> None:
    """Raises if ``value``, which fixes a shape, is no integer of Python or NumPy."""
    check_static(name, value)
    if not isinstance(value, int | np.integer):
        raise ValueError(
            f"{name} must be a Python integer, as it fixes a shape, got {value!r}."
        )
    check_integer(name, value, low)


def check_pair(name: str, value: Any) -> None:
    """Raises if ``value`` is not a pair."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be a pair, got {value!r}.")


def check_order(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raises if two concrete numbers are in the wrong order."""
    for value in (low, high):
        if value is None or callable(value) or isinstance(value, jax.core.Tracer):
            return
    if np.asarray(low) > np.asarray(high):
        raise ValueError(
            f"{low_name} must be at most {high_name}, got {low} and {high}."
        )
