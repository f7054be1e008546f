"""Numbers for logs, out of the states of the monitors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_heavytail import _readers, _tree
from optax_heavytail.diagnostics.monitoring import _norm_history, _rows
from optax_heavytail.diagnostics.monitoring._monitor import MonitorState
from optax_heavytail.diagnostics.monitoring._monitor_clipping import (
    MonitorClippingState,
)
from optax_heavytail.diagnostics.monitoring._norm_history import NormHistory
from optax_heavytail.diagnostics.tails._tail_index import hill

_FRACTIONS = (0.1, 0.5, 0.9)
_LEAST_NORMS = 100  # for a tail index
_MONITOR = (
    "gradient_norm",
    "update_norm",
    "parameter_norm",
    "update_ratio",
    "nonfinite_gradients",
    *(f"gradient_norm_q{100 * fraction:.0f}" for fraction in _FRACTIONS),
    "tail_index",
)
_CLIPPING = ("clipped_coordinates", "clipped_norm", "clip_cosine")
_RATIOS = ("trust_ratio", "raw_trust_ratio")


class NormSample(NamedTuple):
    """What `read_reservoir` returns: of steps in the order of time."""

    counts: np.ndarray  #: (n,), int32, which updates these are, from 1 on
    norms: dict[str, np.ndarray]  #: (n,) for each name, as in `read_monitor`


def read_monitor(state: optax.OptState) -> dict[str, float]:
    r"""Reads what `monitor` and `monitor_clipping` have measured, for logs.

    Each name is of all leaves together; a path behind it, as in
    ``gradient_norm/encoder/kernel``, makes it one leaf's.

    =========================  =====================================================
    ``gradient_norm``          of the last gradient, before ``inner``
    ``update_norm``            of the last update
    ``parameter_norm``         of the parameters before it
    ``update_ratio``           the update's norm over the parameters'
    ``nonfinite_gradients``    how many gradients so far had an inf or NaN
    ``gradient_norm_q50``      median of all finite gradients' norms so far, off by at
                               most a factor of :math:`2^{1/16}`
    ``gradient_norm_q10``      the quantile of a tenth, and ``gradient_norm_q90`` that
                               of nine tenths
    ``tail_index``             `hill` of the reservoir's n norms from 100 on, with
                               :math:`k = \lfloor \sqrt{n} \rfloor`; `estimate_tail` of
                               `read_reservoir` adds the errors and a test
    ``clipped_coordinates``    share of the coordinates that were clipped
    ``clipped_norm``           share of the norm that was taken away
    ``clip_cosine``            between the averages before and after the clip
    ``trust_ratio``            as LAMBC or LARSC applied it, per leaf or layer that has
                               one
    ``raw_trust_ratio``        the same before its bounds
    =========================  =====================================================

    Args:
      state: the state of an optimizer with one `monitor`, one `monitor_clipping` or
        both, however deep: they are found through ``optax.chain``, ``masked``,
        ``inject_hyperparams`` and other wrappers.

    Returns:
      Python floats, moved from the device at once. What is not known yet is NaN, such
      as quantiles before the first update. The names are the same for every state of
      one optimizer.

    Raises:
      ValueError: there is no monitor, there are several of a kind, or the state is one
        of several runs at once, as ``jax.vmap`` makes it.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_heavytail import diagnostics
      >>> tx = optax.chain(diagnostics.monitor(optax.sgd(0.1), per_leaf=False))
      >>> params = jnp.array([3.0, 4.0])
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> found = diagnostics.read_monitor(state)
      >>> found["gradient_norm"], round(found["update_ratio"], 6)
      (5.0, 0.1)
      >>> round(found["gradient_norm_q50"], 2)  # 5, to within 4%
      4.97
    """
    watched = _only(state, MonitorState)
    clipped = _only(state, MonitorClippingState)
    if watched is None and clipped is None:
        raise ValueError("There is no monitor in this state.")
    monitors = [found for found in (watched, clipped) if found is not None]
    parts: list[Any] = [
        found._replace(leaf_names=None, inner_state=None) for found in monitors
    ]
    of_leaves = []
    for name in _RATIOS:
        if _readers.get_fields(state, name):
            ratios = _readers.get_field(state, name)
            of_leaves += _labels_of_leaves(name, ratios)
            parts.append(ratios)
    encoded = [found.leaf_names for found in monitors]
    values, encoded = jax.device_get((_values(parts), encoded))
    pairs = zip(monitors, encoded, strict=True)
    labels = [label for pair in pairs for label in _labels(*pair)] + of_leaves
    return dict(zip(labels, values.tolist(), strict=True))


def _labels(monitor: Any, encoded: np.ndarray | None) -> list[str]:
    """Names for the numbers of a monitor, in their order."""
    names = _MONITOR if isinstance(monitor, MonitorState) else _CLIPPING
    if getattr(monitor, "raw_mean", monitor) is None:
        names = names[:-1]
    return [name + row for name in names for row in _rows.names(encoded)]


def read_reservoir(state: optax.OptState) -> NormSample:
    """Reads the sample of gradient norms that `monitor` has drawn over all steps.

    Args:
      state: the state of an optimizer with one `monitor`, as for `read_monitor`.

    Returns:
      A `NormSample` of :math:`n` steps, up to ``reservoir_size``, in the order of time.

    Raises:
      ValueError: there is no monitor, there are several, or the state is one of several
        runs at once.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_heavytail import diagnostics
      >>> tx = diagnostics.monitor(optax.sgd(0.1), reservoir_size=3)
      >>> params = {"w": jnp.zeros(2)}
      >>> state = tx.init(params)
      >>> for size in range(10, 60, 10):
      ...     grads = {"w": jnp.array([float(size), 0.0])}
      ...     _, state = tx.update(grads, state, params)
      >>> sample = diagnostics.read_reservoir(state)
      >>> sample.counts.tolist(), sample.norms["gradient_norm/w"].tolist()
      ([2, 3, 4], [20.0, 30.0, 40.0])
    """
    found = _only(state, MonitorState)
    if found is None:
        raise ValueError("There is no monitor in this state.")
    drawn_at, norms, encoded = jax.device_get(
        (found.history.drawn_at, found.history.reservoir, found.leaf_names)
    )
    order = np.argsort(drawn_at, kind="stable")
    order = order[drawn_at[order] > 0]
    rows = _rows.names(encoded)
    return NormSample(
        drawn_at[order],
        {f"gradient_norm{row}": norms[order, i] for i, row in enumerate(rows)},
    )


def _only(state: Any, kind: type) -> Any:
    """The one state of this kind, or ``None``."""
    found = _readers.get_states(state, kind)
    if len(found) > 1:
        raise ValueError(
            f"There are {len(found)} of {kind.__name__} in this state: pass the part "
            "of the state that is meant."
        )
    if found and (axes := jnp.shape(_number(found[0]))):
        raise ValueError(
            f"The {kind.__name__} has leading axes {axes}, as that of several runs in "
            "jax.vmap or jax.pmap: read one of them, such as "
            "jax.tree.map(lambda x: x[0], state)."
        )
    return found[0] if found else None


def _number(state: MonitorState | MonitorClippingState) -> jax.typing.ArrayLike:
    """What is a scalar in the state of one run."""
    return state.count if isinstance(state, MonitorState) else state.weight


def _labels_of_leaves(name: str, tree: Any) -> list[str]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    paths = _rows.path_names([path for path, _ in found])
    labels = []
    for path, (_, leaf) in zip(paths, found, strict=True):
        label = f"{name}/{path}" if path else name
        labels += [f"{label}/{i}" for i in range(leaf.size)] if leaf.ndim else [label]
    return labels


@jax.jit
def _values(parts: list[Any]) -> jax.Array:
    """One array, so that there is one transfer."""
    tables = {MonitorState: _monitor_values, MonitorClippingState: _clipping_values}
    found = [tables.get(type(part), lambda ratios: ratios)(part) for part in parts]
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(found)])


def _monitor_values(state: MonitorState) -> list[jax.Array]:
    norms = state.parameter_norms
    quantiles = _norm_history.quantiles(state.history.histogram, _FRACTIONS)
    return [
        state.gradient_norms,
        state.update_norms,
        norms,
        jnp.where(norms == 0, jnp.nan, _tree.safe_divide(state.update_norms, norms)),
        state.nonfinite_counts,
        *(quantiles[:, i] for i in range(len(_FRACTIONS))),
        _tail_index(state.history),
    ]


def _tail_index(history: NormHistory) -> jax.Array:
    num_norms = jnp.minimum(history.num_seen, history.drawn_at.size)
    root = jnp.sqrt(num_norms).astype(jnp.int32)
    k = jnp.where(num_norms >= _LEAST_NORMS, root, 0)  # of 0: NaN
    return hill(history.reservoir.T, k)  # an empty place is 0, the smallest there is


def _clipping_values(state: MonitorClippingState) -> list[jax.Array]:
    weight = jnp.where(state.weight > 0, state.weight, jnp.nan)
    values = [state.coordinate_shares / weight, 1 - state.norm_shares / weight]
    if state.raw_mean is not None:
        rows = state.norm_shares.size
        values.append(_cosines(state.raw_mean, state.clipped_mean)[:rows])
    return values


def _cosines(a: Any, b: Any) -> jax.Array:
    """In rows; NaN where a length is 0."""
    lengths = [_rows.norms(tree, True, None) for tree in (a, b)]

    def product(x, y, i):  # of unit vectors: it neither over- nor underflows
        units = [
            _tree.safe_divide(v, norm[i])
            for v, norm in zip((x, y), lengths, strict=True)
        ]
        return jnp.sum(units[0] * units[1])

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    each = jnp.array([product(x, y, i) for i, (x, y) in enumerate(pairs, 1)]).reshape(
        -1
    )
    # The share of each leaf in the two lengths.
    weights = [_tree.safe_divide(norm[1:], norm[:1]) for norm in lengths]
    whole = jnp.sum(each * weights[0] * weights[1])[None]
    has_length = (lengths[0] > 0) & (lengths[1] > 0)
    return jnp.where(has_length, jnp.concatenate([whole, each]), jnp.nan)
