"""What owns one norm: all leaves together, a leaf, or a slice of a leaf."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _base, _norms, _parts, _tree

SCOPES = ("global", "leaf")
NONFINITE = ("propagate", "zero")


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of a scope, whose numbers lie in one array of shape `shape`.

    One array for all of them, so that what is done to each is one operation and not a
    program per leaf. Scope "global": shape ``()``; "leaf": ``(units,)``, a leaf with a
    ``layer_axis`` being as many units as it has slices along it.
    """

    scope: str
    layer_axis: Any = None
    axis_name: Any = None

    def __post_init__(self):
        _base.check_choice("scope", self.scope, SCOPES)
        _base.check_static("layer_axis", self.layer_axis)
        if self.scope == "global" and self.layer_axis is not None:
            raise ValueError(
                'layer_axis needs scope "leaf": a global norm spans all layers.'
            )

    def shape(self, tree: Any) -> tuple[int, ...]:
        """The shape of an array with one number per unit of ``tree``."""
        return () if self.scope == "global" else (sum(self._sizes(tree)),)

    def zeros(self, params: Any) -> jax.Array:
        """A number for each unit, to be kept in a state."""
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return jnp.zeros(self.shape(params), dtype)

    def norms(self, tree: Any) -> _norms.Norm:
        """The norm of each unit."""
        if self.scope == "global":
            return _norms.global_norm(tree, self.axis_name)
        parts = _norms.parts_of([tree], self.axis_name, self.layer_axis)
        norms = _norms.part_norms(tree, parts)
        if not norms:
            return _norms.Norm(jnp.zeros(0), jnp.ones(0))
        dtype = jnp.result_type(*(norm.scaled for norm in norms))
        order = self._order(parts, tree)

        def in_order(numbers):
            row = jnp.concatenate([_flat(x).astype(dtype) for x in numbers])
            return row if order is None else jnp.take(row, order, mode="clip")

        return _norms.Norm(*map(in_order, zip(*norms, strict=True)))

    def spread(self, prefix: Any, tree: Any) -> jax.Array:
        """One number, or a tree prefix of them, as a number for each unit."""
        if self.scope == "global":
            return jnp.asarray(prefix)
        numbers = _tree.broadcast_prefix(prefix, tree, None)
        rows = zip(numbers, self._sizes(tree), strict=True)
        parts = [jnp.broadcast_to(jnp.asarray(x), (n,)) for x, n in rows]
        return jnp.concatenate(parts) if parts else jnp.zeros(0)

    def sums(self, tree: Any) -> jax.Array:
        """The sum over the entries of each unit."""
        axes = _norms.leaf_axes(self.axis_name, tree)
        rows = zip(jax.tree.leaves(tree), self._layers(tree), axes, strict=True)
        sums = [_norms.psum(_sum(x, layer), axis) for x, layer, axis in rows]
        if self.scope == "global":
            return sum(sums, jnp.zeros([]))
        return jnp.concatenate([_flat(x) for x in sums]) if sums else jnp.zeros(0)

    def counts(self, tree: Any) -> jax.Array:
        """The number of entries of each unit, as floats."""
        axes = _norms.leaf_axes(self.axis_name, tree)
        leaves, sizes = jax.tree.leaves(tree), self._sizes(tree)
        pairs = zip(leaves, sizes, axes, strict=True)
        counts = [_norms.psum(float(x.size), axis) / max(n, 1) for x, n, axis in pairs]
        if self.scope == "global":
            return jnp.asarray(sum(c * n for c, n in zip(counts, sizes, strict=True)))
        return jnp.asarray(
            [c for c, n in zip(counts, sizes, strict=True) for _ in range(n)]
        )

    def by_leaf(self, numbers: jax.Array, tree: Any) -> Any:
        """A tree like ``tree`` with the numbers of each leaf: ``()`` or ``(n,)``."""
        leaves, treedef = jax.tree.flatten(tree)
        if self.scope == "global":
            return treedef.unflatten([numbers] * len(leaves))
        starts, sizes, layers = (
            each(tree) for each in (self._starts, self._sizes, self._layers)
        )
        return treedef.unflatten(
            [
                _parts.entry(numbers, start, None if layer is None else n)
                for start, n, layer in zip(starts, sizes, layers, strict=True)
            ]
        )

    def report(self, numbers: jax.Array, tree: Any) -> Any:
        """What a state shows of them: one number, or those of each leaf."""
        return numbers if self.scope == "global" else self.by_leaf(numbers, tree)

    def collect(self, report: Any) -> jax.Array:
        """The numbers of which a state shows the `report`."""
        if self.scope == "global":
            return report
        parts = [_flat(x) for x in jax.tree.leaves(report)]
        return jnp.concatenate(parts) if parts else jnp.zeros(0)

    def all_kept(self, params: Any) -> Any:
        """The `report` of clips before the first."""
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return self.report(jnp.ones(self.shape(params), dtype), params)

    def clip(self, tree: Any, norms: _norms.Norm, limit: jax.Array) -> Any:
        """``tree`` with the length of each unit at most ``limit``.

        A unit within it passes bit for bit; one whose norm is not finite becomes NaN.
        """
        factors = _norms.clip_factors(norms, limit)
        for factor in factors:
            tree = self.map(lambda g, f: g * f, tree, factor)
        return tree

    def where(self, condition: jax.Array, tree: Any, other: float) -> Any:
        """``tree``, and the number ``other`` in the units without the condition."""
        return self.map(lambda g, c: _where(c, g, other), tree, condition)

    def map(self, function: Callable[..., Any], tree: Any, *numbers: jax.Array) -> Any:
        """``function`` of each leaf and of its numbers, fit to be broadcast."""
        leaves, treedef = jax.tree.flatten(tree)
        parts = [jax.tree.leaves(self.by_leaf(x, tree)) for x in numbers]
        rows = zip(leaves, self._layers(tree), *parts, strict=True)
        return treedef.unflatten(
            [
                function(g, *(_norms.expand_layers(x, g, layer) for x in own))
                for g, layer, *own in rows
            ]
        )

    def _starts(self, tree):
        return [0, *itertools.accumulate(self._sizes(tree))][:-1]

    def _order(self, parts, tree):
        """Where in a row of the parts' units each unit is; ``None`` if in order."""
        starts, sizes = self._starts(tree), self._sizes(tree)
        places = [
            starts[i] + k for p in parts for i in p.places for k in range(sizes[i])
        ]
        return None if places == sorted(places) else np.argsort(places)

    def _layers(self, tree):
        return _tree.broadcast_prefix(self.layer_axis, tree, lambda x: x is None)

    def _sizes(self, tree):
        pairs = zip(jax.tree.leaves(tree), self._layers(tree), strict=True)
        return [1 if layer is None else x.shape[layer] for x, layer in pairs]


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """As `Units`, for the scope in which each entry is a unit.

    Their numbers are trees like the updates, or prefixes of these.
    """

    def zeros(self, params: Any) -> Any:
        """A number for each unit, to be kept in a state."""
        return _tree.zeros_like(params)

    def spread(self, prefix: Any, tree: Any) -> Any:
        """One number, or a tree prefix of them, as a tree."""
        treedef = jax.tree.structure(tree)
        numbers = _tree.broadcast_prefix(prefix, tree, None)
        return treedef.unflatten([jnp.asarray(x) for x in numbers])

    def norms(self, tree: Any) -> _norms.Norm:
        """The size of each entry."""
        return _norms.Norm(
            jax.tree.map(jnp.abs, tree), jax.tree.map(jnp.ones_like, tree)
        )

    def clip(self, tree: Any, norms: _norms.Norm, limit: Any) -> Any:
        """``tree`` with no entry larger than ``limit``; NaN for a size not finite."""

        def clip(x, size, tau):
            # Not the sign times tau: that is NaN at 0 where tau is still inf.
            clipped = jnp.where(size > tau, jnp.where(x < 0, -tau, tau), x)
            return _tree.nan_unless(jnp.isfinite(size) & (tau >= 0), clipped)

        return self.map(clip, tree, norms.scaled, limit)

    def where(self, condition: Any, tree: Any, other: float) -> Any:
        """``tree``, and the number ``other`` in the entries without the condition."""
        return self.map(lambda x, c: _where(c, x, other), tree, condition)

    def map(self, function: Callable[..., Any], tree: Any, *numbers: Any) -> Any:
        """``function`` of each leaf and of its numbers."""
        leaves, treedef = jax.tree.flatten(tree)
        parts = [_tree.broadcast_prefix(x, tree, None) for x in numbers]
        return treedef.unflatten(map(function, leaves, *parts))


def of_scope(scope: str, layer_axis: Any = None, axis_name: Any = None) -> Any:
    """The `Units` or `Coordinates` of a scope, after a check."""
    _base.check_choice("scope", scope, ("coordinate", *SCOPES))
    if scope != "coordinate":
        return Units(scope, layer_axis, axis_name)
    _base.check_static("layer_axis", layer_axis)
    if layer_axis is not None:
        raise ValueError('layer_axis needs scope "leaf": a coordinate has no layers.')
    return Coordinates()


def unit_vectors(units: Any, tree: Any, norms: _norms.Norm) -> Any:
    """``tree`` with each unit divided by its norm; 0 where that is 0.

    A unit whose norm is not finite becomes NaN.
    """
    return divide(units, tree, norms, norms.scaled)


def divide(units: Any, tree: Any, norms: _norms.Norm, lengths: Any) -> Any:
    """As `unit_vectors`, by other lengths, each in the scale of its norm."""

    def quotient(x, scaled, scale, length):
        ratio = _tree.safe_divide(x * scale, length)
        # Without the NaN an infinite norm would zero every finite entry, silently.
        return _tree.nan_unless(jnp.isfinite(scaled), ratio)

    return units.map(quotient, tree, *norms, lengths)


def zero_nonfinite(tree: Any) -> Any:
    """``tree`` with 0 in place of each inf and NaN."""
    return jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), tree)


def _sum(x, layer):
    return jnp.sum(x, axis=None if layer is None else _norms.other_axes(x, layer))


def _flat(x):
    return x[None] if x.ndim == 0 else _norms.whole_rows(x)


def _where(condition, x, other):
    if math.isnan(other):
        return _tree.nan_unless(condition, x)
    return jnp.where(condition, x, other)
