"""Small leaves that are treated together, and how many programs that makes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht
from optax_heavytail import _norms, _parts
from optax_heavytail._units import Units
from tests.compare import as_float64


def mixed_tree():
    """Two shapes in turn, one large leaf, one leaf of layers: 24 leaves."""
    rng = np.random.default_rng(0)
    shapes = [(3,), (2, 2)] * 11
    shapes[5:5] = [(5000,), (4, 3)]
    return [
        np.float32(rng.normal(size=s) * 10.0 ** (i % 5)) for i, s in enumerate(shapes)
    ]


def test_parts_are_put_together_and_taken_apart():
    tree = mixed_tree()
    layers = [1 if x.shape == (4, 3) else None for x in tree]
    parts = _norms.parts_of([tree], None, layers)
    assert sorted(i for part in parts for i in part.places) == list(range(24))
    assert sorted(len(part.places) for part in parts) == [1, 1, 11, 11]
    joined = _parts.join(tree, parts)
    again = _parts.split([x.reshape(len(x), -1)[:, 0] for x in joined], parts)
    for x, got, layer in zip(tree, again, layers, strict=True):
        if layer is None and x.size < 5000:
            assert float(got) == x.reshape(-1)[0]


def test_units_are_in_the_order_of_the_leaves():
    tree = mixed_tree()
    layers = [1 if x.shape == (4, 3) else None for x in tree]
    units = Units("leaf", layers)
    want = np.concatenate(
        [
            np.linalg.norm(x, axis=0)
            if layer
            else np.linalg.norm(x.reshape(1, -1), 2, 1)
            for x, layer in zip(tree, layers, strict=True)
        ]
    )
    got = jax.jit(lambda tree: units.norms(tree).value)(tree)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    by_leaf = units.by_leaf(got, tree)
    assert [jnp.shape(x) for x in by_leaf] == [(3,) if k else () for k in layers]
    np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in by_leaf]), got)


def test_sizes_of_one_stack_do_not_disturb_each_other():
    sizes = [1e-30, 1.0, 1e30, 0.0, np.inf, np.nan]
    tree = [np.float32([3, 4]) * np.float32(size) for size in sizes]
    norms = jax.jit(lambda tree: [n.value for n in _norms.leaf_norms(tree)])(tree)
    got = as_float64(jnp.stack(norms))
    np.testing.assert_allclose(got, 5 * np.array(sizes), rtol=1e-6)


def programs(transform, count):
    """The different ones among the fusions of a step on so many leaves."""
    params = [jax.ShapeDtypeStruct((2, 3), "float32")] * count
    state = jax.eval_shape(transform.init, params)
    lowered = jax.jit(transform.update).lower(params, state, params)
    text = lowered.compile().as_text()
    found = re.findall(r"^%fused_computation[^{]*\{\n(.*?)^\}", text, re.M | re.S)
    # In any order: XLA numbers the operands as it comes upon them.
    return {
        tuple(sorted(re.findall(r"= (\S+ [\w-]+)\(", body)))
        + tuple(sorted(re.findall(r"(?:slice=|constant\()(\S+?)[,)\n]", body)))
        for body in found
    }


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda: oht.clip_by_history(scope="leaf"),
            id="history",
            marks=pytest.mark.nightly,
        ),
        pytest.param(oht.scale_by_clipped_trust_ratio, id="trust_ratio"),
    ],
)
def test_more_leaves_are_no_more_programs(make):
    """XLA compiles equal ones once: a number of the leaf in them would cost minutes."""
    few, many = (len(programs(make(), count)) for count in (48, 64))
    assert many <= few + 3  # those of everything: the sum over 3 or 4 stacks
