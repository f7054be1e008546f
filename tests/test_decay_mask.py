"""Which leaves decay, in whatever containers they lie."""

import functools
import logging
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_trees_equal
from tests.driving import one_step
from tests.in_time import only

PARAMS = {
    "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "LayerNorm_0": {"scale": jnp.ones(3), "Bias": jnp.ones((4, 3))},
    "norm_out": {"kernel": jnp.ones((2, 2))},
    "vector": jnp.ones(5),
    "stacked": {"kernel": jnp.ones((4, 2, 3)), "rescale": jnp.ones((4, 3))},
}


def test_decay_mask():
    assert oht.decay_mask(PARAMS) == {
        "dense": {"kernel": True, "bias": False},
        "LayerNorm_0": {"scale": False, "Bias": False},
        "norm_out": {"kernel": False},
        "vector": False,
        "stacked": {"kernel": True, "rescale": False},
    }


def test_decay_mask_reports_what_it_covers(caplog):
    with caplog.at_level(logging.INFO, logger="optax_heavytail"):
        mask = oht.decay_mask(PARAMS)
    text = "2 of 8 leaves, 30 of 69 parameters"
    assert text in caplog.text
    coverage = oht.mask_coverage(mask, PARAMS)
    assert str(coverage) == text
    assert coverage == oht.MaskCoverage(2, 8, 30, 69)
    assert oht.mask_coverage(oht.decay_mask, PARAMS) == coverage
    assert oht.mask_coverage(True, PARAMS) == (8, 8, 69, 69)
    assert oht.mask_coverage(False, PARAMS) == (0, 8, 0, 69)


def test_decay_mask_works_on_shapes():
    abstract = jax.eval_shape(lambda: PARAMS)
    assert_trees_equal(oht.decay_mask(abstract), oht.decay_mask(PARAMS))


@pytest.mark.parametrize(
    ("params", "covered"),
    [
        ({"w": jnp.ones(3), "bias": jnp.ones((2, 2))}, "0 of 2 leaves, 0 of 7"),
        ({"w": jnp.ones((2, 2)), "v": jnp.ones((2, 3))}, "2 of 2 leaves, 10 of 10"),
        ({}, "0 of 0 leaves"),
    ],
    ids=["empty", "total", "no leaves"],
)
def test_decay_mask_must_cover_some_leaves_and_not_all(params, covered):
    with pytest.raises(ValueError, match=f"decay_mask covers {covered}.*not all"):
        oht.decay_mask(params)


def test_mask_coverage_needs_a_prefix():
    with pytest.raises(ValueError, match="key"):
        oht.mask_coverage({"dense": True}, PARAMS)


class Layer(NamedTuple):
    w: jax.Array
    b: jax.Array


def shapes(*sizes):
    return [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]


W, B = shapes((2, 3), (3,))
STACKED_W, STACKED_B, STACKED_TORCH_W = shapes((5, 2, 3), (5, 3), (5, 3, 2))
CONV_W, CONV_B = shapes((5, 3, 3, 8, 16), (5, 16))

TREES = {
    "pair": ((W, B), (True, False)),
    "three": ((W, B, B), (True, False, False)),
    "stax": ([(W, B), (), (W, B)], [(True, False), (), (True, False)]),
    "in a dict": (
        {"layers": ((W, B),), "a": W},
        {"layers": ((True, False),), "a": True},
    ),
    "named tuples": ([Layer(W, B), Layer(W, B)], [Layer(True, False)] * 2),
    "stacked pair": ((STACKED_W, STACKED_B), (True, False)),
    "stacked, out first": ((STACKED_TORCH_W, STACKED_B), (True, False)),
    "stacked named tuple": (Layer(STACKED_W, STACKED_B), Layer(True, False)),
    "stacked haiku": ({"w": CONV_W, "b": CONV_B}, {"w": True, "b": False}),
    "stacked norm": (
        {"ln": {"weight": STACKED_B, "bias": STACKED_B}, "fc": {"weight": STACKED_W}},
        {"ln": {"weight": False, "bias": False}, "fc": {"weight": True}},
    ),
    "low rank": ({"a": W, "b": W, "bias": B}, {"a": True, "b": True, "bias": False}),
    "None": ({"w": W, "frozen": None, "b": B}, {"w": True, "frozen": None, "b": False}),
}


@pytest.mark.parametrize("name", TREES)
def test_containers_of_any_kind(name):
    params, want = TREES[name]
    assert oht.decay_mask(params) == want
    covered = oht.mask_coverage(want, params)
    assert covered.leaves == sum(jax.tree.leaves(want))
    assert covered.total_leaves == len(jax.tree.leaves(params))


class Block(eqx.Module):
    ln1: eqx.nn.LayerNorm
    attn: eqx.nn.Linear
    mlp: eqx.nn.MLP

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.ln1 = eqx.nn.LayerNorm(4)
        self.attn = eqx.nn.Linear(4, 4, key=first)
        self.mlp = eqx.nn.MLP(4, 4, 8, 1, key=second)


@pytest.mark.parametrize("is_stacked", only({True}, [False, True]))
def test_equinox_with_layers_in_a_tuple_and_stacked(is_stacked):
    keys = jax.random.split(jax.random.key(0), 3)
    model = eqx.filter_vmap(Block)(keys) if is_stacked else Block(keys[0])
    params = eqx.filter(model, eqx.is_inexact_array)
    mask = oht.decay_mask(params)
    assert (mask.ln1.weight, mask.ln1.bias) == (False, False)
    layers = [mask.attn, *mask.mlp.layers]
    assert [(x.weight, x.bias) for x in layers] == [(True, False)] * 3
    tx = oht.add_decayed_weights(0.5, oht.decay_mask)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = one_step(tx, zeros, params)
    np.testing.assert_array_equal(updates.ln1.weight, 0)
    np.testing.assert_array_equal(updates.attn.weight, 0.5 * params.attn.weight)


def test_equinox_layers_in_a_row():
    keys = jax.random.split(jax.random.key(0), 2)
    first, last = (eqx.nn.Linear(4, 4, key=key) for key in keys)
    model = eqx.nn.Sequential([first, eqx.nn.Lambda(jax.nn.relu), last])
    mask = oht.decay_mask(eqx.filter(model, eqx.is_inexact_array))
    assert [(mask[i].weight, mask[i].bias) for i in (0, 2)] == [(True, False)] * 2


@pytest.mark.parametrize(
    "norm",
    [
        eqx.nn.RMSNorm,
        pytest.param(functools.partial(eqx.nn.GroupNorm, 2), marks=pytest.mark.nightly),
    ],
)
def test_further_norms_of_equinox_stacked(norm):
    """And twice stacked."""

    def make(key):
        return {"n": norm(4), "fc": eqx.nn.Linear(4, 4, key=key)}

    keys = jax.random.split(jax.random.key(0), (3, 2))
    blocks = eqx.filter_vmap(eqx.filter_vmap(make))(keys)
    mask = oht.decay_mask(eqx.filter(blocks, eqx.is_inexact_array))
    assert (mask["n"].weight, mask["n"].bias) == (False, False)
    assert (mask["fc"].weight, mask["fc"].bias) == (True, False)


@jax.tree_util.register_pytree_node_class
class Nameless:
    """A container of a user's own, whose children have no names."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, aux, children):
        del aux
        return cls(*children)


def test_a_container_of_ones_own_without_names():
    mask = oht.decay_mask(Nameless(W, B, Nameless(STACKED_W, STACKED_B)))
    assert jax.tree.leaves(mask) == [True, False, True, False]


def test_a_rule_decides_before_all_else():
    seen = []

    def rule(path, leaf):
        seen.append((path, leaf.shape))
        return {"blocks/ln/weight": False, "scale": True}.get(path)

    params = {"blocks": {"ln": {"weight": STACKED_B}, "w": STACKED_W}, "scale": B}
    mask = functools.partial(oht.decay_mask, rule=rule)(params)
    assert mask == {"blocks": {"ln": {"weight": False}, "w": True}, "scale": True}
    assert dict(seen)["blocks/w"] == (5, 2, 3)


def _first(updates):
    return [float(np.ravel(x)[0]) for x in jax.tree.leaves(updates)]


def test_inside_masks_and_partitions():
    layer = {"bias": jnp.ones(2), "kernel": jnp.full((2, 2), 2.0)}
    params = {"enc": layer, "head": layer}
    ones = jax.tree.map(jnp.ones_like, params)
    decay = oht.add_decayed_weights(0.5, oht.decay_mask)
    groups = {"train": decay, "rest": optax.identity()}
    for tx in (
        optax.masked(decay, {"enc": True, "head": False}),
        optax.partition(groups, {"enc": "train", "head": "rest"}),
    ):
        assert _first(tx.update(ones, tx.init(params), params)[0]) == [1, 2, 1, 1]
    # A group of matrices alone is no mistake: the biases are in another one.
    labels = jax.tree.map(lambda p: "train" if p.ndim > 1 else "rest", params)
    tx = optax.partition(groups, labels)
    assert _first(tx.update(ones, tx.init(params), params)[0]) == [1, 2, 1, 2]


def test_a_mask_of_ones_own_in_a_partition():
    layer = {"bias": jnp.ones(2), "kernel": jnp.full((2, 2), 2.0)}
    params = {"enc": layer, "head": layer}
    ones = jax.tree.map(jnp.ones_like, params)
    masks = (
        lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
        functools.partial(oht.decay_mask, rule=lambda path, leaf: leaf.ndim > 1),
        jax.tree_util.Partial(oht.decay_mask),
    )
    for mask in masks:
        groups = {"train": oht.add_decayed_weights(0.5, mask), "rest": optax.identity()}
        tx = optax.partition(groups, {"enc": "train", "head": "rest"})
        assert _first(tx.update(ones, tx.init(params), params)[0]) == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("leaf", "shown"),
    [
        ("no", "'no'"),
        (0, "0"),
        (0.1, r"0\.1"),
        (jnp.ones((2, 2), bool), r"an array of shape \(2, 2\)"),
        (jnp.float32(1), r"Array\(1"),
    ],
    ids=["word", "integer", "number", "array", "array of a number"],
)
@pytest.mark.parametrize("is_function", [False, True])
def test_a_mask_of_anything_but_bools_is_refused(leaf, shown, is_function):
    """Each of these would be true or false, as a number for each leaf is not meant."""
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    mask = {"w": True, "b": leaf}
    given = (lambda _: mask) if is_function else mask
    message = rf"a mask must be a tree of bools, .* but \['b'\] is {shown}"
    for use in (
        oht.add_decayed_weights(0.5, given).init,
        oht.acclip(0.1, weight_decay=0.1, mask=given).init,
        oht.lambc(0.1, trust_ratio_mask=given).init,
        functools.partial(oht.mask_coverage, given),
    ):
        with pytest.raises(TypeError, match=message):
            use(params)


def test_bools_of_numpy_and_jax_are_bools():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    for kind in (np.bool_, jnp.bool_):
        mask = {"w": kind(True), "b": kind(False)}
        assert oht.mask_coverage(mask, params).leaves == 1
        tx = oht.add_decayed_weights(0.5, mask)
        updates = tx.update(params, tx.init(params), params)[0]
        assert _first(updates) == [1, 1.5]


def test_a_leaf_that_is_no_array_is_named():
    params = {"w": jnp.ones((2, 2)), "odd": jax.nn.relu}
    for read in (oht.decay_mask, functools.partial(oht.mask_coverage, True)):
        with pytest.raises(TypeError, match=r"\['odd'\] is a custom_jvp"):
            read(params)
