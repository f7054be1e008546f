"""One program for all leaves of one shape."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._transform import wrapper

# The compiler makes one kernel of all slices at the same place of stacks of one shape.
# A thousand leaves compiled fastest in stacks of 32 with one shape, of 16 with twenty.
_MOST_LEAVES = 16
# Copying a larger leaf costs more than a kernel of its own.
_MOST_ENTRIES = 2**16


def stack_leaves(
    inner: Callable[..., optax.GradientTransformation], *, labels: Any = "all"
) -> optax.GradientTransformationExtraArgs:
    """Stacks small leaves of one shape, so that many leaves compile and run fast.

    A thousand small leaves are a thousand small programs: to compile, and to launch at
    each step. Here up to 16 leaves of one shape and of at most 65,536 entries each
    become one, along a new first axis, and so does what the state keeps for them.
    Updates are what they were, up to the order of summation.

    ``inner`` sees a dict with a list of stacks for each label, and every leaf in it has
    the new axis, also a leaf that stays alone. What looks at single leaves must
    therefore go by slices: hence ``inner`` is a function that takes a ``layer_axis``.
    Transforms that treat coordinates alike, or take one norm of everything, may ignore
    it. Others that look at leaves, such as ``optax.lamb``, cannot be stacked; `neumann`
    with ``repulsive_scale="leaves"`` counts stacks, and the scope "leaf" of
    `clip_by_norm` and `clip_by_moment` means a stack. Extra arguments pass as they are.

    Args:
      inner: makes the transform, called as ``inner(layer_axis=0)``, such as
        ``functools.partial(lambc, 0.01)``.
      labels: words that keep leaves apart: a tree of them like the parameters, a
        prefix, or a function of the parameters. Leaves of different labels share no
        stack, and a mask or ``axis_name`` inside is a dict with an entry per label.

    Returns:
      A transform with the state of ``inner`` for the dict of stacks: readers such as
      `get_trust_ratio` return that dict, and checkpoints with and without this wrapper
      do not fit each other. Updates keep the gradients' structure, shapes and dtypes;
      leaves of one stack are computed in their common dtype. Leaves of one stack should
      be sharded alike (give others another label). What zero, huge, inf and NaN
      gradients do is said at ``inner``.

    Raises:
      TypeError: ``inner`` takes no ``layer_axis``, a label is not a word, or a
        parameter or gradient is not real floating-point.

    Example:
      >>> import functools
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> lambc = functools.partial(oht.lambc, 0.1, b1=0.0, b2=0.0, eps=0.0)
      >>> tx = oht.stack_leaves(lambc)
      >>> params = [jnp.array([40.0]), jnp.array([0.25]), jnp.array([0.5])]
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> [round(float(u[0]), 3) for u in updates]
      [-0.1, -0.025, -0.05]
      >>> oht.get_trust_ratio(state)["all"][0].tolist()
      [1.0, 0.25, 0.5]
    """
    if not callable(inner):
        raise TypeError(
            f"inner must be a function of layer_axis, got {inner!r}; under "
            '`optax.inject_hyperparams` pass `static_args=("inner",)`.'
        )
    inner_tx = optax.with_extra_args_support(inner(layer_axis=0))

    def init(params):
        return inner_tx.init(_stack(params, _groups(params, labels)))

    def update(updates, state, params, **extra_args):
        groups = _groups(updates, labels)
        stacked_params = None if params is None else _stack(params, groups)
        stacked, state = inner_tx.update(
            _stack(updates, groups), state, stacked_params, **extra_args
        )
        return _tree.cast_like(_unstack(stacked, groups, updates), updates), state

    return wrapper(init, update)


def _groups(tree: Any, labels: Any) -> dict[str, list[list[int]]]:
    """For each label the positions of the leaves of each stack."""
    labels = labels(tree) if _base.is_function(labels) else labels
    leaves = jax.tree.leaves(tree)
    by_shape = {}
    words = _tree.broadcast_prefix(labels, tree, None)
    for i, (leaf, word) in enumerate(zip(leaves, words, strict=True)):
        if not isinstance(word, str):
            raise TypeError(f"labels must be strings, got {word!r}.")
        alone = i if math.prod(jnp.shape(leaf)) > _MOST_ENTRIES else None
        by_shape.setdefault((word, jnp.shape(leaf), alone), []).append(i)
    groups = {word: [] for word in sorted(set(words))}
    for (word, *_), found in by_shape.items():
        groups[word] += [
            found[i : i + _MOST_LEAVES] for i in range(0, len(found), _MOST_LEAVES)
        ]
    return groups


def _stack(tree: Any, groups: dict[str, list[list[int]]]) -> Any:
    leaves = jax.tree.leaves(tree)
    if not leaves:  # the placeholder of `optax.tree.map_params` has to come through
        return tree
    return {
        word: [_stacked(*(leaves[i] for i in group)) for group in stacks]
        for word, stacks in groups.items()
    }


def _stacked(*leaves: Any) -> Any:
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return jax.eval_shape(lambda *x: jnp.stack(x), *leaves)
    return jnp.stack(leaves)


def _unstack(stacked: Any, groups: dict[str, list[list[int]]], like: Any) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    for word, stacks in groups.items():
        for group, stack in zip(stacks, stacked[word], strict=True):
            for i, leaf in zip(group, jnp.unstack(stack), strict=True):
                leaves[i] = leaf
    return treedef.unflatten(leaves)
