"""aggregate_with_error_feedback: one worker, bad ones, devices, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optax_heavytail as oht
from optax_heavytail import aggregation
from tests.compare import assert_trees_close, assert_trees_equal
from tests.driving import jitted
from tests.in_time import only

PARAMS = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(())}


def _rows(seed, n=4, scale=3.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: np.float32(scale * rng.normal(size=(n, *p.shape))),
        PARAMS,
    )


def _run(tx, history, params=PARAMS):
    state, out = tx.init(params), []
    for grads in history:
        updates, state = tx.update(grads, state)
        out.append(updates)
    return out, state


def test_one_worker_is_a_clipped_average():
    """With a momentum, of the average."""
    history = [_rows(k, n=1) for k in range(6)]
    tx = jitted(
        aggregation.aggregate_with_error_feedback(1, 0.5, momentum=0.25, feedback=0.75)
    )
    inner = oht.ema(0.75, debias=False)
    want = jitted(oht.clipped_ema(0.25, 0.5, inner=inner, scope="global"))
    alone = [jax.tree.map(lambda g: g[0], grads) for grads in history]
    for got, wanted in zip(_run(tx, history)[0], _run(want, alone)[0], strict=True):
        assert_trees_close(got, wanted, 1e-5)


def test_the_mean_of_workers_that_stand_still_is_reached():
    """In ceil(norm / threshold) steps, exactly."""
    tx = jitted(aggregation.aggregate_with_error_feedback(2, 2.0))
    grads = jnp.array([[3.0, 4.0], [1.0, -1.0]])
    out, state = _run(tx, [grads] * 3, jnp.zeros(2))
    np.testing.assert_allclose(
        out, [[1.1, 0.3], [1.7, 1.1], [2.0, 1.5]], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(state.estimates, grads, rtol=1e-6)
    assert state.mu is None


@pytest.mark.parametrize("momentum", only({0.5}, [1.0, 0.5]))
def test_a_worker_that_is_not_finite_says_nothing_new(momentum):
    tx = jitted(aggregation.aggregate_with_error_feedback(3, 1.0, momentum=momentum))
    first, good = _rows(0, n=3), _rows(1, n=3)
    state = tx.update(first, tx.init(PARAMS))[1]
    bad = good | {"w": good["w"].copy()}
    bad["w"][1, 0, 0] = np.nan
    updates, later = tx.update(bad, state)
    wanted = tx.update(good, state)[1]
    for name in ("mu", "estimates"):
        if getattr(state, name) is not None:
            got, old, new = (getattr(s, name) for s in (later, state, wanted))
            for row, source in ((0, new), (1, old), (2, new)):
                assert_trees_equal(*(_row(tree, row) for tree in (got, source)))
    assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))


def _row(tree, k):
    return jax.tree.map(lambda x: x[k], tree)


def test_workers_over_devices():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    local = aggregation.aggregate_with_error_feedback(1, 1.0, axis_name="data")
    tx = aggregation.aggregate_with_error_feedback(4, 1.0)
    grads = _rows(2)

    def two_steps(grads):
        out, state = _run(local, [grads, jax.tree.map(jnp.negative, grads)])
        return out, state.estimates

    on_devices = jax.shard_map(
        two_steps,
        mesh=mesh,
        in_specs=P("data"),
        out_specs=(P(), P("data")),
        check_vma=False,
    )
    out, state = _run(jitted(tx), [grads, jax.tree.map(jnp.negative, grads)])
    assert_trees_close(jax.jit(on_devices)(grads), (out, state.estimates), 1e-5)


def test_dtypes_are_kept_and_huge_gradients_clipped():
    tx = jitted(aggregation.aggregate_with_error_feedback(2, 1.0))
    grads = jnp.array([[3e38, 3e38], [0.0, 0.5]], jnp.bfloat16)
    updates, state = tx.update(grads, tx.init(jnp.zeros(2, jnp.bfloat16)))
    assert updates.dtype == jnp.bfloat16
    assert state.estimates.dtype == jnp.float32
    want = [0.5 * np.sqrt(0.5), 0.5 * np.sqrt(0.5) + 0.25]
    np.testing.assert_allclose(updates.astype(jnp.float32), want, rtol=1e-2)
    assert tx.update({}, tx.init({}))[0] == {}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_workers": 0}, "num_workers must be an integer of at least 1, got 0"),
        ({"threshold": 0.0}, r"threshold must be in \(0.0, inf\), got 0.0"),
        ({"momentum": 0.0}, r"momentum must be in \(0.0, 1.0\], got 0.0"),
        ({"feedback": 1.5}, r"feedback must be in \(0.0, 1.0\], got 1.5"),
    ],
)
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        aggregation.aggregate_with_error_feedback(
            **({"num_workers": 2, "threshold": 1.0} | kwargs)
        )


@pytest.mark.parametrize("shape", [(3, 2), (2,), ()])
def test_leaves_without_the_axis_of_the_workers(shape):
    tx = aggregation.aggregate_with_error_feedback(4, 1.0)
    with pytest.raises(ValueError, match="every leaf must have"):
        tx.update(jnp.ones(shape), tx.init(jnp.ones(2)))
