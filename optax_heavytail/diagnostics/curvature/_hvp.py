"""Gradients and Hessian-vector products over more batches than fit in memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_heavytail import _base, _tree


def mean_gradient(
    loss_fn: Callable[..., jax.Array], params: Any, batches: Any = None
) -> Any:
    r"""The gradient of a loss, over as many batches as there are.

    .. math:: \nabla f(x) = \frac{1}{n} \sum_{i=1}^n \nabla f_i(x)

    The batches are taken one after the other: the memory is that of one of them and of
    one sum.

    Args:
      loss_fn: ``loss_fn(params, batch)``, a scalar; ``loss_fn(params)`` without
        ``batches``.
      params: :math:`x`, a tree of real floating-point arrays.
      batches: a tree whose leaves have a leading axis of :math:`n` batches, or
        ``None``.

    Returns:
      A tree like ``params``, in float32 or wider. Inf and NaN pass through.

    Raises:
      TypeError: a parameter is not real floating-point.
      ValueError: the leaves of ``batches`` have no common leading axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_heavytail import diagnostics
      >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)
      >>> batches = jnp.array([[1.0, 0.0], [3.0, 2.0]])
      >>> diagnostics.mean_gradient(loss, jnp.zeros(2), batches).tolist()
      [-2.0, -1.0]
    """
    gradient, wide = _wide_gradient(loss_fn, params)
    return _mean_over(lambda *batch: gradient(wide, *batch), batches, wide)


def hvp(
    loss_fn: Callable[..., jax.Array], params: Any, vector: Any, batches: Any = None
) -> Any:
    r"""The product of the Hessian of a loss with a vector.

    .. math:: H v = \frac{\mathrm{d}}{\mathrm{d} t} \nabla f(x + t v) \Big|_{t=0}

    One forward-mode derivative of the gradient, at two to three times its cost. At a
    kink, such as ReLU's at 0, the derivatives are those that JAX takes there.

    Args:
      loss_fn: see `mean_gradient`. It must allow forward mode, which functions with a
        ``jax.custom_vjp`` do not.
      params: see `mean_gradient`. Those narrower than float32 are differentiated in
        their own dtype, and the products are as coarse as it is.
      vector: :math:`v`, a tree like ``params``.
      batches: see `mean_gradient`; the memory is that of one batch here too.

    Returns:
      A tree like ``params``, in float32 or wider. Inf and NaN pass through.

    Raises:
      TypeError: see `mean_gradient`.
      ValueError: see `mean_gradient`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_heavytail import diagnostics
      >>> loss = lambda w: w[0] ** 2 * w[1]
      >>> diagnostics.hvp(loss, jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0])).tolist()
      [6.0, 2.0]
    """
    gradient, wide = _wide_gradient(loss_fn, params)
    vector = _tree.cast_like(vector, wide)

    def product(*batch):
        return jax.jvp(lambda w: gradient(w, *batch), (wide,), (vector,))[1]

    return _mean_over(product, batches, wide)


def _wide_gradient(loss_fn: Any, params: Any) -> tuple[Callable[..., Any], Any]:
    """The gradient as a function of the parameters in float32 or wider, and these."""
    _base.check_floating(params, "parameters")

    def loss(wide, *batch):
        return loss_fn(_tree.cast_like(wide, params), *batch)

    return jax.grad(loss), _tree.at_least_float32(params)


def _mean_over(function: Callable[..., Any], batches: Any, like: Any) -> Any:
    """The mean of ``function(batch)``, trees like ``like``; ``function()`` without."""
    if batches is None:
        return function()
    shapes = [jnp.shape(x) for x in jax.tree.leaves(batches)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "every leaf of batches must have the same leading axis of at least one "
            f"batch, got leaves of shapes {sorted(set(shapes))[:4]}."
        )
    (n,) = sizes

    def add(total, batch):
        return jax.tree.map(jnp.add, total, function(batch)), None

    zeros = jax.tree.map(jnp.zeros_like, like)
    total, _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda x: x / n, total)
