import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_trees_close, assert_trees_equal
from tests.driving import one_step
from tests.in_time import in_time

LAMBC = functools.partial(
    oht.lambc, 0.1, weight_decay=0.01, max_grad_norm=1.0, bias_correction=True
)


def make_tree(seed, num_layers=19):
    """Many small layers of two shapes, a large leaf, a scalar, an empty one, None."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(rng.standard_t(2, shape) * 10 ** rng.uniform(-2, 2))

    layers = [
        {"kernel": leaf(3, 4), "bias": leaf(4), "scale": leaf(4)}
        for _ in range(num_layers)
    ]
    tree = {
        "layers": layers,
        "embedding": leaf(300, 300),
        "head": leaf(300, 300),
        "temperature": leaf(),
        "empty": leaf(0, 3),
        "nothing": None,
    }
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def updates_of(tx, steps=3):
    params = make_tree(0)
    update = jax.jit(tx.update)
    state = tx.init(params)
    found = []
    for step in range(1, 1 + steps):
        updates, state = update(make_tree(step), state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found, state


@pytest.mark.parametrize(
    "inner",
    in_time(
        {
            "lambc": LAMBC,
            "larsc": functools.partial(oht.larsc, 0.1, weight_decay=0.01),
            "acclip": lambda layer_axis: oht.acclip(0.1),
            "neumann": lambda layer_axis: oht.neumann(0.01, repulsive_scale="params"),
            "chain": lambda layer_axis: optax.chain(
                oht.clip_by_norm(1.0), optax.adam(0.1)
            ),
        },
        ("larsc", "chain").__contains__,
    ),
)
def test_updates_are_what_they_were(inner):
    stacked, _ = updates_of(oht.stack_leaves(inner))
    plain, _ = updates_of(inner(layer_axis=None))
    for got, want in zip(stacked, plain, strict=True):
        assert_trees_close(got, want, rtol=2e-5)


def test_ratios_are_per_layer_as_flattening_has_them_not():
    params = {"a": jnp.full(4, 20.0), "b": jnp.full(4, 0.02)}
    grads = jax.tree.map(jnp.ones_like, params)

    def lengths(tx):
        updates = one_step(tx, grads, params)
        return [float(np.linalg.norm(updates[name])) for name in "ab"]

    inner = functools.partial(oht.lambc, 0.1, b1=0, b2=0, trust_ratio_bounds=None)
    wanted = lengths(inner())
    np.testing.assert_allclose(wanted, [4.0, 0.004], rtol=1e-5)
    np.testing.assert_allclose(lengths(oht.stack_leaves(inner)), wanted, rtol=1e-5)
    flat = lengths(optax.flatten(oht.lambc(0.1, b1=0, b2=0, trust_ratio_bounds=None)))
    np.testing.assert_allclose(flat[0], flat[1], rtol=1e-5)


def test_one_program_for_equal_leaves():
    """The trap: a program whose size grows with every leaf."""
    params = [jnp.full((16, 16), 1.0 + i) for i in range(64)]

    def size(tx):
        state = tx.init(params)
        text = jax.jit(tx.update).lower(params, state, params).as_text()
        return len(text.splitlines())

    naive = size(optax.chain(optax.clip_by_global_norm(1.0), optax.lamb(0.1)))
    assert size(oht.stack_leaves(LAMBC)) < naive / 3


def test_stacks_are_small_and_of_one_shape_and_label():
    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "kernel" if "kernel" in str(path) else "other", params
        )

    inner = functools.partial(oht.lambc, 0.1)
    state = oht.stack_leaves(inner, labels=labels).init(make_tree(0))
    mu = optax.tree.get(state, "mu")
    assert [x.shape for x in mu["kernel"]] == [(16, 3, 4), (3, 3, 4)]
    found = sorted(x.shape for x in mu["other"])
    vectors = [(16, 4), (16, 4), (6, 4)]
    large = [(1, 300, 300), (1, 300, 300)]
    assert found == sorted([*vectors, *large, (1,), (1, 0, 3)])


def test_masks_go_by_label():
    labels = {"kernel": "decay", "bias": "rest"}
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    inner = functools.partial(
        oht.lambc, 0.1, weight_decay=1.0, mask={"decay": True, "rest": False}
    )
    tx = oht.stack_leaves(inner, labels=labels)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = one_step(tx, zeros, params)
    assert np.all(updates["kernel"] == np.float32(-0.1))
    assert np.all(updates["bias"] == 0)


def test_leaves_of_one_stack_keep_their_dtypes():
    params = [jnp.ones(3, jnp.bfloat16), jnp.ones(3), jnp.ones(3, jnp.float16)]
    tx = oht.stack_leaves(LAMBC)
    state = tx.init(params)
    updates, new = jax.jit(tx.update)(params, state, params)
    assert [u.dtype for u in updates] == [p.dtype for p in params]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def test_without_parameters():
    grads = make_tree(1)
    tx = oht.stack_leaves(lambda layer_axis: oht.gclip(0.1, 1.0))
    plain = oht.gclip(0.1, 1.0)
    ours, want = jax.jit(
        lambda grads: [x.update(grads, x.init(grads))[0] for x in (tx, plain)]
    )(grads)
    assert_trees_close(ours, want, rtol=1e-5)


def test_python_numbers_are_leaves():
    params = {"a": 2.0, "b": 4.0, "c": np.ones(3)}
    grads = {"a": 1.0, "b": 1.0, "c": np.full(3, 0.5)}
    inner = functools.partial(oht.lambc, 0.1)
    stacked, plain = (  # closed over, they stay Python's
        jax.jit(lambda tx=tx: tx.update(grads, tx.init(params), params)[0])()
        for tx in (oht.stack_leaves(inner), inner())
    )
    assert_trees_close(stacked, plain, rtol=1e-6)


def test_no_leaves():
    tx = oht.stack_leaves(LAMBC)
    updates, _ = tx.update({}, tx.init({}), {})
    assert_trees_equal(updates, {})


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="layer_axis"):
        oht.stack_leaves(functools.partial(optax.lamb, 0.1))
    with pytest.raises(TypeError, match="labels must be strings, got 3"):
        oht.stack_leaves(LAMBC, labels=3).init(jnp.ones(2))
    with pytest.raises(TypeError, match="inner must be a function"):
        oht.stack_leaves(oht.lambc(0.1))
