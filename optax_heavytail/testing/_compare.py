"""What two answers of a transform may not differ in."""

import itertools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_SHOWN = 8  # entries of a leaf


class Broken(Exception):  # noqa: N818 - an outcome of a law, not an error of the kit
    """A law does not hold; the text says what happened instead."""


def explain(error: Exception) -> str:
    """An error in a line: its first paragraph, and which argument it is about.

    JAX explains itself at length; the name of a hyperparameter stands further down.
    """
    if isinstance(error, Broken):
        return str(error)
    whole = " ".join(str(error).split())
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    text = re.sub(r" (The error occurred while tracing|See https?://).*", "", text)
    text = text if len(text) <= 300 else f"{text[:200]} ... {text[-100:]}"
    about = re.search(
        r"depends on the values? of the arguments? .+?(?=\.? |\.?$)", whole
    )
    if about and about[0] not in text:
        text += f" It {about[0]}."
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # another one in every run
    return f"raised {type(error).__name__}" + (f": {text}" if text else "")


class Tolerance(NamedTuple):
    """How far two ways of computing one leaf may differ."""

    relative: float  # to the largest entry of the leaf over all steps
    absolute: float  # for what is a difference of parameters, and may cancel


def with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with their places, written as in Python."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def same_structure(got: Any, want: Any, what: str) -> None:
    """Breaks unless the trees have one structure."""
    if jax.tree.structure(got) != jax.tree.structure(want):
        raise Broken(
            f"{what} has the tree structure {jax.tree.structure(got)} "
            f"and not {jax.tree.structure(want)}"
        )


def _dtype(leaf: Any) -> Any:
    """``None`` for what is no number, such as a string or a function."""
    if isinstance(leaf, (bool, int, float, complex)):
        return jnp.result_type(leaf)
    return getattr(leaf, "dtype", None)


def _type(leaf: Any) -> str:
    dtype = _dtype(leaf)
    return type(leaf).__name__ if dtype is None else f"{dtype}{list(jnp.shape(leaf))}"


def same_types(got: Any, want: Any, what: str) -> None:
    """Breaks unless structure, shapes and dtypes are the same."""
    same_structure(got, want, what)
    for (path, a), b in zip(with_paths(got), jax.tree.leaves(want), strict=True):
        if _type(a) != _type(b):
            raise Broken(f"{what}{path} is {_type(a)} and not {_type(b)}")


def numbers(leaf: Any) -> np.ndarray:
    """The leaf for comparing: floats as float64, random keys as their bits."""
    dtype = _dtype(leaf)
    if dtype is None:
        return np.asarray(leaf, object)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.astype(np.float64) if is_float(leaf) else array


def is_float(leaf: Any) -> bool:
    """Whether rounding may move the leaf."""
    dtype = _dtype(leaf)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.floating))


def same_bits(got: Any, want: Any, what: str) -> None:
    """Breaks unless all entries are equal (a NaN equals a NaN)."""
    same_types(got, want, what)
    for (path, a), b in zip(with_paths(got), jax.tree.leaves(want), strict=True):
        if not np.array_equal(numbers(a), numbers(b), equal_nan=is_float(a)):
            raise Broken(_differ(f"{what}{path}", a, b))


def close(got: list[Any], want: list[Any], tolerance: Tolerance, what: str) -> None:
    """Breaks unless each leaf of each step is within the tolerance."""
    for a, b in zip(got, want, strict=True):
        same_structure(a, b, what)
    columns = zip(
        zip(*map(with_paths, got), strict=True),
        zip(*map(jax.tree.leaves, want), strict=True),
        strict=True,
    )
    for named, wanted in columns:
        path = named[0][0]
        _close_leaf([leaf for _, leaf in named], wanted, tolerance, f"{what}{path}")


def _close_leaf(got, want, tolerance, what):
    arrays = [numbers(x) for x in want]
    largest = max(map(_largest, arrays))
    allowed = tolerance.relative * largest + tolerance.absolute
    allowed = allowed if is_float(want[0]) else 0
    for step, (a, array) in enumerate(zip(map(numbers, got), arrays, strict=True), 1):
        if a.shape != array.shape:
            raise Broken(f"{what} has shape {a.shape} and not {array.shape}")
        if not np.allclose(a, array, rtol=0, atol=allowed, equal_nan=True):
            when = f" after step {step}" if len(got) > 1 else ""
            raise Broken(_differ(what, got[step - 1], want[step - 1], when))


def _largest(array):
    finite = array[np.isfinite(array)]
    return float(np.max(np.abs(finite))) if finite.size else 0.0


def finite(tree: Any, what: str, start: Any = None) -> None:
    """Breaks at the first leaf with an inf or NaN.

    An inf of ``start`` may stay: a smallest loss so far begins as inf.
    """
    known = jax.tree.leaves(start)
    known = known if jax.tree.structure(start) == jax.tree.structure(tree) else []
    for (path, leaf), before in itertools.zip_longest(with_paths(tree), known):
        if not is_float(leaf):
            continue
        array = numbers(leaf)
        good = np.isfinite(array)
        if before is not None and jnp.shape(before) == array.shape:
            good |= array == numbers(before)
        if not np.all(good):
            raise Broken(f"{what}{path} is {_short(leaf)}, which is not finite")


def _differ(what, got, want, when=""):
    """In words, with as many digits as it takes to see it."""
    a, b = numbers(got), numbers(want)
    if a.shape == b.shape and a.size > _SHOWN:
        with np.errstate(invalid="ignore"):  # of infs
            unequal = ~((a == b) | (is_float(got) & np.isnan(a) & np.isnan(b)))
            distance = np.where(unequal, np.nan_to_num(np.abs(a - b), nan=np.inf), -1)
        worst = np.unravel_index(np.argmax(distance), a.shape)
        what += str([int(place) for place in worst])
        a, b = a[worst], b[worst]
    for digits in (8, 12, 17, None):
        texts = [_text(x, digits) for x in (a, b)]
        if texts[0] != texts[1]:
            break
    return f"{what}{when} is {texts[0]} and not {texts[1]}"


def _short(leaf):
    return _text(numbers(leaf), 8)


def _text(array, digits):
    """Rounded to so many places, or in full as Python writes numbers."""
    if digits is None:
        return str(np.asarray(array).tolist())
    array = np.asarray(array)
    return np.array2string(
        array, precision=digits, threshold=_SHOWN, edgeitems=3, separator=", "
    ).replace("\n", "")
