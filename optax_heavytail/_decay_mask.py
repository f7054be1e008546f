"""Which leaves decay, and how much of the parameters that is."""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _readers, _tree
from optax_heavytail._weight_decay import Mask, of_params

Rule = Callable[[str, Any], bool | None]

# Places in tuples, lists, and containers of a user's own without keys.
_NAMELESS = (jax.tree_util.SequenceKey, jax.tree_util.FlattenedIndexKey)
_NOT_DECAYED = ("bias", "scale", "norm")
_logger = logging.getLogger(__name__)


class MaskCoverage(NamedTuple):
    """How much of a parameter tree a mask covers."""

    leaves: int
    total_leaves: int
    parameters: int
    total_parameters: int

    def __str__(self) -> str:
        """One readable line."""
        return (
            f"{self.leaves} of {self.total_leaves} leaves, {self.parameters:,} of "
            f"{self.total_parameters:,} parameters"
        )


def decay_mask(params: optax.Params, *, rule: Rule | None = None) -> Any:
    """A mask for weight decay that leaves out biases and normalisation parameters.

    A leaf decays if it has at least two dimensions, no part of its path contains
    "bias", "scale" or "norm", in any case, and its neighbours do not tell that it is a
    vector for each layer of a stack, as a scan over layers has them:

    - beside a bias of its own shape it is the weight of a normalisation;
    - beside a leaf with more dimensions, without a name, as in a tuple or list, or
      called "b", it is a bias if it is as long as what that leaf puts out, in the same
      layers.

    This fits the names of Flax Linen, Flax NNX, Equinox and NamedTuples, and pairs
    without names. What it cannot know, such as a stacked weight of an RMSNorm called
    "ln", a ``rule`` decides. Pass the function itself as ``mask``, with a rule
    ``functools.partial(decay_mask, rule=rule)``; what it covers is logged at level
    INFO, and `mask_coverage` tells it for any mask.

    Args:
      params: a tree of arrays; ``None`` and masked nodes stay.
      rule: a function of a leaf's path, such as "blocks/ln/weight", and the leaf: True
        if it decays, False if not, ``None`` to leave it to what is said above.

    Returns:
      A tree of bools like ``params``, ``True`` where the leaf decays.

    Raises:
      TypeError: a leaf is no array.
      ValueError: no leaf would decay, or every leaf would, and none is masked out. Such
        a mask is nearly always a mistake about names or trees; to decay all or nothing,
        pass no mask.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> oht.decay_mask(params)
      {'dense': {'bias': False, 'kernel': True}}
      >>> print(oht.mask_coverage(oht.decay_mask(params), params))
      1 of 2 leaves, 6 of 9 parameters
      >>> oht.decay_mask([(jnp.ones((2, 3)), jnp.ones(3)), ()])
      [(True, False), ()]
    """
    _base.check_arrays(params, "parameters")
    modules: dict[Any, dict[Any, Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        modules.setdefault(path[:-1], {})[path] = leaf

    def decays(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        chosen = None if rule is None else rule(name, leaf)
        if chosen is not None:
            return bool(chosen)
        if jnp.ndim(leaf) < 2 or any(word in name.lower() for word in _NOT_DECAYED):
            return False
        beside = modules[path[:-1]]
        return not any(
            _is_norm(leaf, other_path, other) or _is_bias(path, leaf, other)
            for other_path, other in beside.items()
            if other_path != path
        )

    mask = jax.tree_util.tree_map_with_path(decays, params)
    coverage = mask_coverage(mask, params)
    nodes = jax.tree.leaves(params, is_leaf=_readers.is_masked)
    is_part = any(map(_readers.is_masked, nodes))  # the rest is another group's
    if coverage.leaves in (0, coverage.total_leaves) and not is_part:
        raise ValueError(
            f"decay_mask covers {coverage}: it must cover some leaves and not all. It "
            "looks for leaves of two or more dimensions without 'bias', 'scale' or "
            "'norm' in their path; pass a rule, build the mask by hand, or pass none."
        )
    _logger.info("weight decay covers %s", coverage)
    return mask


def _is_norm(leaf: Any, other_path: Any, other: Any) -> bool:
    """Whether ``leaf`` has a bias beside it that is not smaller."""
    name = jax.tree_util.keystr(other_path[-1:]).lower()
    return "bias" in name and jnp.shape(other) == jnp.shape(leaf)


def _is_bias(path: Any, leaf: Any, other: Any) -> bool:
    """Whether ``leaf`` is stacked as ``other``, and as long as what that puts out."""
    key = path[-1]
    has_name = not isinstance(key, _NAMELESS)
    if has_name and jax.tree_util.keystr(path[-1:], simple=True) != "b":
        return False
    (*stack, size), shape = jnp.shape(leaf), jnp.shape(other)
    fits = len(shape) > len(stack) + 1 and shape[: len(stack)] == tuple(stack)
    return fits and size in (shape[len(stack)], shape[-1])


def mask_coverage(mask: Mask, params: optax.Params) -> MaskCoverage:
    """Counts the leaves and parameters for which a mask is ``True``.

    Args:
      mask: a tree of bools like ``params``, a prefix, or a function of ``params``.
      params: a tree of arrays.

    Returns:
      The counts, with a readable ``str``.

    Raises:
      TypeError: a leaf of ``params`` is no array.
      ValueError: ``mask`` is not a tree prefix of ``params``.
    """
    _base.check_arrays(params, "parameters")
    sizes = [math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)]
    chosen = _tree.broadcast_prefix(of_params(mask, params), params, None)
    covered = [size for size, flag in zip(sizes, chosen, strict=True) if flag]
    return MaskCoverage(len(covered), len(sizes), sum(covered), sum(sizes))
