"""Functions that read a field out of a state, however deep it lies."""

from typing import Any

import jax
import optax


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
    """Reads the moving average of the gradients, as `get_threshold` does.

    Args:
      state: the state of ACClip, GClip, CClip, `ema` or ``optax.ema``, or one that
        contains it.

    Returns:
      The field ``ema``, like the parameters, before bias correction.

    Raises:
      ValueError: no average in ``state``, or several that do not complement each other.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.gclip(0.1, threshold=1.0, b1=0.75)
      >>> params = jnp.array([4.0])
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> float(oht.get_momentum(state)[0])
      1.0
    """
    return get_field(state, "ema")


def get_field(state: optax.OptState, name: str) -> Any:
    """The NamedTuple field ``name`` within ``state``, its masked parts put together."""

    def is_field(path, value):
        del value  # a hyperparameter of the same name is a dict's entry, not a field
        return isinstance(path[-1], optax.tree_utils.NamedTupleKey)

    found = optax.tree.get_all_with_path(state, name, filtering=is_field)
    if not found:
        raise ValueError(f"no field {name!r} in a state of {_names(state)}.")
    merged = found[0][1]
    for _, value in found[1:]:
        merged = _merge(merged, value)
        if merged is None:
            paths = [jax.tree_util.keystr(path) for path, _ in found]
            raise ValueError(
                f"{len(found)} fields {name!r} in the state, at {paths}: pass the part "
                "of the state that is meant."
            )
    return merged


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _merge(left: Any, right: Any) -> Any:
    """One tree out of two that mask each other's leaves; None if they do not."""
    left_leaves, treedef = jax.tree.flatten(left, is_leaf=_is_masked)
    right_leaves, right_treedef = jax.tree.flatten(right, is_leaf=_is_masked)
    pairs = list(zip(left_leaves, right_leaves, strict=False))
    if treedef != right_treedef or not all(
        _is_masked(a) or _is_masked(b) for a, b in pairs
    ):
        return None
    return treedef.unflatten([b if _is_masked(a) else a for a, b in pairs])


def _names(state: Any) -> str:
    nodes = jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "_fields"))
    names = {type(x).__name__ for x in nodes if hasattr(x, "_fields")}
    return ", ".join(sorted(names)) or repr(type(state).__name__)
