"""Cautious updates: nothing moves against its own gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree, _units
from optax_heavytail._transform import Inner, as_transform, wrapper


def cautious(
    inner: Inner,
    *,
    normalization: str = "mean",
    floor: jax.typing.ArrayLike = 1e-3,
    descent: bool = False,
    scope: str = "leaf",
    layer_axis: Any = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Drops the entries of ``inner``'s updates whose sign is not their gradient's.

    With :math:`u = \text{inner}(g)` and, for each entry,
    :math:`\phi = 1` where :math:`\operatorname{sign} u = \operatorname{sign} g \neq 0`
    and 0 elsewhere, over each leaf of :math:`n` entries,

    .. math:: \frac{\phi \, u}{\max(\operatorname{mean} \phi, f)} \quad \text{("mean")},
        \qquad \frac{n \, \phi \, u}{\sum \phi + 1} \quad \text{("paper")}.

    Averages of past gradients point uphill for a while after the gradient has turned.
    What is left never does: each entry of the update times its gradient is at least 0.

    Args:
      inner: makes :math:`u` of the gradient. It must point the way of the gradient, as
        `scale_by_adam` does, or against it with ``descent``.
      normalization: "mean", with which :math:`u` is what it was if all entries agree,
        or "paper".
      floor: :math:`f` in (0, 1]: no entry grows by more than :math:`1 / f`. Not used by
        "paper".
      descent: whether ``inner`` points against the gradient, as all do that end with a
        learning rate, such as ``optax.adam(1e-3)``. Without it the mask would keep
        exactly the wrong entries.
      scope: "leaf" for a mean over each leaf, "global" for one over all.
      layer_axis: with scope "leaf" the axis that stacks layers, each of which has its
        own mean: an int, ``None``, or a tree prefix of these.
      axis_name: see `clip_by_norm`.

    Returns:
      A transform with the state of ``inner``. Updates keep the gradients' structure,
      shapes and dtypes. Zero gradients give zero updates. Signs are compared, no
      product is taken: it might underflow. An entry whose gradient or update is NaN is
      NaN, and no other.

    Raises:
      ValueError: ``floor`` is a concrete number outside its range, a word is unknown,
        or there is a ``layer_axis`` with the scope "global".
      TypeError: ``inner`` is no transform, or a gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = oht.cautious(optax.trace(0.9))
      >>> state = tx.init(jnp.zeros(2))
      >>> for grad in ([1.0, 1.0], [1.0, -0.5]):  # the second turns
      ...     updates, state = tx.update(jnp.array(grad), state)
      >>> [round(u, 3) for u in updates.tolist()]
      [3.8, 0.0]

    References:
      Liang et al., `Cautious optimizers <https://arxiv.org/abs/2411.16085>`_, 2024.
    """
    _base.check_transform("inner", inner)
    _base.check_choice("normalization", normalization, ("mean", "paper"))
    _base.check_range("floor", floor, 0.0, 1.0, low_open=True)
    _base.check_flag("descent", descent)
    units = _units.Units(scope, layer_axis, axis_name)
    wanted = -1 if descent else 1

    def agree(u, g):
        return jnp.sign(u) * jnp.sign(g) == wanted

    def factors(agreement, updates):
        sums, counts = units.sums(agreement), units.counts(updates)
        if normalization == "paper":
            return counts / (sums + 1)
        return 1 / jnp.maximum(_tree.safe_divide(sums, counts), floor)

    def combine(updates, grads):
        agreement = jax.tree.map(
            lambda u, g: jnp.where(agree(u, g), jnp.ones([], u.dtype), 0),
            updates,
            grads,
        )
        scaled = units.map(
            lambda u, factor: u * factor, updates, factors(agreement, updates)
        )
        # An inf that is dropped is 0, and a NaN is not: neither by a product with 0.
        return jax.tree.map(
            lambda a, u, g: jnp.where(
                jnp.isnan(u) | jnp.isnan(g),
                jnp.where(jnp.isnan(u), u, g),
                jnp.where(a == 1, u, 0),
            ),
            agreement,
            scaled,
            grads,
        )

    return _with_gradient(inner, combine)


def grams(
    inner: Inner,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the sizes of ``inner``'s updates and the signs of the gradient.

    With :math:`u = \text{inner}(g)`, elementwise,

    .. math:: \operatorname{sign}(g) \, |u| .

    Momentum decides how far each entry goes, and no longer where to.

    Args:
      inner: makes :math:`u` of the gradient, such as `scale_by_adam`. The learning rate
        belongs behind this transform: its sign would be lost within.

    Returns:
      A transform with the state of ``inner``. Updates keep the gradients' structure,
      shapes and dtypes. A zero gradient gives a zero update, whatever ``inner`` says;
      an entry whose gradient or update is NaN is NaN, and no other.

    Raises:
      TypeError: ``inner`` is no transform, or a gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = oht.grams(optax.trace(0.9))
      >>> state = tx.init(jnp.zeros(2))
      >>> for grad in ([1.0, 1.0], [1.0, -0.5]):
      ...     updates, state = tx.update(jnp.array(grad), state)
      >>> [round(u, 3) for u in updates.tolist()]
      [1.9, -0.4]

    References:
      Cao et al., `Grams <https://arxiv.org/abs/2412.17107>`_, 2024, algorithm 1.
    """
    _base.check_transform("inner", inner)
    return _with_gradient(
        inner,
        lambda updates, grads: jax.tree.map(
            lambda u, g: jnp.sign(g) * jnp.abs(u),
            updates,
            grads,
        ),
    )


def _with_gradient(
    inner: Inner, combine: Callable[[Any, Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """What ``combine`` makes of the updates of ``inner`` and the gradients."""
    inner_tx = as_transform(inner)

    def update(grads, state, params, **extra_args):
        updates, state = inner_tx.update(grads, state, params, **extra_args)
        wide = map(_tree.at_least_float32, (updates, grads))
        return _tree.cast_like(combine(*wide), grads), state

    return wrapper(inner_tx.init, update)
