"""The optimizers whose step is timed, and what each is compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_heavytail as oht

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-2
MAX_NORM = 1.0
ADAMW, CLIP = "optax.adamw", "optax: clip + adamw"
MOMENTUM = "optax: clip + momentum"


class NeumannState(NamedTuple):
    """State of `plain_neumann`."""

    count: jax.Array
    momentum: Any
    average: Any


def plain_neumann(learning_rate: float) -> optax.GradientTransformation:
    """The formula of `oht.neumann` with its defaults, written down without care.

    Its norms overflow, and it knows neither burn-in nor further resets.
    """
    cubic, repulsive, decay = 1e-7, 1e-5, 0.99
    mu_schedule = oht.neumann_momentum()

    def init_fn(params):
        copies = jax.tree.map(jnp.array, params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return NeumannState(jnp.zeros([], jnp.int32), zeros, copies)

    def update_fn(updates, state, params=None):
        assert params is not None
        mu = mu_schedule(state.count)
        displaced = jax.tree.map(jnp.subtract, params, state.average)
        r, size = _naive_norm(displaced), _naive_norm(updates)
        strength = repulsive * len(jax.tree.leaves(params))
        force = (cubic * r**2 - jnp.minimum(strength / r**2, size)) / r
        is_reset = state.count == 0
        force = jnp.where(is_reset | (r == 0), 0, force)
        step = jax.tree.map(
            lambda g, x: learning_rate * (g + force * x), updates, displaced
        )
        keep = jnp.where(is_reset, 0, mu)
        momentum = jax.tree.map(lambda m, s: keep * m - s, state.momentum, step)
        moves = jax.tree.map(lambda m, s: mu * m - s, momentum, step)
        average = jax.tree.map(
            lambda w, u, v: (w + u) + decay * (v - (w + u)),
            params,
            moves,
            state.average,
        )
        return moves, NeumannState(state.count + 1, momentum, average)

    return optax.GradientTransformation(init_fn, update_fn)


def _naive_norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(tree)))


class Contestant(NamedTuple):
    """An optimizer, what it must move, and what it is compared with."""

    make: Callable[[], optax.GradientTransformation]
    bytes_per_param: int  # float32 parameters, gradients and state
    references: tuple[str, ...]


# Bytes that must go to and from memory, 4 for each float32, if no more than a small
# part of the tree fits in the caches. g gradient, w parameter, m, v, tau state.
CONTESTANTS: dict[str, Contestant] = {
    # Reads g, w, m, v and writes w, m, v. Compared with itself: the noise.
    ADAMW: Contestant(
        lambda: optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY), 28, (ADAMW,)
    ),
    # As AdamW, with tau for v.
    "oht.acclip": Contestant(
        lambda: oht.acclip(LEARNING_RATE, weight_decay=WEIGHT_DECAY), 28, (ADAMW,)
    ),
    "oht.acclip, normalize": Contestant(
        lambda: oht.acclip(LEARNING_RATE, weight_decay=WEIGHT_DECAY, normalize=True),
        28,
        (ADAMW,),
    ),
    # Reads g, w and a byte each of m and v, and writes w and these.
    "oht.compress_state(optax.adamw)": Contestant(
        lambda: oht.compress_state(
            optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        ),
        16,
        (ADAMW,),
    ),
    "oht.compress_state(oht.acclip)": Contestant(
        lambda: oht.compress_state(
            oht.acclip(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        ),
        16,
        (ADAMW,),
    ),
    # One pass for the norm of g, then AdamW.
    CLIP: Contestant(
        lambda: optax.chain(
            optax.clip_by_global_norm(MAX_NORM),
            optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        ),
        32,
        (ADAMW,),
    ),
    # As that: the limit is a number.
    "oht.clip_by_history + adamw": Contestant(
        lambda: optax.chain(
            oht.clip_by_history(),
            optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        ),
        32,
        (CLIP,),
    ),
    # As that, where no step is skipped.
    "oht.guarded(optax.adamw)": Contestant(
        lambda: oht.guarded(optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)),
        32,
        (CLIP,),
    ),
    # One pass for the norm of g; then reads g, w, m and writes w, m.
    MOMENTUM: Contestant(
        lambda: optax.chain(
            optax.clip_by_global_norm(MAX_NORM),
            optax.sgd(LEARNING_RATE, momentum=0.9),
        ),
        24,
        (ADAMW,),
    ),
    # Reads g, m and writes m, with the norm of that; then reads w, m and writes w.
    "oht.gclip": Contestant(
        lambda: oht.gclip(LEARNING_RATE, MAX_NORM), 24, (MOMENTUM,)
    ),
    # Reads g, w, m and writes w, m: no norm.
    "oht.cclip": Contestant(lambda: oht.cclip(LEARNING_RATE, 1e-2), 20, (MOMENTUM,)),
    # Reads g, w, m, v and writes m, v, with the norms of w and the step; then reads
    # w, m, v and writes w. A leaf that stays in a cache in between needs but 28.
    "optax.lamb": Contestant(
        lambda: optax.lamb(LEARNING_RATE, weight_decay=WEIGHT_DECAY), 40, (ADAMW,)
    ),
    "oht.lambc, as LAMB": Contestant(
        lambda: oht.lambc(
            LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            bias_correction=True,
            trust_ratio_bounds=None,
        ),
        40,
        ("optax.lamb",),
    ),
    "oht.lambc": Contestant(
        lambda: oht.lambc(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        40,
        ("optax.lamb",),
    ),
    # Reads g, w for the norms; then reads g, w, m and writes w, m. A leaf that stays in
    # a cache in between needs but 20.
    "optax.lars": Contestant(
        lambda: optax.lars(LEARNING_RATE, weight_decay=WEIGHT_DECAY), 28, (ADAMW,)
    ),
    "oht.larsc": Contestant(
        lambda: oht.larsc(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        28,
        ("optax.lars",),
    ),
    # Reads g, w, v for the norms of g and w - v; then reads g, w, m, v and writes
    # w, m, v.
    "neumann in plain jnp": Contestant(
        lambda: plain_neumann(LEARNING_RATE), 40, (ADAMW,)
    ),
    "oht.neumann": Contestant(
        lambda: oht.neumann(LEARNING_RATE), 40, (ADAMW, "neumann in plain jnp")
    ),
}
