"""How the gradients of microbatches and devices become one, by name."""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.errors import UserError
from experiments.common.types import Config
from optax_heavytail import aggregation

PyTree = Any

# Sums, which take one microbatch after the other in the memory of one gradient.
STREAMED = ("mean", "mean_of_clipped")
# These need all of them at once.
STACKED: dict[str, Callable[..., PyTree]] = {
    "coordinate_median": aggregation.coordinate_median,
    "trimmed_mean": aggregation.trimmed_mean,
    "geometric_median": aggregation.geometric_median,
    "median_of_means": aggregation.median_of_means,
}


class Aggregate(NamedTuple):
    """How the gradients of a step become one: a mean, or a function of all of them."""

    max_norm: float | None = None  # of each microbatch's gradient, in a mean
    stacked: Callable[[PyTree], PyTree] | None = None  # leaves (n, ...) -> one gradient


MEAN = Aggregate()


def build(config: Config, numbers: Collection[int]) -> Aggregate:
    """What ``config.aggregation`` says.

    Args:
      config: of the run.
      numbers: how many gradients the steps of the run have.

    Raises:
      UserError: no such name, or bad arguments.
    """
    name, kwargs = config.aggregation.name, dict(config.aggregation.kwargs)
    where = f"config.aggregation.kwargs={kwargs}"
    if name in STACKED:
        return Aggregate(stacked=_stacked(name, kwargs, where, numbers))
    if name not in STREAMED:
        allowed = ", ".join((*STREAMED, *STACKED))
        raise UserError(f"config.aggregation.name={name}: must be one of {allowed}")
    wanted = {"mean": set(), "mean_of_clipped": {"max_norm"}}[name]
    if set(kwargs) != wanted:
        raise UserError(f"{where}: {name} takes {', '.join(wanted) or 'none'}")
    try:
        jax.eval_shape(
            lambda x: aggregation.RunningMean.empty(x).add(x, **kwargs), jnp.zeros(1)
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
    return Aggregate(**kwargs)


def _stacked(
    name: str, kwargs: dict[str, Any], where: str, numbers: Collection[int]
) -> Callable[[PyTree], PyTree]:
    function = functools.partial(STACKED[name], **kwargs)
    try:
        for number in numbers:
            jax.eval_shape(function, jnp.zeros((number, 1)))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
    if min(numbers) < 3:
        raise UserError(
            f"config.aggregation.name={name}: is the mean of fewer than 3 gradients; a "
            f"step has {min(numbers)}, one for each of config.accumulate microbatches "
            "on each device under config.parallel=shard_map or pmap"
        )
    return function
