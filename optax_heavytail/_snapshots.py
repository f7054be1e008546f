"""Snapshot ensembles: the parameters at the end of each cycle of the learning rate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _readers
from optax_heavytail._schedules import survey
from optax_heavytail._transform import Inner, as_transform, wrapper


class SnapshotEnsembleState(NamedTuple):
    """State of `snapshot_ensemble`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    taken: jax.Array  #: (), int32, snapshots taken so far
    snapshots: Any  #: a leading axis num_snapshots, then like the parameters
    inner_state: optax.OptState


def snapshot_ensemble(
    inner: Inner,
    num_snapshots: int,
    *,
    t_0: int,
    t_mult: float = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the parameters at the end of each of the last cycles beside ``inner``.

    The cycles are those of `warm_restarts` with the same ``t_0`` and ``t_mult``: a
    snapshot is what the parameters are after the last update of a cycle. Average
    predictions with `snapshot_predictions`.

    Args:
      inner: the optimizer, with a cyclic learning rate. Its updates pass unchanged.
      num_snapshots: how many of the newest snapshots to keep, a Python integer, at
        least 1.
      t_0: length of the first cycle in updates, a Python integer, at least 1.
      t_mult: growth of the cycles, a Python number: 1, or in [1.001, inf).

    Returns:
      A transform with a `SnapshotEnsembleState`, ``num_snapshots`` copies of the
      parameters in their own dtypes, from the start. Its ``update`` needs the
      parameters.

    Raises:
      ValueError: a number is outside its range, or ``update`` was called without
        parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = oht.snapshot_ensemble(optax.sgd(1.0), num_snapshots=2, t_0=2)
      >>> params = jnp.array([0.0])
      >>> state = tx.init(params)
      >>> for _ in range(6):  # the cycles end at 2, 4 and 6
      ...     updates, state = tx.update(jnp.array([-1.0]), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> oht.snapshot_predictions(state, lambda params: 10 * params).tolist()
      [50.0]

    References:
      Huang et al., `Snapshot ensembles <https://arxiv.org/abs/1704.00109>`_, 2017,
      section 3. Its :math:`M` is ``num_snapshots``, its :math:`T / M` is ``t_0``.
    """
    _base.check_static_integer("num_snapshots", num_snapshots, 1)
    _base.check_static("t_mult", t_mult)
    starts = survey.restarts(t_0, t_mult)
    inner_tx = as_transform(inner)

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return SnapshotEnsembleState(
            count=jnp.zeros([], jnp.int32),
            taken=jnp.zeros([], jnp.int32),
            snapshots=jax.tree.map(lambda z: jnp.stack([z] * num_snapshots), zeros),
            inner_state=inner_tx.init(params),
        )

    def update(updates, state, params, **extra_args):
        updates, inner_state = inner_tx.update(
            updates, state.inner_state, params, **extra_args
        )
        position, length = survey.cycle_at(state.count, starts)
        is_end = position + 1 == length
        slot = state.taken % num_snapshots
        snapshots = jax.tree.map(
            lambda kept, w: kept.at[slot].set(jnp.where(is_end, w, kept[slot])),
            jax.tree.map(jnp.asarray, state.snapshots),
            optax.apply_updates(params, updates),
        )
        new_state = SnapshotEnsembleState(
            optax.safe_increment(state.count),
            state.taken + is_end.astype(jnp.int32),
            snapshots,
            inner_state,
        )
        return updates, new_state

    return wrapper(init, update, needs_params=True)


def snapshot_predictions(
    state: optax.OptState, predict_fn: Callable[[optax.Params], Any]
) -> Any:
    """Averages predictions over the snapshots of `snapshot_ensemble`.

    Args:
      state: its state, or one that contains it.
      predict_fn: from parameters to a tree of predictions, such as probabilities. It is
        called once, under ``jax.vmap``.

    Returns:
      The mean over the snapshots taken, of those kept; NaN before the first is taken.

    Raises:
      ValueError: no `SnapshotEnsembleState` in ``state``, or several.
    """
    found = _readers.get_states(state, SnapshotEnsembleState)
    if len(found) != 1:
        raise ValueError(
            f"A state with one snapshot ensemble is needed, not {len(found)}."
        )
    ensemble = found[0]
    predictions = jax.vmap(predict_fn)(ensemble.snapshots)

    def mean(prediction):
        size = prediction.shape[0]
        is_taken = jnp.arange(size) < ensemble.taken
        is_taken = jnp.expand_dims(is_taken, tuple(range(1, prediction.ndim)))
        total = jnp.sum(jnp.where(is_taken, prediction, 0), axis=0)
        number = jnp.minimum(ensemble.taken, size)
        return jnp.where(number > 0, total / number, jnp.nan)

    return jax.tree.map(mean, predictions)
