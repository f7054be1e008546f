"""SAGA and SAG: worked values, a sum that stays the table's, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optax_heavytail as oht
from tests.compare import assert_trees_equal
from tests.driving import jitted


def _sum(state):
    """What the state says the sum of its table is: of three or four groups."""
    return jax.tree.map(lambda t, r: 4 * (t + r), state.total, state.rest)


def _descend(tx, grad_fn, x, groups, rate):
    """Updates and iterates of each step, and the last state."""

    def step(carry, group):
        x, state = carry
        update, state = tx.update(grad_fn(x, group), state, group=group)
        x = x - rate * update
        return (x, state), (update, x)

    (_, state), out = jax.jit(lambda c, g: jax.lax.scan(step, c, g))(
        (x, tx.init(x)), jnp.asarray(groups)
    )
    return *map(np.asarray, out), state


def test_worked():
    with jax.enable_x64(True):
        a, b = jnp.array([1.0, 3.0]), jnp.array([0.0, 4.0])
        updates, iterates, state = _descend(
            oht.saga(2),
            lambda x, j: a[j] * (x - b[j]),
            jnp.array(0.0),
            [0, 1, 0, 1, 1],
            0.1,
        )
        assert state.total.dtype == updates.dtype == jnp.float64
    np.testing.assert_allclose(updates, [0, -12, -4.8, -0.36, -2.772], atol=1e-14)
    np.testing.assert_allclose(iterates, [0, 1.2, 1.68, 1.716, 1.9932], atol=1e-14)


def test_sag_is_the_mean_over_the_groups_seen():
    tx = jitted(oht.saga(9, variant="sag"))
    state, got = tx.init(jnp.array(0.0)), []
    for group, grad in [(3, 6.0), (3, 2.0), (0, 4.0), (3, np.nan), (8, 0.0)]:
        update, state = tx.update(jnp.array(grad), state, group=group)
        got.append(update)
    np.testing.assert_array_equal(got, [6, 2, 3, np.nan, 2])
    np.testing.assert_array_equal(np.flatnonzero(state.seen), [0, 3, 8])


def test_one_group_is_gradient_descent():
    grads = np.random.default_rng(0).standard_t(1.5, size=(20, 4)).astype(np.float32)
    tx = jitted(oht.saga(1))
    state = tx.init(jnp.zeros(4))
    for g in grads:
        update, state = tx.update(jnp.asarray(g), state, group=0)
        np.testing.assert_allclose(update, g, rtol=1e-5)


def test_the_mean_over_the_groups_is_the_gradient_whatever_is_in_the_table():
    tx, state = jitted(oht.saga(4)), oht.saga(4).init(jnp.zeros(3))
    rng = np.random.default_rng(1)
    for group in (0, 2, 2, 3):
        _, state = tx.update(jnp.asarray(rng.normal(size=3)), state, group=group)
    grads = jnp.asarray(rng.normal(size=(4, 3)))
    updates = [tx.update(g, state, group=j)[0] for j, g in enumerate(grads)]
    np.testing.assert_allclose(
        np.mean(updates, 0), np.mean(grads, 0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_huge_gradient_leaves_nothing_in_the_sum(dtype):
    """Whose rounding is 1e5. After three updates more the table is added up."""
    tx = jitted(oht.saga(3, table_dtype=dtype))
    state = tx.init(jnp.zeros(5))
    rng = np.random.default_rng(2)
    for k in range(12):
        grad = rng.normal(size=5) * (1e12 if k in (3, 4, 7) else 1.0)
        _, state = tx.update(jnp.asarray(grad, jnp.float32), state, group=k % 3)
    table = np.asarray(state.table, np.float64)
    np.testing.assert_allclose(_sum(state), table.sum(0), rtol=1e-6, atol=1e-7)
    assert np.abs(table).max() < 10


def test_the_sum_is_right_before_it_is_added_up_anew():
    """One float would keep the rounding of 1e6, which is 0.06."""
    tx = jitted(oht.saga(4))
    state = tx.init(jnp.zeros(2))
    for group, grad in ((0, [0.3e6, 1e6]), (1, [0.1, 0.7]), (0, [0.2, 0.3])):
        _, state = tx.update(jnp.array(grad), state, group=group)
    np.testing.assert_allclose(_sum(state), [0.3, 1.0], rtol=1e-6)


def test_huge_gradients_have_a_mean():
    tx = jitted(oht.saga(3))
    state = tx.init(jnp.zeros(2))
    for group in (0, 1, 2, 0):
        update, state = tx.update(jnp.full(2, 3e38), state, group=group)
    np.testing.assert_allclose(update, 3e38, rtol=1e-6)


@pytest.mark.parametrize("variant", ["saga", "sag"])
def test_least_squares_whose_groups_disagree(variant):
    """To the last digits, at a constant rate; plain steps stall far away."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 4, 5, 2)), rng.normal(size=(4, 5))
    x = x[0]
    groups = rng.integers(0, 4, 1500)
    want = np.linalg.lstsq(x.reshape(20, 2), y.reshape(20), rcond=None)[0]

    def grad_fn(w, j):
        return jnp.asarray(x)[j].T @ (jnp.asarray(x)[j] @ w - jnp.asarray(y)[j]) / 5

    with jax.enable_x64(True):
        path = _descend(
            oht.saga(4, variant=variant), grad_fn, jnp.zeros(2), groups, 0.1
        )[1]
        np.testing.assert_allclose(path[-1], want, atol=1e-10)


@pytest.mark.parametrize(
    ("grads", "group"),
    [
        ({"a": jnp.array([1.0, jnp.nan]), "b": jnp.array(1.0)}, 1),
        ({"a": jnp.array([1.0, 2.0]), "b": jnp.array(-jnp.inf)}, 1),
        ({"a": jnp.ones(2), "b": jnp.array(1.0)}, -1),
        ({"a": jnp.ones(2), "b": jnp.array(1.0)}, 3),
    ],
)
def test_what_is_no_gradient_or_no_group_is_loud_and_leaves_nothing(grads, group):
    """A group that is traced cannot be refused."""
    tx = jitted(oht.saga(3, variant="sag"))
    state = tx.init(jax.tree.map(jnp.zeros_like, grads))
    good = jax.tree.map(jnp.ones_like, grads)
    _, state = tx.update(good, state, group=0)
    updates, later = tx.update(grads, state, group=group)
    assert all(np.all(np.isnan(u)) for u in jax.tree.leaves(updates))
    assert_trees_equal(later._replace(count=state.count), state)


def test_one_shard_that_is_not_finite_is_so_for_all():
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
    tx = oht.saga(2, axis_name="x")

    def update(g):
        return tx.update(g, tx.init(g), group=0)[0]

    grads = jnp.array([1.0, 2.0, jnp.nan, 4.0])
    shard = jax.shard_map(update, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    assert np.all(np.isnan(jax.jit(shard)(grads)))


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({}, ValueError, "needs the number of the group .* group=group"),
        ({"group": 3}, ValueError, r"group must be in \[0, 3\), got 3"),
        ({"group": -1}, ValueError, r"group must be in \[0, 3\), got -1"),
        ({"group": 1.0}, TypeError, "group must be one integer, got 1.0"),
        ({"group": True}, TypeError, "group must be one integer, got True"),
        ({"group": np.zeros(2, int)}, TypeError, "group must be one integer"),
        ({"group": "a"}, TypeError, "group must be one integer, got 'a'"),
    ],
)
def test_groups_that_are_none(group, error, message):
    tx = oht.saga(3)
    with pytest.raises(error, match=message):
        tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)), **group)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_groups": 0}, "num_groups must be an integer of at least 1, got 0"),
        ({"num_groups": 2.0}, "num_groups must be a Python integer"),
        ({"num_groups": 2, "variant": "svrg"}, "variant must be one of .* got 'svrg'"),
        ({"num_groups": 2, "table_dtype": jnp.float16}, "table_dtype must be None"),
    ],
)
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        oht.saga(**kwargs)
