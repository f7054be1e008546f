"""What one bad gradient does to an optimizer: drift, stall, steps lost, recovery.

Gradients that are steady but noisy, as in a training whose noise exceeds its signal.
One of them is multiplied by a number, and the run is compared with the one in which it
was not. Gradients do not depend on the parameters: what shows is the optimizer alone.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies import study

# Twelve factors of two fit between the largest entry times 1e38 and float32's last.
FACTORS = {
    "10": 10.0,
    "100": 100.0,
    "1e4": 1e4,
    "1e38": 1e38,
    "1e-30": 1e-30,
    "inf": math.inf,
    "NaN": math.nan,
}
BEFORE, AFTER = 1250, 2000  # steps, the bad one is the first after
SEEDS = 8
NOISE = 3.0  # standard deviation of an entry, of which the mean is 1
SHAPES = {"kernel": (4, 4), "bias": (4,)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())
RATE = 1e-3  # parameters of size 1 move by about 1 in all
TOLERANCE = 0.5  # of a usual step: what differs by less is as usual
SETTINGS = {"before": BEFORE, "after": AFTER, "seeds": SEEDS, "noise": NOISE}
CURVE = np.unique(np.geomspace(1, AFTER, 60).round().astype(int))


class Effect(NamedTuple):
    """What a factor does to the runs of all seeds."""

    drift: float  # largest distance off the path or ahead on it, in usual steps
    stalled: int  # steps of less than half the usual length; of the worst seed
    lost: float  # usual steps that the run is behind at the end; mean of the seeds
    recovery: int | None  # steps that differ by more than half; None: still at the end
    nonfinite: int  # updates with an inf or NaN
    lengths: list[float]  # of updates, over the usual ones, at the steps `CURVE`


def gradients() -> np.ndarray:
    """(steps, seeds, entries), of root-mean-square length 1.

    Every second one has the noise of the one before with the other sign: a run that
    stands still is then behind on the path, and not off it by a random walk. The noise
    is orthogonal to the mean: every gradient is worth one step on the path.
    """
    steps = BEFORE + AFTER
    noise = np.random.default_rng(0).normal(size=(steps // 2, SEEDS, SIZE))
    noise -= noise.mean(axis=-1, keepdims=True)
    both = np.stack([1 + NOISE * noise, 1 - NOISE * noise], axis=1)
    flat = both.reshape(steps, SEEDS, SIZE)
    return (flat / math.sqrt(SIZE * (1 + NOISE**2))).astype(np.float32)


def updates(make: Callable[[float], Any]) -> np.ndarray:
    """(factors, seeds, steps from the bad one, entries): as it was; then `FACTORS`."""
    tx = optax.with_extra_args_support(make(RATE))
    params = jnp.where(jnp.arange(SIZE) % 2, 1.0, -1.0)

    def run(factor: jax.Array, grads: jax.Array) -> jax.Array:
        def step(carry: Any, inputs: Any) -> Any:
            (params, state), (count, grad) = carry, inputs
            grad = jnp.where(count == BEFORE, factor, 1.0) * grad
            steps, state = tx.update(as_tree(grad), state, params)
            # What is not finite is not applied: a parameter would keep it for good, and
            # nothing would be seen of the optimizer.
            applied = jax.tree.map(lambda u: jnp.where(jnp.isfinite(u), u, 0), steps)
            params = optax.apply_updates(params, applied)
            return (params, state), jnp.concatenate([u.ravel() for u in leaves(steps)])

        start = as_tree(params)
        counts = jnp.arange(BEFORE + AFTER)
        return jax.lax.scan(step, (start, tx.init(start)), (counts, grads))[1][BEFORE:]

    lanes = jax.jit(jax.vmap(jax.vmap(run, (None, 1)), (0, None)))
    factors = jnp.array([1.0, *FACTORS.values()])
    return np.asarray(lanes(factors, jnp.asarray(gradients())), np.float64)


def leaves(tree: Any) -> list[jax.Array]:
    """The leaves, in the order of `SHAPES`."""
    return [tree[name] for name in SHAPES]


def as_tree(flat: jax.Array) -> dict[str, jax.Array]:
    """A tree of `SHAPES`."""
    parts = np.cumsum([math.prod(shape) for shape in SHAPES.values()])[:-1]
    pieces = jnp.split(flat, parts)
    return {k: x.reshape(s) for (k, s), x in zip(SHAPES.items(), pieces, strict=True)}


def effect(found: np.ndarray, usual: np.ndarray) -> Effect:
    """Compares updates (seeds, steps, entries) with the usual ones."""
    is_finite = np.isfinite(found).all(axis=-1)
    found = np.where(np.isfinite(found), found, 0)
    usual_lengths = np.linalg.norm(usual, axis=-1)
    lengths = np.linalg.norm(found, axis=-1)
    unit = np.median(usual_lengths, axis=-1)
    mean = usual.mean(axis=1)
    pace = np.linalg.norm(mean, axis=-1)
    apart = np.cumsum(found - usual, axis=1)
    ahead = np.einsum("ste,se->st", apart, mean / pace[:, None])
    aside = apart - ahead[..., None] * (mean / pace[:, None])[:, None]
    # To be behind is no drift, but steps lost.
    drift = np.hypot(np.linalg.norm(aside, axis=-1), np.maximum(ahead, 0))
    difference = np.linalg.norm(found - usual, axis=-1)
    is_odd = ~is_finite | (difference > TOLERANCE * usual_lengths)
    odd = np.flatnonzero(is_odd.any(axis=0))
    last = int(odd[-1]) + 1 if len(odd) else 0
    stalled = is_finite & (lengths < usual_lengths / 2)
    return Effect(
        drift=_rounded(np.max(drift / unit[:, None])),
        stalled=int(stalled.sum(axis=1).max()),
        lost=_rounded(np.mean(-ahead[:, -1] / pace)),
        recovery=last if last < AFTER - 2 else None,
        nonfinite=int((~is_finite).sum(axis=1).max()),
        lengths=study.rounded((lengths / usual_lengths)[0, CURVE - 1]),
    )


def _rounded(number: Any) -> float:
    return study.rounded([number])[0]


def measure(make: Callable[[float], Any]) -> dict[str, Any]:
    """The effect of every factor on an optimizer of its learning rate."""
    usual, *found = updates(make)
    pairs = zip(FACTORS, found, strict=True)
    return {label: effect(runs, usual)._asdict() for label, runs in pairs}
