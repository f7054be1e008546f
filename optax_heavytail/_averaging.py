"""The weighted average of the iterates that the theory of clipped SGD returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _readers, _tree
from optax_heavytail._transform import Inner, as_transform, wrapper


class WeightedIterateAverageState(NamedTuple):
    """State of `weighted_iterate_average`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    average: Any  #: like the parameters, float32 or wider; 0 before the first update
    inner_state: optax.OptState


def weighted_iterate_average(
    inner: Inner,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the linearly weighted average of the parameters beside ``inner``.

    .. math::
        \bar x_k = \frac{\sum_{j=1}^k j \, x_{j-1}}{\sum_{j=1}^k j}
        = \bar x_{k-1} + \frac{2}{k + 1} (x_{k-1} - \bar x_{k-1}).

    Training goes on at :math:`x_k`; read :math:`\bar x_k` out with
    `weighted_iterate_average_eval_params`.

    Args:
      inner: the optimizer. Its updates pass unchanged.

    Returns:
      A transform with a `WeightedIterateAverageState`, one more copy of the parameters.
      Its ``update`` needs the parameters. An inf or NaN parameter stays in the average.

    Raises:
      ValueError: ``update`` was called without parameters.
      TypeError: a parameter is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = oht.weighted_iterate_average(optax.sgd(1.0))
      >>> params = jnp.array([0.0])
      >>> state = tx.init(params)
      >>> for _ in range(2):  # the iterates are 0 and 3
      ...     updates, state = tx.update(jnp.array([-3.0]), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> oht.weighted_iterate_average_eval_params(state, params).tolist()
      [2.0]

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020, theorem 1.
    """
    inner_tx = as_transform(inner)

    def init(params):
        return WeightedIterateAverageState(
            jnp.zeros([], jnp.int32), _tree.zeros_like(params), inner_tx.init(params)
        )

    def update(updates, state, params, **extra_args):
        count = optax.safe_increment(state.count)
        # An int32 divided is a float32 even where x64 is on.
        weight = 2 / (jnp.asarray(count, jnp.result_type(float)) + 1)
        average = jax.tree.map(
            lambda mean, x: mean + weight * (x - mean),
            state.average,
            _tree.at_least_float32(params),
        )
        updates, inner_state = inner_tx.update(
            updates, state.inner_state, params, **extra_args
        )
        return updates, WeightedIterateAverageState(count, average, inner_state)

    return wrapper(init, update, dtypes={"average": None}, needs_params=True)


def weighted_iterate_average_eval_params(
    state: optax.OptState, params: optax.Params
) -> Any:
    """Reads the average of `weighted_iterate_average` out of a state.

    Args:
      state: its state, or one that contains it (see `get_threshold`).
      params: the current parameters: they give the dtypes, the leaves that are masked
        out, and the value before the first update.

    Returns:
      The averaged parameters, with the structure, shapes and dtypes of ``params``.

    Raises:
      ValueError: no average in ``state``, or several that do not complement each other.
    """
    found = _readers.get_states(state, WeightedIterateAverageState)
    average = _readers.merge_masked(
        [value.average for value in found], "weighted iterate average"
    )

    def read(mean, x):
        if isinstance(mean, optax.MaskedNode):
            return x
        seen = found[0].count > 0
        return jnp.where(seen, mean, x).astype(jnp.result_type(x))

    return jax.tree.map(read, average, params, is_leaf=_readers.is_masked)
