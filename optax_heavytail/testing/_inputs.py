"""The parameters and gradients on which the laws are checked."""

import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# From simple to irregular: inputs shrink towards the front.
ORDINARY = (0.0, 1.0, -1.0, 2.0, -0.5, 0.01, -30.0, 1.7, -0.3, 0.007)
NONZERO = ORDINARY[1:]
DRAWN_ENTRIES = 8  # of one leaf; a larger leaf repeats them
DRAWN_PER_STEP = 200  # later leaves repeat them


def default_params() -> dict[str, jax.Array]:
    """Float32 and bfloat16 leaves with one scalar."""
    return {
        "bias": jnp.asarray([0.5, -2.0], jnp.bfloat16),
        "kernel": jnp.linspace(-1.0, 2.0, 8, dtype=jnp.float32).reshape(4, 2),
        "scale": jnp.asarray(1.5, jnp.float32),
    }


def check_floating(params: Any) -> None:
    """One clear error for trees on which no gradient can be drawn."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params has no leaves; the laws need at least one")
    for path, leaf in leaves:
        name = f"params{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float)):
            raise ValueError(f"{name} is a {type(leaf).__name__}; the laws need arrays")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {dtype}; the laws need real floating-point leaves"
            )


def widen(tree: Any) -> Any:
    """The tree in float32 or wider, where two ways of computing can be compared."""
    return jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )


def cast(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
    """The tree in one dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)


class Drawn(NamedTuple):
    """Gradients as places in the list of values: 0 is the simplest."""

    steps: int
    places: tuple[int, ...]  # of all steps that there might be; the last ones count

    def used(self, at_most: int) -> tuple[int, ...]:
        """The places of the steps that are taken."""
        return self.places[(at_most - self.steps) * len(self.places) // at_most :]


def drawing(
    params: Any, at_least: int, at_most: int, num_values: int
) -> Iterator[Drawn]:
    """Gradients like ``params`` of so many steps, without end: the simplest first.

    The same ones in every run.
    """
    # The number of entries does not depend on the steps, so that each shrinks alone.
    entries = sum(_drawn_entries(x) for x in jax.tree.leaves(params))
    size = at_most * min(entries, DRAWN_PER_STEP)
    zeros = (0,) * size
    rng = random.Random(0)
    for number in itertools.count():
        if number == 0:
            yield Drawn(at_least, zeros)
        elif number == 2 and at_most > at_least:
            yield Drawn(at_most, zeros)
        else:
            places = tuple(rng.randrange(num_values) for _ in range(size))
            yield Drawn(rng.randint(at_least, at_most), places)


def _drawn_entries(leaf):
    return min(leaf.size, DRAWN_ENTRIES)


def gradients(
    params: Any, drawn: Drawn, at_most: int, values: tuple[float, ...]
) -> list[Any]:
    """The gradients of each step."""
    used = drawn.used(at_most)
    size = len(used) // drawn.steps

    def tree(places):
        numbers = itertools.cycle(values[place] for place in places)

        def leaf(x):
            entries = [next(numbers) for _ in range(_drawn_entries(x))]
            return jnp.asarray(np.resize(np.asarray(entries), x.shape), x.dtype)

        return jax.tree.map(leaf, params)

    return [tree(used[k * size : (k + 1) * size]) for k in range(drawn.steps)]


def tilted(grads: list[Any]) -> list[Any]:
    """Every entry times a factor of its own in [1, 1.1), so that none cancels."""

    def tilt(step, leaf):
        # Multiples of the golden ratio are far from each other, modulo 1.
        places = np.arange(1, leaf.size + 1) * 0.618 + 0.27 * step
        factors = 1 + np.modf(places)[0] / 10
        return leaf * jnp.asarray(factors.reshape(leaf.shape), leaf.dtype)

    return [
        jax.tree.map(functools.partial(tilt, step), tree)
        for step, tree in enumerate(grads)
    ]


def fixed_gradients(params: Any, steps: int) -> list[Any]:
    """The same ordinary gradients in every run, for laws about types."""
    rng = random.Random(0)

    def leaf(x):
        values = rng.choices(NONZERO, k=DRAWN_ENTRIES)
        return jnp.asarray(np.resize(values, x.shape), x.dtype)

    return [jax.tree.map(leaf, params) for _ in range(steps)]


def describe(grads: list[Any], shown: int = 6) -> str:
    """The entries that are not zero, in words."""
    found = []
    for step, tree in enumerate(grads, 1):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            array = np.asarray(leaf).astype(np.float64)
            for index in np.argwhere(array != 0):
                where = jax.tree_util.keystr(path)
                where += str(index.tolist()) if index.size else ""
                place = f"step {step} {where}".rstrip()
                found.append(f"{place} = {array[tuple(index)]:g}")
    steps = f"{len(grads)} step" + "s" * (len(grads) != 1)
    if not found:
        return f"{steps}, all gradients 0"
    more = f", and {len(found) - shown} more" if len(found) > shown else ""
    return f"{steps}, gradients 0 but for {', '.join(found[:shown])}{more}"
