"""An optimizer that stands gradients and losses that are far off, or not finite."""

from typing import Any

import jax
import optax

from optax_heavytail._clip_by_history import clip_by_history
from optax_heavytail._skip_if_unsafe import skip_if_unsafe
from optax_heavytail._transform import Inner, as_transform


def guarded(
    inner: Inner,
    factor: jax.typing.ArrayLike = 2.0,
    window: int = 100,
    *,
    warmup_steps: jax.typing.ArrayLike = 10,
    max_value_deviations: jax.typing.ArrayLike | None = 20.0,
    max_in_a_row: jax.typing.ArrayLike = 10,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Puts both guards of this library around an optimizer.

    Gradients longer than ``factor`` times the median of the last ones are shortened to
    that by `clip_by_history`; steps with an inf or NaN, and those whose loss is far
    above the last, are left out by `skip_if_unsafe`. It is

    .. code-block:: python

        skip_if_unsafe(
            optax.chain(clip_by_history(factor, window), inner),
            max_deviations=None,  # a spike is shortened, not skipped
            max_value_deviations=20.0,
            window=window,
        )

    Below the limit, and while all is finite, ``inner`` gets the gradients as they came,
    bit for bit. Give it the loss, ``update(grads, state, params, value=loss)``, if you
    have it; without one there is no rule on it.

    Args:
      inner: the optimizer, with the rates that it has alone.
      factor: see `clip_by_history`.
      window: how many norms, and losses, to remember, a Python integer, at least 2.
      warmup_steps: see `clip_by_history`.
      max_value_deviations: see `skip_if_unsafe`. Losses of small batches have heavy
        tails near the end of a training: below 10 many good steps are left out.
      max_in_a_row: see `skip_if_unsafe`.
      axis_name: see `skip_if_unsafe`.

    Returns:
      A transform with a `SkipIfUnsafeState`. ``optax.tree.get`` finds the reports of
      both in it: ``num_nonfinite``, ``num_value_spikes``, ``limit_reached``,
      ``num_clipped``, and ``threshold``, which `get_threshold` reads.

    Raises:
      ValueError: a concrete number is outside its range, or ``value`` is no scalar.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = oht.guarded(optax.sgd(1.0))
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in [1.0] * 10 + [1e6, jnp.nan, 1.5]:
      ...     updates, state = tx.update(jnp.array([grad]), state, value=grad / 2)
      ...     if grad != 1.0:
      ...         print(float(updates[0]))
      -2.0
      0.0
      -1.5
      >>> found = [optax.tree.get(state, x) for x in ("num_clipped", "num_nonfinite")]
      >>> [int(number) for number in found]
      [1, 1]
    """
    clip = clip_by_history(
        factor, window, warmup_steps=warmup_steps, axis_name=axis_name
    )
    return skip_if_unsafe(
        optax.chain(clip, as_transform(inner)),
        max_deviations=None,
        max_value_deviations=max_value_deviations,
        window=window,
        max_in_a_row=max_in_a_row,
        axis_name=axis_name,
    )
