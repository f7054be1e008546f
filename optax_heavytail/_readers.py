"""Functions that read a field out of a state, however deep it lies."""

from typing import Any

import jax
import optax

_FIRST_MOMENTS = ("mu", "ema", "trace")


def get_threshold(state: optax.OptState) -> Any:
    """Reads the learnt threshold of `clip_by_moment`, ACClip or the estimator.

    It is found through ``optax.chain``, ``masked``, ``partition``,
    ``inject_hyperparams`` and ``MultiSteps``. The value is :math:`\\tau_k` before bias
    correction.

    Args:
      state: the state of a transform that learns a threshold, or one that contains it.

    Returns:
      The field ``threshold``: like the parameters, or scalars with the scopes "leaf"
      and "global". Leaves masked out are ``optax.MaskedNode``; the groups of
      ``optax.partition`` are put together.

    Raises:
      ValueError: no threshold in ``state``, or several that do not complement each
        other.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = optax.chain(optax.clip(10.0), oht.acclip(0.1, b2=0.75))
      >>> params = jnp.array([4.0])
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> float(oht.get_threshold(state)[0])
      1.0
    """
    return get_field(state, "threshold")


def get_momentum(state: optax.OptState) -> Any:
    """Reads the momentum, the first moment of the gradients, as `get_threshold` does.

    Args:
      state: the state of any optimizer that has one, or one that contains it.

    Returns:
      The field ``mu``, ``ema`` of an ``optax.EmaState`` or ``trace`` of an
      ``optax.TraceState``, like the parameters, before bias correction.

    Raises:
      ValueError: no momentum in ``state``, or several that do not complement each
        other.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.gclip(0.1, threshold=1.0, b1=0.75)
      >>> params = jnp.array([4.0])
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> float(oht.get_momentum(state)[0])
      1.0
    """
    found = [x for name in _FIRST_MOMENTS for x in get_fields(state, name)]
    return merge_masked(found, "momentum")


def get_trust_ratio(state: optax.OptState, *, raw: bool = False) -> Any:
    """Reads the trust ratios of the last update, as `get_threshold` does.

    Args:
      state: the state of LAMBC, LARSC or `scale_by_clipped_trust_ratio`, or one that
        contains it.
      raw: whether to read the ratios before the bounds.

    Returns:
      A tree like the parameters with one ratio for each layer.

    Raises:
      ValueError: no ratio in ``state``, or several that do not complement each other.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.larsc(0.1, trust_coefficient=0.5, trust_ratio_bounds=(0.0, 0.125))
      >>> params = jnp.array([4.0])
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> float(get_trust_ratio(state)), float(get_trust_ratio(state, raw=True))
      (0.125, 0.5)
    """
    return get_field(state, "raw_trust_ratio" if raw else "trust_ratio")


def get_fields(state: optax.OptState, name: str) -> list[Any]:
    """All NamedTuple fields ``name`` within ``state``."""

    def is_field(path, value):
        del value  # a hyperparameter of the same name is a dict's entry, not a field
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)

    found = optax.tree.get_all_with_path(state, name, filtering=is_field)
    return [value for _, value in found]


def get_field(state: optax.OptState, name: str) -> Any:
    """The NamedTuple field ``name`` within ``state``, its masked parts put together."""
    return merge_masked(get_fields(state, name), f"field {name!r}")


def get_states(state: optax.OptState, kind: type) -> list[Any]:
    """All states of the NamedTuple type ``kind`` within ``state``."""
    found = optax.tree.get_all_with_path(state, kind.__name__)
    return [value for _, value in found if isinstance(value, kind)]


def is_masked(x: Any) -> bool:
    """Whether ``x`` stands for a leaf that ``optax.masked`` left out."""
    return isinstance(x, optax.MaskedNode)


def merge_masked(trees: list[Any], what: str) -> Any:
    """One tree out of several of which at most one holds each leaf."""
    if not trees:
        raise ValueError(f"There is no {what} in this state.")
    flat = [jax.tree.flatten(tree, is_leaf=is_masked) for tree in trees]
    treedef = flat[0][1]
    merged = []
    for position in zip(*(leaves for leaves, _ in flat), strict=False):
        held = [leaf for leaf in position if not is_masked(leaf)]
        merged.append(held or [optax.MaskedNode()])
    if any(other != treedef for _, other in flat) or any(len(m) > 1 for m in merged):
        raise ValueError(
            f"There are {len(trees)} of {what} in this state, and they overlap: pass "
            "the part of the state that is meant."
        )
    return treedef.unflatten([leaf for (leaf,) in merged])
