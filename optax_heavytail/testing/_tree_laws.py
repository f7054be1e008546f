"""The default laws about the shape of the tree and where its leaves lie."""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_heavytail.testing import _compare
from optax_heavytail.testing._compare import Broken, explain
from optax_heavytail.testing._run import (
    Skipped,
    close,
    close_updates,
    law,
)
from optax_heavytail.testing._trial import Trial, steps


@law
def check_masked(trial: Trial) -> None:
    """``optax.masked`` passes the first leaf on and leaves it out of account.

    The others get what they get when the first is ``None``.
    """
    _needs_two_leaves(trial)
    tx = optax.masked(trial.tx, _first_or_rest(trial.wide, False, True))
    _assert_first_apart(trial, tx, 1.0, "masked")


@law
def check_partition(trial: Trial) -> None:
    """``optax.partition`` runs the transform on its own group alone.

    The first leaf is given to ``optax.scale(-0.5)``. The others get what they get when
    the first is ``None``.
    """
    _needs_two_leaves(trial)
    groups: dict[Hashable, Any] = {"own": trial.tx, "other": optax.scale(-0.5)}
    tx = optax.partition(groups, _first_or_rest(trial.wide, "other", "own"))
    _assert_first_apart(trial, tx, -0.5, "partitioned")


def _assert_first_apart(trial, tx, factor, what):
    params = _without_first(trial.wide)
    update = jax.jit(trial.bind(tx))

    def holds(grads):
        got = steps(update, grads, tx.init(trial.wide), trial.wide)
        want = trial.history([_without_first(g) for g in grads], params)
        rest = [(_without_first(u), state) for u, state in got]
        close_updates(rest, want, trial.tolerance, f"{what}, update")
        for (updates, _), g in zip(got, grads, strict=True):
            first = jax.tree.leaves(updates)[0]
            want_first = factor * jax.tree.leaves(g)[0]
            _compare.same_bits(first, want_first, f"{what}, the first leaf's update")

    trial.search(holds, trial.wide)


@law
def check_none(trial: Trial) -> None:
    """A ``None`` in place of the first leaf stays ``None``, and nothing else changes.

    So Equinox marks what is not trained. The updates keep the gradients' types and are
    finite, the state keeps its own.
    """
    _needs_two_leaves(trial)
    params = _without_first(trial.params)
    grads = _without_first(trial.fixed[0])
    state = jax.eval_shape(trial.tx.init, params)
    updates, new = jax.eval_shape(trial.update, grads, state, params)
    _compare.same_types(updates, grads, "update")
    _compare.same_types(new, state, "state")
    params = _without_first(trial.wide)
    trial.search(lambda grads: _assert_runs(trial.jitted, trial, grads, params), params)


@law
def check_empty(trial: Trial) -> None:
    """Trees without leaves, and leaves without entries, pass.

    ``{}``, ``()``, ``{"a": None}`` and a leaf of shape (0, 3). A transform made for one
    tree, as with a mask that is a tree, cannot keep this law or that of one scalar.
    """
    for params in ({}, (), {"a": None}, {"a": jnp.zeros((0, 3), jnp.float32)}):
        try:
            _assert_runs(trial.update, trial, [params, params], params)
        except Exception as error:
            raise Broken(f"on the tree {params}: {explain(error)}") from error


@law
def check_scalar(trial: Trial) -> None:
    """Parameters that are one scalar array get a finite scalar update.

    A transform made for one tree cannot keep this law; see `check_empty`.
    """
    params = jnp.asarray(1.5, jnp.float32)
    trial.search(lambda grads: _assert_runs(trial.jitted, trial, grads, params), params)


def _assert_runs(update, trial, grads, params):
    state = trial.tx.init(params)
    for g, (updates, new) in zip(
        grads, steps(update, grads, state, params), strict=True
    ):
        _compare.same_types(updates, g, "update")
        _compare.same_types(new, state, "state")
        _compare.finite(updates, "update")


@law
def check_sharding(trial: Trial) -> None:
    """Sharded over two devices under ``jit``: the same numbers, and shardings stay.

    Every leaf with a dimension of even length is split along the first of them. The
    updates, and the floats of the state that stand at a parameter's place in a tree of
    its own and have its shape, stay split as the parameter is. Needs two devices.
    """
    devices = jax.devices()[:2]
    if len(devices) < 2:
        raise Skipped("needs two devices, and jax has one here")
    if not any(_split(x) != PartitionSpec() for x in jax.tree.leaves(trial.wide)):
        raise Skipped("needs a leaf with a dimension of even length")
    mesh = jax.make_mesh((2,), ("shard",), (AxisType.Auto,), devices=devices)

    def place(tree):
        return jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh, _split(x))), tree
        )

    params = place(trial.wide)

    def holds(grads):
        state = trial.tx.init(params)
        got = steps(trial.jitted, [place(g) for g in grads], state, params)
        close(got, trial.history(grads, trial.wide), trial.tolerance, "sharded")
        for tree in (state, *got):
            _assert_placed_like(tree, params)

    trial.search(holds, trial.wide, 2, at_least=2, is_eager=True)


def _split(leaf):
    even = [d for d, n in enumerate(leaf.shape) if n and n % 2 == 0]
    return PartitionSpec(*[None] * even[0], "shard") if even else PartitionSpec()


def _assert_placed_like(tree, params):
    split = [(path, x) for path, x in _compare.with_paths(params) if _split(x)]
    for path, leaf in _compare.with_paths(tree):
        twins = [
            x.sharding
            for place, x in split
            if path.endswith(place) and leaf.shape == x.shape
        ]
        want = twins[0] if twins and _compare.is_float(leaf) else None
        if want is not None and not leaf.sharding.is_equivalent_to(want, leaf.ndim):
            raise Broken(
                f"sharded, (update, state){path} has {leaf.sharding} and not {want}"
            )


def _first_or_rest(tree, first, rest):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([first] + [rest] * (len(leaves) - 1))


def _without_first(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([None, *leaves[1:]])


def _needs_two_leaves(trial):
    if len(jax.tree.leaves(trial.params)) < 2:
        raise Skipped("needs params of two leaves or more")
