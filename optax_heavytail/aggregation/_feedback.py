"""The mean of clipped gradients of workers, without what the clip takes away."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree
from optax_heavytail._transform import transform
from optax_heavytail.aggregation import _rows


class ErrorFeedbackState(NamedTuple):
    """State of `aggregate_with_error_feedback`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    #: v, a leading axis of the workers, then like the parameters, float32 or wider;
    #: ``None`` if ``momentum`` is a Python 1
    mu: Any
    estimates: Any  #: e, likewise, what is known of each worker


def aggregate_with_error_feedback(
    num_workers: int,
    threshold: jax.typing.ArrayLike,
    *,
    momentum: jax.typing.ArrayLike = 1.0,
    feedback: jax.typing.ArrayLike = 1.0,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips what is new of each worker, and adds up what it has told so far.

    For each worker :math:`i`, with :math:`v_i = e_i = 0` at the start and the norm over
    all leaves,

    .. math::
        v_i &\leftarrow (1 - \beta_1) v_i + \beta_1 g_i, \\
        e_i &\leftarrow e_i + \beta_2 \min\left(1,
        \frac{\tau}{\lVert v_i - e_i \rVert}\right) (v_i - e_i), \qquad
        u = \frac{1}{n} \sum_i e_i .

    Clipping each worker's gradient leaves a bias where the workers' data differ, whose
    gradients do not vanish at the common minimum. Here only what changes is clipped:
    :math:`e_i` gets to :math:`v_i` in steps of at most :math:`\beta_2 \tau`. It is for
    federated training: the state has a copy of the parameters for each worker, two with
    a momentum. `~optax_heavytail.clipped_ema` is the same for one.

    Args:
      num_workers: :math:`n`, a Python integer of at least 1; with ``axis_name`` those
        of one device.
      threshold: :math:`\tau` in (0, inf), in the gradient's units.
      momentum: :math:`\beta_1` in (0, 1], the weight of the new gradient. 1 is Clip21.
      feedback: :math:`\beta_2` in (0, 1].
      axis_name: inside ``shard_map`` or ``pmap`` the mesh axis over which the workers
        are spread, or a tuple of axes. Each device keeps those of its own.

    Returns:
      A transform with an `ErrorFeedbackState`. Its updates come with a leading axis of
      ``num_workers`` and leave without it, in the dtypes in which they came; ``init``
      takes the parameters, without that axis. A worker with an inf or NaN entry says
      nothing new in that step. Huge and tiny gradients are clipped right.

    Raises:
      ValueError: a concrete number is outside its range, or a leaf has no leading axis
        of ``num_workers``.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_heavytail import aggregation
      >>> tx = aggregation.aggregate_with_error_feedback(2, threshold=1.0)
      >>> x, state = 5.0, tx.init(jnp.array(0.0))
      >>> for _ in range(60):
      ...     grads = jnp.array([3 * (x - 1), x + 2])
      ...     update, state = tx.update(grads, state)
      ...     x -= 0.1 * update.item()
      >>> round(x, 4)  # the sum of both is least at 0.25
      0.25

    References:
      Khirirat et al., `Clip21: error feedback for gradient clipping
      <https://arxiv.org/abs/2305.18929>`_, 2023; Islamov et al., `Double momentum and
      error feedback for clipping <https://arxiv.org/abs/2502.11682>`_, 2025.
    """
    _base.check_static_integer("num_workers", num_workers, 1)
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    _base.check_range("momentum", momentum, 0.0, 1.0, low_open=True)
    _base.check_range("feedback", feedback, 0.0, 1.0, low_open=True)
    has_momentum = not (isinstance(momentum, int | float) and momentum == 1)

    def init(params):
        rows = jax.tree.map(
            lambda z: jnp.broadcast_to(z, (num_workers, *z.shape)),
            _tree.zeros_like(params),
        )
        mu = rows if has_momentum else None
        return ErrorFeedbackState(jnp.zeros([], jnp.int32), mu, rows)

    def update(grads, state):
        count = optax.safe_increment(state.count)
        if not jax.tree.leaves(grads):
            return grads, state._replace(count=count)
        _check_workers(grads, num_workers)
        values = grads
        if has_momentum:
            values = jax.tree.map(
                lambda v, g: (1 - momentum) * v + momentum * g, state.mu, grads
            )
        news = optax.tree.sub(values, state.estimates)
        norms = _norms.row_norms(news)
        good, factors = (
            jnp.isfinite(norms.scaled),
            _norms.clip_factors(norms, threshold),
        )

        def told(e, d):
            clipped = _norms.apply_factors(factors, d, 0)
            return e + feedback * _where(good, clipped, 0)

        estimates = jax.tree.map(told, state.estimates, news)
        mu = None
        if has_momentum:
            mu = jax.tree.map(lambda v, old: _where(good, v, old), values, state.mu)
        updates = jax.tree.map(lambda e: _mean(e, axis_name), estimates)
        return updates, ErrorFeedbackState(count, mu, estimates)

    return transform(init, update)


def _check_workers(grads: Any, num_workers: int) -> None:
    if _rows.count(grads) != num_workers:
        raise ValueError(
            f"every leaf must have a leading axis of {num_workers} workers, got one of "
            f"{_rows.count(grads)}."
        )


def _where(good: jax.Array, x: jax.Array, other: Any) -> jax.Array:
    return jnp.where(_norms.expand_layers(good, x, 0), x, other)


def _mean(rows: jax.Array, axis_name: Any) -> jax.Array:
    mean = jnp.mean(rows, axis=0)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)
