"""Derivatives of what an optimizer finds, by differentiating its steps."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base
from optax_heavytail._transform import as_transform


def unroll(
    tx: optax.GradientTransformation | optax.MultiSteps,
    loss_fn: Callable[..., jax.typing.ArrayLike],
    num_steps: int,
    *,
    truncate: int | None = None,
    checkpoint: bool = True,
) -> Callable[..., Any]:
    r"""A solver of an inner problem whose result can be differentiated.

    :math:`w_T(h)` after :math:`T` steps of ``tx`` on :math:`f(w, h)` takes the place of
    :math:`\operatorname{argmin}_w f(w, h)`, so that hyperparameters :math:`h` (weights
    of losses, of decay by group, of augmentations) are learnt by a gradient of what
    :math:`w_T` is good for. Levels nest: a ``loss_fn`` may solve a problem itself.

    ``tx`` must have useful slopes: clips that are hard have none beyond the threshold
    (`clip_smoothly` has), and signs have none at all.

    Args:
      tx: the inner optimizer. It may depend on hyperparameters too, such as a learning
        rate: then make it, and call `unroll`, inside the function to differentiate.
      loss_fn: ``loss_fn(params, hyper, *args)``, the inner objective, a scalar.
      num_steps: :math:`T`, a Python integer of at least 1.
      truncate: through how many of the last steps to differentiate, a Python integer
        of at least 1; ``None``: all. With fewer there is no slope in ``params``, and
        the one in ``hyper`` is short of what earlier steps add.
      checkpoint: whether to keep about :math:`2 \sqrt T` states of the optimizer for
        the derivative, and not all that is computed in all steps; it then takes up to
        three passes of the steps and not one.

    Returns:
      A function ``solve(hyper, params, *args)`` from the start to the parameters after
      the last step, differentiable in ``hyper`` and ``params``, forwards and backwards.
      ``tx`` gets the loss as ``value``. Dtypes are those of ``params``.

    Raises:
      ValueError: ``num_steps`` or ``truncate`` is no allowed integer.
      TypeError: ``tx`` is no transform.

    Example:
      >>> import jax
      >>> import optax
      >>> import optax_heavytail as oht
      >>> def inner(w, decay):
      ...     return (w - 1) ** 2 / 2 + decay * w**2 / 2
      >>> solve = oht.unroll(optax.sgd(0.3), inner, num_steps=4)
      >>> def outer(decay):
      ...     return (solve(decay, 0.0) - 0.5) ** 2 / 2
      >>> round(float(solve(0.7, 0.0)), 4), round(float(jax.grad(outer)(0.7)), 4)
      (0.5543, -0.0132)

    References:
      Sato, Tanaka and Takeda, `A gradient method for multilevel optimization
      <https://arxiv.org/abs/2105.13954>`_, 2021.
    """
    _base.check_static_integer("num_steps", num_steps, 1)
    if truncate is not None:
        _base.check_static_integer("truncate", truncate, 1)
    _base.check_flag("checkpoint", checkpoint)
    _base.check_transform("tx", tx)
    inner_tx = as_transform(tx)
    num_free = 0 if truncate is None else max(num_steps - truncate, 0)

    def solve(hyper: Any, params: Any, *args: Any) -> Any:
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss_fn)(params, hyper, *args)
            updates, state = inner_tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        params = jax.tree.map(jnp.asarray, params)
        carry = params, inner_tx.init(params)
        if num_free:
            carry = jax.lax.stop_gradient(_scan(step, carry, num_free))
        last = _in_segments if checkpoint else _scan
        return last(step, carry, num_steps - num_free)[0]

    return solve


def _scan(step: Any, carry: Any, length: int) -> Any:
    return jax.lax.scan(step, carry, length=length)[0]


def _in_segments(step: Any, carry: Any, num_steps: int) -> Any:
    """About as many segments as steps in each; what was computed is computed again."""
    length = math.isqrt(num_steps)
    step = jax.checkpoint(step)

    @jax.checkpoint
    def segment(carry, _):
        return _scan(step, carry, length), None

    carry = _scan(segment, carry, num_steps // length)
    rest = num_steps % length
    return _scan(step, carry, rest) if rest else carry
