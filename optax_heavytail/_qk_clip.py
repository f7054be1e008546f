"""QK-clip: query and key weights shrink where attention logits get too large."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree
from optax_heavytail._transform import wrapper


class QKClipState(NamedTuple):
    """State of `qk_clip`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    num_clipped: jax.typing.ArrayLike  #: (), int32, heads clipped in the last update
    num_nonfinite: (
        jax.typing.ArrayLike
    )  #: (), int32, heads whose logits were no numbers


def qk_clip_factors(
    max_logits: Any, threshold: jax.typing.ArrayLike = 100.0
) -> jax.Array:
    r"""What the product of queries and keys of each head must be multiplied by.

    .. math:: \gamma = \tau / S \text{ if } \tau < S < \infty, \text{ else } 1

    Args:
      max_logits: :math:`S`, an array of any shape: the largest scaled logit of each
        head before the softmax, signed, over all positions, microbatches and devices.
      threshold: :math:`\tau` in (0, inf).

    Returns:
      An array of that shape, float32 or wider, in (0, 1]. A head whose largest logit
      is negative, inf or NaN has the factor 1.

    Raises:
      ValueError: a concrete ``threshold`` is outside its range.
      TypeError: ``max_logits`` is no array of floats.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> oht.qk_clip_factors(jnp.array([50.0, 400.0, -3.0, jnp.nan])).tolist()
      [1.0, 0.25, 1.0, 1.0]

    References:
      `Kimi K2 <https://arxiv.org/abs/2507.20534>`_, 2025, section 2.1.
    """
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    _base.check_floating(max_logits, "max_logits")
    logits = _tree.at_least_float32(max_logits)
    over = _is_over(logits, threshold)
    return jnp.where(over, threshold / jnp.where(over, logits, 1), 1)


def qk_clip(
    exponents: Any,
    *,
    head_axes: Any,
    threshold: jax.typing.ArrayLike = 100.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Shrinks query and key weights of heads whose largest logit is over a threshold.

    Last in the chain, behind the learning rate, so that the new weights are

    .. math:: w_k = \gamma^\alpha (w_{k-1} + u_k), \qquad
        \gamma = \tau / S \text{ if } \tau < S < \infty, \text{ else } 1,

    with :math:`S` the head's largest logit: with exponents that add up to 1 for
    queries and keys the next logits are :math:`\gamma` times what they would have been.
    It acts on weights, so it does nothing against a single bad gradient; it keeps the
    logits of attention without a normalisation of queries and keys from growing.

    ``update`` takes the extra argument ``max_logits``: a tree prefix of the updates
    with an array (heads,) or ``None`` in each place, see `qk_clip_factors`. Without it
    nothing is clipped.

    Args:
      exponents: :math:`\alpha` in [0, 1], a number or a tree prefix of numbers and
        ``None`` for leaves that are no query or key weights. 1/2 for both where each
        head has its own key. Where several query heads share a key, 1 for the
        queries and ``None`` for the key; likewise for the rotary part of latent
        attention.
      head_axes: the axis of each leaf that is heads, or whose contiguous blocks are
        heads: an int, or a tree prefix of ints and ``None``.
      threshold: :math:`\tau` in (0, inf).

    Returns:
      A transform with a `QKClipState`. It returns :math:`\gamma^\alpha (w + u) - w`
      in the updates' dtypes where a head is clipped, and elsewhere the updates bit
      for bit. Logits that are inf or NaN clip nothing and are counted. Inf or NaN in
      an update stays in its entry.

    Raises:
      ValueError: a number is outside its range, parameters are not given, or an axis is
        not divisible by the number of heads.
      TypeError: a parameter, gradient or logit is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> params = {"query": jnp.ones((1, 2)), "value": jnp.ones((1, 2))}
      >>> tx = oht.qk_clip({"query": 0.5, "value": None}, head_axes=1)
      >>> updates = {"query": jnp.full((1, 2), 3.0), "value": jnp.zeros((1, 2))}
      >>> logits = {"query": jnp.array([50.0, 400.0]), "value": None}
      >>> updates, state = tx.update(
      ...     updates, tx.init(params), params, max_logits=logits
      ... )
      >>> (params["query"] + updates["query"]).tolist(), int(state.num_clipped)
      ([[4.0, 2.0]], 1)

    References:
      `Kimi K2 <https://arxiv.org/abs/2507.20534>`_, 2025, section 2.1.
    """
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    for exponent in jax.tree.leaves(exponents):
        _base.check_range("exponents", exponent, 0.0, 1.0)
    _base.check_static("head_axes", head_axes)

    def init(params):
        del params
        return QKClipState(*(jnp.zeros([], jnp.int32) for _ in QKClipState._fields))

    def clip(u, w, exponent, axis, logits):
        if exponent is None or axis is None or logits is None:
            return u
        factors = _head_factors(logits, threshold, exponent, u, axis)
        new = _tree.at_least_float32(w)
        factors = factors * jnp.ones_like(new)  # a condition must be sharded as these
        moved = factors * (new + _tree.at_least_float32(u)) - new
        return jnp.where(factors == 1, u, moved.astype(u.dtype))

    def update(updates, state, params, *, max_logits=None, **extra_args):
        del extra_args
        _base.check_floating(max_logits, "max_logits")
        leaves, treedef = jax.tree.flatten(updates)
        prefixes = (
            _tree.broadcast_prefix(x, updates, lambda x: x is None)
            for x in (exponents, head_axes, max_logits)
        )
        rows = zip(leaves, jax.tree.leaves(params), *prefixes, strict=True)
        clipped = treedef.unflatten([clip(*row) for row in rows])
        heads = jax.tree.leaves(max_logits)
        state = QKClipState(
            optax.safe_increment(state.count),
            _count([_is_over(x, threshold) for x in heads]),
            _count([~jnp.isfinite(x) for x in heads]),
        )
        return clipped, state

    return wrapper(init, update, needs_params=True)


def _is_over(logits: jax.Array, threshold: Any) -> jax.Array:
    return (logits > threshold) & jnp.isfinite(logits)


def _count(conditions: list[jax.Array]) -> jax.Array:
    counts = (jnp.sum(x, dtype=jnp.int32) for x in conditions)
    return sum(counts, jnp.zeros([], jnp.int32))


def _head_factors(logits, threshold, exponent, x, axis):
    """A factor for each index along the axis of heads, fit to be broadcast."""
    heads = logits.size
    if logits.ndim != 1 or not -x.ndim <= axis < x.ndim or x.shape[axis] % heads:
        raise ValueError(
            f"max_logits must have shape (heads,) and the axis {axis} of their leaf be "
            f"divisible by heads, got shapes {logits.shape} and {x.shape}."
        )
    gamma = qk_clip_factors(logits, threshold)
    over = gamma != 1
    # A power has no finite slope by its exponent where the base is 1 and unused.
    factors = jnp.where(over, jnp.where(over, gamma, 1) ** exponent, 1)
    factors = jnp.repeat(factors, x.shape[axis] // heads)
    return _norms.expand_layers(factors, x, axis)
