"""Hand-written optimizers, each with the best of many rates for the same functions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.learning import functions
from experiments.learning.functions import Family, Rival

_FACTOR = 2**0.5  # from one rate to the next
_TUNING = 999  # seed of the functions that rates are tuned on
LOST = 1e6  # a loss that is not finite, far above any other


class Tuned(NamedTuple):
    """What a search has found, for the loss after so many steps."""

    rate: float
    is_inside: bool  # of the grid
    curves: np.ndarray  # (seeds, steps + 1): means over fresh functions at that rate


def rates(middle: float, number: int) -> np.ndarray:
    """An odd number of rates around a middle."""
    return middle * _FACTOR ** np.arange(-(number // 2), number // 2 + 1)


def tune(
    family: Family,
    rival: Rival,
    middle: float,
    horizons: tuple[int, ...],
    number: int,
    points: int,
    seeds: Sequence[int],
) -> dict[int, Tuned]:
    """The best rate for each horizon on some functions, and fresh ones at it.

    Args:
      family: of the functions.
      rival: what is tuned.
      middle: of the rates.
      horizons: steps after which the loss is to be smallest.
      number: of functions.
      points: of the grid, odd.
      seeds: of the fresh functions.
    """
    grid, steps = rates(middle, points), max(horizons)

    @jax.jit
    def curves(rates: Any, key: Any) -> Any:
        def one(rate):
            found = functions.losses(family, rival.make(rate), steps, number, key)
            return jnp.mean(found, axis=0)

        return jax.vmap(one)(rates)

    every = jnp.asarray(grid, jnp.float32)
    found = _finite(curves(every, jax.random.key(_TUNING)))
    best = {h: int(np.argmin(found[:, h])) for h in horizons}
    # At all rates, as that program is compiled already.
    fresh = np.stack([_finite(curves(every, jax.random.key(s))) for s in seeds])
    return {
        h: Tuned(float(grid[i]), 0 < i < points - 1, fresh[:, i, : h + 1])
        for h, i in best.items()
    }


def fresh_curve(
    family: Family, tx: Any, steps: int, number: int, seed: int
) -> np.ndarray:
    """The mean loss of the fresh functions of `tune`, of one optimizer."""
    run = jax.jit(lambda k: functions.losses(family, tx, steps, number, k))
    return _finite(jnp.mean(run(jax.random.key(seed)), axis=0))


def _finite(losses: Any) -> np.ndarray:
    losses = np.asarray(losses, np.float64)
    return np.where(np.isfinite(losses), np.minimum(losses, LOST), LOST)
