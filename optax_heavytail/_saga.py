"""SAGA and SAG: gradients without the noise of which part of the data came."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from optax_heavytail import _base, _norms, _tree
from optax_heavytail._transform import wrapper

_VARIANTS = ("saga", "sag")

_NO_GROUP = (
    "This transformation needs the number of the group that the gradient is of: call "
    "`update(updates, state, params, group=group)`."
)


class SagaState(NamedTuple):
    """State of `saga`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    #: y, the last gradient of each group: a leading axis of the groups, then like the
    #: parameters; float32 or wider or in table_dtype
    table: Any
    #: like the parameters, float32 or wider: the sum of the table over the power of
    #: two that is not below ``num_groups``
    total: Any
    rest: Any  #: likewise, what rounding has left out of ``total``
    seen: jax.Array  #: (num_groups,), bool, the groups of which a gradient came


def saga(
    num_groups: int,
    *,
    variant: str = "saga",
    table_dtype: jax.typing.DTypeLike | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Corrects each gradient by those of all groups; n + 2 copies of the parameters.

    **For linear models and few groups**: the state holds a gradient for each group and
    two more. The data are split once into groups :math:`1, \ldots, n`; each update has
    the gradient :math:`g` of one, :math:`j`. With :math:`y_i = 0` at the start,

    .. math::
        u = g - y_j + \frac{1}{n} \sum_i y_i, \qquad \text{then} \quad
        y_j \leftarrow g .

    Whatever is in the table, the mean of :math:`u` over :math:`j` is the gradient over
    all data. Near a minimum :math:`u` itself goes to 0, where gradients of single
    groups do not, so that a constant learning rate converges. With ``variant="sag"``
    and the number :math:`m` of groups seen, :math:`j` among them,

    .. math:: u = \frac{1}{m} \Bigl(g - y_j + \sum_i y_i\Bigr) ,

    the mean of the table with the new gradient in it: less noise, and a bias.

    A group must be **the same data in every epoch**: no augmentation, no dropout, no
    other shuffling than that of the groups' order.

    Args:
      num_groups: :math:`n`, a Python integer of at least 1.
      variant: "saga" or "sag".
      table_dtype: dtype of :math:`y` in the state. ``None``: the parameter's own, but
        at least float32. In a narrower one a gradient is rounded once, and the sum is
        that of the rounded ones.
      axis_name: for parameters sharded by hand inside ``shard_map`` or ``pmap``: the
        mesh axis over which a gradient must be finite, a tuple of axes, or a tree
        prefix of these with ``None`` for leaves that are replicated. Nothing is needed
        under ``jit``.

    Returns:
      A transform with a `SagaState`. Its ``update`` needs the keyword ``group``, an
      integer in [0, ``num_groups``), which may be traced. Updates keep the gradients'
      structure, shapes and dtypes; a learning rate follows. The sum is kept in two
      floats each and added up anew every ``num_groups`` updates, so that a huge
      gradient leaves nothing behind when it is replaced.
      Where a gradient has an inf or NaN, or a traced ``group`` is no group, all updates
      are NaN, and table and sum stay as they were.

    Raises:
      ValueError: ``num_groups`` or ``variant`` is not allowed, or ``update`` was called
        without a ``group``, or with a concrete one out of range.
      TypeError: a parameter or gradient is not real floating-point, or ``group`` is no
        single integer.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.saga(2)
      >>> x, state = 0.0, tx.init(jnp.array(0.0))
      >>> for group in (0, 1, 0, 1, 1):  # of x^2 / 2 and 3 (x - 4)^2 / 2
      ...     grad = jnp.array((x, 3 * (x - 4))[group])
      ...     update, state = tx.update(grad, state, group=group)
      ...     x -= 0.1 * update.item()
      >>> round(x, 4)
      1.9932

    References:
      Defazio, Bach and Lacoste-Julien, `SAGA <https://arxiv.org/abs/1407.0202>`_, 2014;
      Schmidt, Le Roux and Bach, `Minimizing finite sums with the stochastic average
      gradient <https://arxiv.org/abs/1309.2388>`_, 2017, after section 3 of which the
      number of groups seen takes the place of all.
    """
    _base.check_static_integer("num_groups", num_groups, 1)
    _base.check_choice("variant", variant, _VARIANTS)
    _base.check_dtype("table_dtype", table_dtype)
    # Products with a power of two are exact, so that nothing is rounded but sums, of
    # which the rest is known; and the sum of huge gradients is a number.
    share = 2.0 ** -(num_groups - 1).bit_length()

    def init(params):
        table = jax.tree.map(
            lambda y: jnp.broadcast_to(y, (num_groups, *y.shape)),
            _tree.zeros_like(params, table_dtype),
        )
        total, rest = (_zeros_for_sums(params, table) for _ in range(2))
        seen = jnp.zeros(num_groups, bool)
        return SagaState(jnp.zeros([], jnp.int32), table, total, rest, seen)

    def update(updates, state, params, *, group=None, **extra_args):
        del params, extra_args
        index, is_group = _index(group, num_groups)
        grads = _tree.at_least_float32(updates)
        is_good = is_group & _all_finite(grads, axis_name)
        table, seen = jax.tree.map(jnp.asarray, (state.table, state.seen))
        old = jax.tree.map(lambda y, s: y[index].astype(s.dtype), table, state.total)
        new = jax.tree.map(_rounded, grads, table, state.total)
        seen = seen.at[index].set(seen[index] | is_good)

        def direction(g, y, total):
            if variant == "saga":
                return g - y + total / (share * num_groups)
            m = jnp.maximum(jnp.sum(seen), 1).astype(total.dtype)
            return (share * (g - y) + total) / (share * m)

        corrected = jax.tree.map(
            lambda *x: _tree.nan_unless(is_good, direction(*x)), grads, old, state.total
        )
        table = jax.tree.map(
            lambda ys, y, kept: ys.at[index].set(
                jnp.where(is_good, y, kept).astype(ys.dtype)
            ),
            table,
            new,
            old,
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        total, rest = jax.lax.cond(
            count % num_groups == 0,
            lambda: _sums(table, share, state.total, num_groups),
            lambda: _moved(state, old, new, share, is_good),
        )
        new_state = SagaState(count, table, total, rest, seen)
        return _tree.cast_like(corrected, updates), new_state

    return wrapper(init, update, dtypes={"total": None, "rest": None})


def _index(group, num_groups):
    """The group's row, and whether there is one of that number."""
    if group is None:
        raise ValueError(_NO_GROUP)
    dtype = group.dtype if hasattr(group, "dtype") else np.asarray(group).dtype
    if not jnp.issubdtype(dtype, jnp.integer) or jnp.shape(group):
        raise TypeError(f"group must be one integer, got {group!r}.")
    is_known = not isinstance(group, jax.core.Tracer)
    if is_known and not 0 <= int(group) < num_groups:
        raise ValueError(f"group must be in [0, {num_groups}), got {group}.")
    is_group = (group >= 0) & (group < num_groups)
    index = jnp.clip(jnp.asarray(group), 0, num_groups - 1).astype(jnp.int32)
    return index, jnp.asarray(is_group)


def _all_finite(tree, axis_name):
    """Whether all entries of all leaves are, on all devices."""
    rows = zip(jax.tree.leaves(tree), _norms.leaf_axes(axis_name, tree), strict=True)
    bad = [
        _norms.psum(jnp.any(~jnp.isfinite(x)).astype(jnp.float32), axis)
        for x, axis in rows
    ]
    return sum(bad, jnp.zeros([], jnp.float32)) == 0


def _zeros_for_sums(params, table):
    return jax.tree.map(
        lambda p, ys: jnp.zeros_like(
            p, dtype=jnp.promote_types(_tree.wide_dtype(p), ys.dtype)
        ),
        params,
        table,
    )


def _rounded(g, table, total):
    """The gradient as the table keeps it, in the dtype of the sum."""
    info = jnp.finfo(table.dtype)
    if info.bits < jnp.finfo(g.dtype).bits:
        # Not a cast forth and back, which XLA takes for no cast at all.
        g = jnp.clip(g, float(info.min), float(info.max))
        g = jax.lax.reduce_precision(g, info.nexp, info.nmant)
    return g.astype(total.dtype)


def _moved(state, old, new, share, is_good):
    """The sum with new numbers in place of old ones, and what rounding leaves out.

    A running sum keeps the rounding of the largest number that ever was in it.
    """

    def move(total, rest, y, g):
        moved = _added(*_added(total, rest, -share * y), share * g)
        kept = total, rest
        return tuple(jnp.where(is_good, x, k) for x, k in zip(moved, kept, strict=True))

    return _in_pairs(move, state.total, state.rest, old, new)


def _sums(table, share, like, num_groups):
    """The same from the table itself.

    To a number 1e12 times as large as what is left even two floats lose digits.
    """

    def add(sums, row):
        return _in_pairs(
            lambda t, r, y: _added(t, r, share * y.astype(t.dtype)), *sums, row
        ), ()

    zeros = jax.tree.map(jnp.zeros_like, like)
    return jax.lax.scan(add, (zeros, zeros), table, length=num_groups)[0]


def _in_pairs(function, *trees):
    """Two trees, of a function of leaves that returns two."""
    structure = jax.tree.structure(trees[0])
    rows = zip(*map(jax.tree.leaves, trees), strict=True)
    pairs = [function(*leaves) for leaves in rows]
    return tuple(structure.unflatten([pair[k] for pair in pairs]) for k in range(2))


def _added(total, rest, x):
    total, left = _two_sum(total, x)
    return _two_sum(total, rest + left)


def _two_sum(a, b):
    """The sum as it is rounded, and the error of that (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
