"""Decoupled weight decay, and transforms for some leaves alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_heavytail import _base
from optax_heavytail._transform import transform, wrapper

Mask = Any | Callable[[optax.Params], Any]


class AddDecayedWeightsState(NamedTuple):
    """State of `add_decayed_weights` when the decay is a schedule."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen


def add_decayed_weights(
    weight_decay: _base.ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    cautious: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the parameters, times the weight decay, to the updates.

    .. math:: u_k = g_k + \lambda_k w_{k-1}.

    The arithmetic is that of ``optax.add_decayed_weights``. Unlike there, the sum is
    taken in float32 or wider and has the gradients' dtype, whatever the parameters'.

    Args:
      weight_decay: :math:`\lambda` in [0, inf), or a schedule of the count of updates,
        from 0. A Python 0 adds nothing and needs no parameters.
      mask: a tree of bools like the parameters, a prefix of it, or a function of the
        parameters that returns one, such as `decay_mask`: ``True`` where the leaf
        decays. ``None``: everywhere.
      cautious: whether an entry decays only where :math:`g` and :math:`w` do not have
        opposite signs. Then the decay never works against the step, which subtracts
        :math:`g`. Put it in front of the learning rate, whose sign would reverse it.

    Returns:
      A transform with an `AddDecayedWeightsState` for a schedule and an empty state for
      a number, inside an ``optax.MaskedState`` if there is a mask. Updates keep the
      gradients' structure, shapes and dtypes; inf and NaN pass through the sum.

    Raises:
      ValueError: ``weight_decay`` is a concrete number outside its range, or ``update``
        was called without parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.add_decayed_weights(0.1)
      >>> params = jnp.array([10.0])
      >>> updates, _ = tx.update(jnp.array([2.0]), tx.init(params), params)
      >>> float(updates[0])
      3.0

    References:
      Chen et al., `Cautious weight decay <https://arxiv.org/abs/2510.12402>`_, 2025,
      for ``cautious``.
    """
    _base.check_flag("cautious", cautious)
    _base.check_range("weight_decay", weight_decay, 0.0, float("inf"))
    check_mask("mask", mask)

    is_zero = isinstance(weight_decay, int | float) and weight_decay == 0

    def init(params):
        del params
        if callable(weight_decay):
            return AddDecayedWeightsState(jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def add(g, decayed, w):
        if not cautious:
            return g + decayed
        is_opposed = jnp.sign(g) * jnp.sign(w) < 0  # the product might underflow
        return jnp.where(is_opposed, g, g + decayed)

    def update(updates, state, params):
        decay = weight_decay
        if callable(weight_decay):
            decay = _base.at_count(weight_decay, state.count)
            state = AddDecayedWeightsState(optax.safe_increment(state.count))
        return jax.tree.map(lambda g, w: add(g, decay * w, w), updates, params), state

    if is_zero:
        tx = wrapper(
            init, lambda updates, state, params, **extra_args: (updates, state)
        )
    else:
        tx = transform(init, update, needs_params=True)
    return masked(tx, mask)


def masked(
    tx: optax.GradientTransformationExtraArgs, mask: Mask | None
) -> optax.GradientTransformationExtraArgs:
    """``tx`` for the leaves of ``mask``, for all if that is ``None``."""
    if mask is None:
        return tx
    # A mask of an Equinox module is a module, which `optax.masked` alone would call.
    return optax.masked(tx, lambda tree: of_params(mask, tree))


def check_mask(name: str, mask: Mask | None) -> None:
    """Raises for what a function becomes if it is taken for a schedule."""
    if isinstance(mask, jax.Array | np.ndarray | np.bool_ | bool):
        raise TypeError(
            f"{name} must be a tree of bools or a function of the parameters, got "
            f"{mask!r}. To mask all or nothing, pass None; under "
            f'`optax.inject_hyperparams` a function needs `static_args=("{name}",)`.'
        )


def of_params(mask: Mask, params: Any) -> Any:
    """The mask as a tree, or as a prefix of one.

    Raises:
      TypeError: a leaf is no bool. Every word, and every number but 0, would be True.
    """
    found = mask(params) if _base.is_function(mask) else mask
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        shape, dtype = np.shape(leaf), getattr(leaf, "dtype", None)
        if shape or not (isinstance(leaf, bool) or dtype == jnp.bool_):
            shown = f"an array of shape {shape}" if shape else f"{leaf!r}"
            raise TypeError(
                "a mask must be a tree of bools, one for each leaf or subtree, but "
                f"{_base.place_of(path)} is {shown}."
            )
    return found
