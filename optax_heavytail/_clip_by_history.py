"""Clipping at a limit that follows from the norms of the past."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _history, _norms, _parts, _tree
from optax_heavytail._transform import transform
from optax_heavytail._units import NONFINITE, Units, zero_nonfinite
from optax_heavytail._weight_decay import Mask, check_mask, masked


class ClipByHistoryState(NamedTuple):
    """State of `clip_by_history`, and of the clips that take another limit from it.

    A unit is what has one norm: all leaves, a leaf, or a slice of a leaf. Where shapes
    are ``(units, ...)`` below, that axis is missing with the scope "global".
    """

    #: the limit of the last norm that was finite and not 0, in the updates' units, the
    #: largest number for none; (), or with scope "leaf" a tree of () or of (layers,)
    threshold: Any
    #: share that was left of the last norm that was finite and not 0, 1 where nothing
    #: was clipped; likewise
    kept: Any
    #: (units,), int32, how often each unit was shortened; over ``history.seen`` it is
    #: the share of all
    num_clipped: jax.Array
    #: ``numbers`` (units, window), float32 or wider: the last norms, the newest last,
    #: 0 before; ``seen`` (units,), int32: how many came
    history: _history.History


def clip_by_history(
    factor: jax.typing.ArrayLike = 2.0,
    window: int = 100,
    *,
    scope: str = "global",
    layer_axis: Any = None,
    warmup_steps: jax.typing.ArrayLike = 10,
    nonfinite: str = "zero",
    mask: Mask | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Limits the norm of the updates to a multiple of what it was lately.

    With the norms :math:`n_j` of the last ``window`` updates **before** this one, as
    they came and not as they left,

    .. math::
        \tau_k = c \, \operatorname{median}_{j < k} n_j, \qquad
        u_k = \min\left(\frac{\tau_k}{\lVert g_k \rVert}, 1\right) g_k .

    Put it in front of an optimizer, ``optax.chain(clip_by_history(),
    optax.adamw(1e-3))``, or use `guarded`. The limit knows nothing of the gradient that
    it is to stop, so one of any size moves neither the limit nor the optimizer far; and
    it follows the gradients, so a loss times a constant changes nothing. Updates within
    it pass bit for bit.

    A level that changes for good is adopted: from a full window of equal norms, larger
    ones are clipped for ``window // 2 + 1`` updates and then no more.

    Args:
      factor: :math:`c` in (0, inf). With 2 a gradient of ordinary size is rarely
        touched; at 1 half of them are shortened.
      window: how many norms to remember, a Python integer, at least 1.
      scope: "global" for one norm, "leaf" for one, and a window, per leaf.
      layer_axis: with scope "leaf", the axis along which the layers of a stacked leaf
        lie, each with a norm of its own: an integer, ``None``, or a tree prefix of
        these.
      warmup_steps: how many norms a unit must have seen before it is clipped, an
        integer of at least 0; the first is never clipped.
      nonfinite: what an inf or NaN does to the unit that holds it. "zero": the unit
        becomes 0; "propagate": NaN. In both cases nothing enters the window.
      mask: which leaves are clipped (``True``): a tree of bools, a prefix, or a
        function of the parameters. Others pass as they came, and are in no norm.
      axis_name: for updates sharded by hand inside ``shard_map`` or ``pmap``: the mesh
        axis to sum norms over, a tuple of axes, or a tree prefix of these with ``None``
        for leaves that are replicated. Nothing is needed under ``jit``.

    Returns:
      A transform with a `ClipByHistoryState`, whose ``threshold`` `get_threshold`
      reads. Updates keep their structure, shapes and dtypes. Zero updates stay zero and
      enter no window; huge and tiny ones are clipped right. What a spike adds to the
      window moves a median of 100 by half a place.

    Raises:
      ValueError: a concrete number is outside its range, ``scope`` or ``nonfinite`` is
        unknown, or ``layer_axis`` comes with scope "global".
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_history(warmup_steps=3)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (1.0, 3.0, 2.0, 1e6, jnp.nan, 3.5):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      ...     print(float(updates[0]))
      1.0
      3.0
      2.0
      4.0
      0.0
      3.5
      >>> float(oht.get_threshold(state))  # twice the median of 1, 2, 3 and 1e6
      5.0
    """
    _base.check_range("factor", factor, 0.0, float("inf"), low_open=True)
    _base.check_static_integer("window", window, 1)
    _base.check_integer("warmup_steps", warmup_steps, 0)
    check_mask("mask", mask)

    def limit(history, norms):
        del norms
        is_known = history.seen >= jnp.maximum(warmup_steps, 1)
        limit = factor * _history.quantile(history, 0.5)
        return jnp.where(is_known, limit, _tree.no_limit(limit.dtype))

    tx = clip_by_past(
        limit,
        window,
        Units(scope, layer_axis, axis_name),
        nonfinite=nonfinite,
        zero_units=True,
    )
    return masked(tx, mask)


def clip_by_past(
    limit: Callable[[_history.History, jax.Array], jax.Array],
    window: int,
    units: Units,
    *,
    nonfinite: str,
    zero_units: bool = False,
    remember_clipped: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A clip whose limit follows from the last norms, for every rule there is.

    Args:
      limit: from the norms before this update and its own to the limit of each unit.
      window: how many norms to remember.
      units: what has a norm of its own.
      nonfinite: "propagate" or "zero".
      zero_units: whether "zero" takes the whole unit, and not the bad entries alone.
      remember_clipped: whether the norm after the clip enters.
    """
    _base.check_choice("nonfinite", nonfinite, NONFINITE)

    def init(params):
        shape = units.shape(params)
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return ClipByHistoryState(
            threshold=units.report(
                jnp.full(shape, _tree.no_limit(dtype), dtype), params
            ),
            kept=units.all_kept(params),
            num_clipped=jnp.zeros(shape, jnp.int32),
            history=_history.empty(shape, window, dtype),
        )

    def update(grads, state):
        if nonfinite == "zero" and not zero_units:
            grads = zero_nonfinite(grads)
        norms = units.norms(grads)
        sizes = norms.value
        counts = jnp.isfinite(sizes) & (sizes > 0)
        tau = limit(state.history, sizes)
        tau = _parts.shared(tau) if tau.ndim else tau
        clipped = units.clip(grads, norms, tau)
        if nonfinite == "zero" and zero_units:
            clipped = units.where(jnp.isfinite(sizes), clipped, 0)

        has_news = units.report(counts, grads)

        def told(numbers, old):
            return jax.tree.map(jnp.where, has_news, units.report(numbers, grads), old)

        entering = jnp.minimum(sizes, tau) if remember_clipped else sizes
        is_clipped = counts & (sizes > tau)
        return clipped, ClipByHistoryState(
            threshold=told(tau, state.threshold),
            kept=told(_norms.clip_factor(norms, tau), state.kept),
            num_clipped=jnp.where(
                is_clipped, optax.safe_increment(state.num_clipped), state.num_clipped
            ),
            history=_history.append(state.history, entering, counts),
        )

    return transform(init, update)
