"""majority_vote and centered_clip: corrupted rows, dtypes, devices."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_heavytail import aggregation
from tests.compare import assert_trees_close
from tests.in_time import only
from tests.test_aggregation import make_mesh, make_rows, make_tree, split


def _center(grads):
    return jax.tree.map(lambda g: np.full(g.shape[1:], 0.25, g.dtype), grads)


def _moved(rows, center, threshold):
    """By the formula, in float64."""
    d = np.asarray(rows, np.float64) - center
    norms = np.linalg.norm(d, axis=1, keepdims=True)
    return center + np.mean(np.minimum(1, threshold / norms) * d, axis=0)


def test_votes_by_hand():
    grads = jnp.array([[1.0, -1e-9, 0.0, jnp.inf], [2.0, 5.0, jnp.nan, -1.0]])
    got = _vote(grads)
    np.testing.assert_array_equal(got, [1.0, 0.0, 0.0, 0.0])
    weighted = _vote(grads, weights=np.array([2, 1]))
    np.testing.assert_array_equal(weighted, [1.0, -1.0, 0.0, 1.0])


@hypothesis.given(st.integers(0, 1000), st.sampled_from([np.nan, np.inf, -1e30]))
@hypothesis.settings(max_examples=5, deadline=None)
def test_a_minority_changes_no_entry_on_which_the_others_agree(seed, value):
    rows = np.abs(make_rows(seed=seed)) + 0.1
    rows[:3] = value
    np.testing.assert_array_equal(_vote(rows), np.ones(7))


_vote = jax.jit(aggregation.majority_vote)


@pytest.mark.parametrize("num_iterations", only({4}, [1, 4]))
def test_centered_clip_as_in_float64(num_iterations):
    rows, want = make_rows(), np.full(7, 0.25)
    for _ in range(num_iterations):
        want = _moved(rows, want, 2.0)
    grads = split(rows)
    clip = functools.partial(_clip, threshold=2.0, num_iterations=num_iterations)
    got = clip(grads, _center(grads))
    np.testing.assert_allclose(got["a"], want[:-1], rtol=1e-5)
    np.testing.assert_allclose(got["b"], want[-1], rtol=1e-5)


@hypothesis.given(st.integers(0, 1000), st.sampled_from([1e38, -1e38, np.inf, np.nan]))
@hypothesis.settings(max_examples=8, deadline=None)
def test_a_microbatch_moves_the_center_by_its_share_alone(seed, value):
    rows, center = make_rows(seed=seed), np.full(7, 0.25, np.float32)
    rows[2] = center  # which moves nothing
    clean = np.asarray(_clip(rows, center))  # until then it may read the rows
    rows[2] = value
    shift = np.linalg.norm(_clip(rows, center) - clean)
    share = 2.0 / 8 if np.isfinite(value) else 0.0
    np.testing.assert_allclose(shift, share, rtol=1e-5, atol=1e-7)


_clip = jax.jit(
    functools.partial(aggregation.centered_clip, threshold=2.0),
    static_argnames="num_iterations",
)


def test_what_is_agreed_on_passes():
    """Where all are within the threshold of the center the result is their mean."""
    rows = 1e3 + make_rows() / 100
    got = _clip(rows, rows[0])
    np.testing.assert_allclose(got, rows.mean(0, dtype=np.float64), rtol=1e-6)


def test_far_numbers_neither_overflow_nor_vanish():
    for size in (3e38, 1e-30):
        rows = np.full((2, 4), [[size], [-size]], np.float32)
        got = _clip(rows, -rows[0], threshold=np.float32(size))
        np.testing.assert_allclose(got, np.full(4, -0.75 * size), rtol=1e-6)


@pytest.mark.parametrize("dtype", only({jnp.bfloat16}, [jnp.bfloat16, jnp.float16]))
def test_dtypes_and_shapes(dtype):
    grads = make_tree(dtype=dtype)
    for got in (
        jax.eval_shape(_vote, grads),
        jax.eval_shape(_clip, grads, _center(grads)),
    ):
        want = jax.tree.map(lambda x: (x.shape[1:], x.dtype), grads)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == want


@pytest.mark.parametrize(
    "kind", only({AxisType.Explicit}, [AxisType.Auto, AxisType.Explicit]), ids=str
)
def test_leading_axis_over_devices(kind):
    mesh, grads = make_mesh(kind), make_tree()
    center = _center(grads)
    want = _vote(grads), _clip(grads, center)
    specs = {"kernel": P("x", "y"), "bias": [P("x"), P(("x", "y"))], "none": None}
    with jax.set_mesh(mesh):
        placed = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), grads, specs
        )
        got = _vote(placed), _clip(placed, center)
    # From 0.25 to 0.001: the rounding of the former.
    assert_trees_close(got, want, 1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: aggregation.majority_vote(x, weights=[1]), r"shape \(8,\), got"),
        (lambda x: aggregation.centered_clip(x, x[0], 0.0), "threshold .* got 0.0"),
        (lambda x: aggregation.centered_clip(x, x, 1.0), r"shapes of one .*\(8, 7\)"),
        (lambda x: aggregation.centered_clip(x, {"a": x[0]}, 1.0), "one structure"),
        (
            lambda x: aggregation.centered_clip(x, x[0], 1.0, num_iterations=0),
            "num_iterations .* at least 1, got 0",
        ),
    ],
)
def test_bad_arguments_in_one_line(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call(jnp.asarray(make_rows()))
    assert "\n" not in str(error.value)
