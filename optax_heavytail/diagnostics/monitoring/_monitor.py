"""Watching an optimizer from inside the chain."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base
from optax_heavytail._transform import Inner, as_transform, wrapper
from optax_heavytail.diagnostics.monitoring import _norm_history, _rows
from optax_heavytail.diagnostics.monitoring._norm_history import NormHistory


class MonitorState(NamedTuple):
    """State of `monitor`; read it with `read_monitor`.

    A *row* is a number for all leaves together (row 0) or for one leaf. Norms are
    float32 or wider.
    """

    count: jax.typing.ArrayLike  #: (), int32, updates seen, measured or not
    #: (bytes,), uint8, the leaves' paths in UTF-8; ``None`` without per_leaf
    leaf_names: Any
    gradient_norms: jax.Array  #: (rows,), of the last measured update, as they came in
    update_norms: jax.Array  #: (rows,), of what ``inner`` made of them
    parameter_norms: jax.Array  #: (rows,), before that update
    nonfinite_counts: jax.Array  #: (rows,), int32, gradients with an inf or NaN
    history: NormHistory  #: of the gradients' norms in all measured steps
    inner_state: optax.OptState


def monitor(
    inner: Inner,
    *,
    per_leaf: bool = True,
    every: int = 1,
    reservoir_size: int = 1024,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Measures what goes into ``inner`` and what comes out, and changes neither.

    For all leaves together and for each leaf, the state has

    - of the last update: the norms of the gradient :math:`g_k` as it comes in, of the
      update :math:`u_k` and of the parameters :math:`w_{k-1}`;
    - of all updates: how often the gradient was not finite, a histogram of
      :math:`\log \lVert g_k \rVert` with bins of a factor of :math:`2^{1/8}` from
      :math:`2^{-64}` to :math:`2^{64}`, and a *reservoir* of norms: of the steps so far
      each is in it with the same probability, all leaves have the same steps, and
      these are known, so that it is a sample over time. It is drawn with a key of its
      own, the same in every run.

    `read_monitor` makes numbers for logs of it, with quantiles and tail indices, and
    `read_reservoir` gives the sample. Nothing is moved to the host before. Wrap the
    whole optimizer, so that the gradient is measured before any clip; what a clip does
    is told by `monitor_clipping` around the clip itself.

    Args:
      inner: the optimizer. Its updates pass unchanged.
      per_leaf: whether to have numbers for each leaf. Without, there is one norm over
        all leaves.
      every: :math:`K`, a Python integer, at least 1: the updates K, 2K, ... are
        measured, and the last and all updates above are meant of these. An inf in
        between is not counted.
      reservoir_size: :math:`R`, how many norms of each row to keep, a Python integer,
        at least 2. Estimates of a tail index want some hundreds.
      axis_name: for parameters sharded by hand inside ``shard_map`` or ``pmap``: the
        mesh axis to sum norms over, a tuple of axes, or a tree prefix of these with
        ``None`` for leaves that are replicated. Nothing is needed under ``jit``.

    Returns:
      A transform with a `MonitorState`, whose tree, shapes and dtypes never change: for
      each row :math:`4 (1029 + R)` bytes, 8 kB with the default, and its name. Its
      ``update`` needs the parameters. Zero gradients count as norms of 0; norms of huge
      and tiny gradients are right even where they are no number of the dtype. The norms
      of the last update are inf or NaN where an entry is; such a norm is counted and
      enters no histogram, and no norm of that step enters the reservoir.

    Raises:
      ValueError: ``every`` or ``reservoir_size`` is outside its range, or ``update``
        was called without parameters.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_heavytail import diagnostics
      >>> tx = diagnostics.monitor(optax.sgd(0.5))
      >>> params = {"w": jnp.array([6.0, 8.0]), "b": jnp.zeros(2)}
      >>> grads = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}
      >>> _, state = tx.update(grads, tx.init(params), params)
      >>> found = diagnostics.read_monitor(state)
      >>> found["gradient_norm"], found["gradient_norm/b"], found["update_norm/w"]
      (5.0, 4.0, 1.5)
      >>> round(found["update_ratio/w"], 3)  # 1.5 of 10
      0.15
    """
    _base.check_flag("per_leaf", per_leaf)
    _base.check_static_integer("every", every, 1)
    _base.check_static_integer("reservoir_size", reservoir_size, 2)
    inner_tx = as_transform(inner)

    def init(params):
        rows, dtype = _rows.num_rows(params, per_leaf), _rows.dtype(params)
        return MonitorState(
            count=jnp.zeros([], jnp.int32),
            leaf_names=_rows.encoded_names(params, per_leaf),
            gradient_norms=jnp.zeros(rows, dtype),
            update_norms=jnp.zeros(rows, dtype),
            parameter_norms=jnp.zeros(rows, dtype),
            nonfinite_counts=jnp.zeros(rows, jnp.int32),
            history=_norm_history.empty(rows, reservoir_size, dtype),
            inner_state=inner_tx.init(params),
        )

    def measured(state, count, grads, updates, params):
        def norms(tree):
            found = _rows.norms(tree, per_leaf, axis_name)
            return _rows.cast(found, state.gradient_norms)

        gradient_norms = norms(grads)
        bad = (~jnp.isfinite(gradient_norms)).astype(jnp.int32)
        return state._replace(
            gradient_norms=gradient_norms,
            update_norms=norms(updates),
            parameter_norms=norms(params),
            nonfinite_counts=state.nonfinite_counts + bad,
            history=_norm_history.add(state.history, gradient_norms, count),
        )

    def update(grads, state, params, **extra_args):
        count = optax.safe_increment(state.count)
        updates, inner_state = inner_tx.update(
            grads, state.inner_state, params, **extra_args
        )
        # Neither names nor the inner state go through a branch, which copies them.
        own = state._replace(count=(), leaf_names=(), inner_state=())
        measure = functools.partial(measured, own, count, grads, updates, params)
        if every == 1:
            own = measure()
        else:
            own = jax.lax.cond(jnp.remainder(count, every) == 0, measure, lambda: own)
        return updates, own._replace(
            count=count, leaf_names=state.leaf_names, inner_state=inner_state
        )

    return wrapper(init, update, needs_params=True)
