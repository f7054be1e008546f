"""Runs transforms over prepared gradients, for comparison with ``reference``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPES = {"w": (3, 2), "b": (3,), "s": ()}


def heavy_gradients(steps=100, seed=0):
    """Student t with 1.5 degrees of freedom, outliers, zeros, and a sleepy leaf."""
    rng = np.random.default_rng(seed)
    history = []
    for k in range(steps):
        grads = {n: np.asarray(rng.standard_t(1.5, size=s)) for n, s in SHAPES.items()}
        grads["w"][rng.random((3, 2)) < 0.2] = 0.0
        if k % 30 == 7:
            grads["w"][0, 0] = 1e6
        if k < 5 or k % 10 == 0:
            grads["b"] = np.zeros(3)
        history.append(grads)
    return history


def starting_point(seed=1):
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.normal(size=s)) for n, s in SHAPES.items()}


def follow(tx, grads, params=None):
    """Updates and iterates of each step and the last state, in one compiled scan."""
    params = starting_point() if params is None else params
    params = jax.tree.map(jnp.asarray, params)
    stacked = jax.tree.map(lambda *g: jnp.asarray(np.stack(g)), *grads)

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (updates, params)

    start = (params, tx.init(params))
    (_, state), out = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(start, stacked)
    updates, iterates = jax.tree.map(np.asarray, out)
    return unstack(updates), unstack(iterates), state


def unstack(tree):
    steps = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda x, k=k: x[k], tree) for k in range(steps)]


def jitted(tx):
    """``tx`` with its update compiled."""
    return optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))


@functools.partial(jax.jit, static_argnums=0)
def _first_updates(tx, grads, params):
    return tx.update(grads, tx.init(params), params)[0]


def _zeros(x):
    return np.zeros(np.shape(x), jax.dtypes.canonicalize_dtype(jnp.result_type(x)))


def one_step(tx, grads, params=None):
    """The updates of the first step, alone, of one compiled program."""
    params = jax.tree.map(_zeros, grads) if params is None else params
    return _first_updates(tx, grads, params)
