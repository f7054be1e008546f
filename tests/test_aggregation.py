"""Aggregation of microbatches: against float64, corrupted rows, devices."""

import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_heavytail import aggregation
from optax_heavytail.aggregation import _rows
from tests.compare import assert_trees_close, assert_trees_equal
from tests.in_time import in_time, only

CLIPPED = functools.partial(aggregation.mean_of_clipped, max_norm=2.0)
TRIMMED = functools.partial(aggregation.trimmed_mean, trim=1)
MEDIAN_OF_MEANS = functools.partial(aggregation.median_of_means, num_groups=4)
ALL = {
    "mean": aggregation.mean,
    "mean_of_clipped": CLIPPED,
    "coordinate_median": aggregation.coordinate_median,
    "trimmed_mean": TRIMMED,
    "geometric_median": aggregation.geometric_median,
    "median_of_means": MEDIAN_OF_MEANS,
}
JITTED = {name: jax.jit(fn) for name, fn in ALL.items()}
LONG_MEDIAN = jax.jit(
    functools.partial(aggregation.geometric_median, num_iterations=300)
)
TRIM = jax.jit(aggregation.trimmed_mean, static_argnames="trim")
WEIGHTED = ("mean", "mean_of_clipped", "geometric_median")
ROBUST = ("coordinate_median", "trimmed_mean", "geometric_median", "median_of_means")
each = pytest.mark.parametrize("name", ALL)
each_weighted = pytest.mark.parametrize("name", WEIGHTED)
each_robust = pytest.mark.parametrize("name", ROBUST)


def quick(*names):
    """Each of them; the others than these wait for the nightly."""
    cases = in_time({name: name for name in ALL}, names.__contains__)
    return pytest.mark.parametrize("name", cases)


# Few shapes, as each one compiles; entries that are no sums of each other's roundings.
ROWS = hypothesis.extra.numpy.arrays(
    np.float32, (8, 7), elements=st.floats(-100, 100, width=16)
)


def split(rows):
    """The same numbers as a tree of two leaves, the second of rank 1."""
    return {"a": rows[:, :-1], "b": rows[:, -1]}


def join(tree):
    return np.concatenate([np.asarray(tree["a"]), np.asarray(tree["b"])[None]])


def make_rows(n=8, size=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_t(3, (n, size)).astype(np.float32)


def make_tree(n=8, dtype=jnp.float32, seed=0):
    rows = jnp.asarray(make_rows(n, 12, seed))
    kernel, bias = rows[:, :8].reshape(n, 4, 2), rows[:, 8:]
    return {"kernel": kernel.astype(dtype), "bias": [bias, rows[:, 0]], "none": None}


def nearest_point(rows, weights=None):
    """The geometric median in float64, by a solver that knows nothing of Weiszfeld."""
    rows = np.asarray(rows, np.float64)
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights)

    def objective(y, eps):
        return weights @ np.sqrt(np.sum((rows - y) ** 2, axis=1) + eps**2)

    y = np.median(rows, axis=0)
    for eps in 10.0 ** -np.arange(1, 9):  # smoothed less and less
        y = scipy.optimize.minimize(objective, y, args=(eps,), method="BFGS").x
    return min([y, *rows], key=lambda point: objective(point, 0.0))


def sum_of_distances(rows, y, weights=None):
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights)
    return weights @ np.linalg.norm(np.asarray(rows, np.float64) - y, axis=1)


# Against float64 in NumPy and SciPy.


@pytest.mark.parametrize(
    "n", in_time({str(n): n for n in (1, 2, 5, 8, 17, 40)}, ("5", "17").__contains__)
)
def test_median_and_trimmed_mean(n):
    """Also above the 16 rows up to which they are ordered by a network."""
    rows = make_rows(n)
    got = JITTED["coordinate_median"](split(rows))
    np.testing.assert_allclose(join(got), np.median(rows, axis=0), rtol=1e-6)
    for trim in {0, (n - 1) // 4, (n - 1) // 2}:
        want = scipy.stats.trim_mean(rows.astype(np.float64), (trim + 0.5) / n, axis=0)
        got = TRIM(split(rows), trim)
        np.testing.assert_allclose(join(got), want, rtol=3e-6, atol=1e-6)


def test_fractions_are_rounded_down():
    rows = make_rows(100, 2)
    for fraction, trim in [(0.29, 29), (0.295, 29), (0.01, 1), (0.4999, 49), (0.0, 0)]:
        assert_trees_equal(
            aggregation.trimmed_mean(rows, fraction),
            aggregation.trimmed_mean(rows, trim),
        )


@pytest.mark.parametrize("n", range(1, 17))
def test_the_network_sorts(n):
    """By the 0-1 principle: what orders all zeros and ones orders everything."""
    bits = np.arange(2**n) >> np.arange(n)[:, None] & 1
    rows = list(bits)
    for i, j in _rows._network(n):
        rows[i], rows[j] = np.minimum(rows[i], rows[j]), np.maximum(rows[i], rows[j])
    np.testing.assert_array_equal(rows, np.sort(bits, axis=0))


@pytest.mark.parametrize("weights", [None, [1, 2, 0, 4, 1, 1, 3, 0.5]], ids=str)
def test_means(weights):
    rows = make_rows()
    array = None if weights is None else np.array(weights)
    got = JITTED["mean"](split(rows), weights=array)
    want = np.average(rows.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(join(got), want, rtol=1e-5, atol=1e-6)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    assert np.min(norms) < 2 < np.max(norms)
    clipped = rows * np.minimum(1, 2 / norms)
    got = JITTED["mean_of_clipped"](split(rows), weights=array)
    want = np.average(clipped, axis=0, weights=weights)
    np.testing.assert_allclose(join(got), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [None, [1, 2, 0, 4, 1, 1, 3, 0.5]], ids=str)
@pytest.mark.parametrize("seed", only({1}, range(3)))
def test_geometric_median(weights, seed):
    rows = make_rows(8, 4, seed)
    array = None if weights is None else np.array(weights)
    want = nearest_point(rows, weights)
    got = join(LONG_MEDIAN(split(rows), weights=array))
    best = sum_of_distances(rows, want, weights)
    assert sum_of_distances(rows, got, weights) <= best * (1 + 1e-6)
    np.testing.assert_allclose(got, want, atol=2e-3)  # the sum is flat there
    # The default of 8 steps: closer than the noise of one row by far.
    got = join(JITTED["geometric_median"](split(rows), weights=array))
    assert sum_of_distances(rows, got, weights) <= best * 1.01


def test_geometric_median_leaves_a_wrong_microbatch():
    """The coordinate-wise median is the first row, which is not the geometric one."""
    rows = [[0, 0], [10, -0.1], [8, -0.1], [-0.1, 9], [-0.1, 10]]
    rows = np.array(rows, np.float32)
    np.testing.assert_array_equal(np.median(rows, axis=0), rows[0])
    want = nearest_point(rows)
    assert np.linalg.norm(want) > 1
    np.testing.assert_allclose(LONG_MEDIAN(rows), want, atol=1e-3)


def test_geometric_median_leaves_the_rounding_of_a_wrong_microbatch():
    """As far from it as float32 can tell, which 8 plain steps do not get away from."""
    rows = np.full((8, 7), 6e-8, np.float32)
    for i in range(7):
        rows[i] = np.roll([100, 100, 100, 0, 0, 0, 0], i)  # each median is 0
    want = nearest_point(rows)
    assert np.linalg.norm(want) > 50
    got = JITTED["geometric_median"](rows)
    best = sum_of_distances(rows, want)
    assert sum_of_distances(rows, np.asarray(got)) <= 1.01 * best


def test_geometric_median_stays_on_the_right_microbatch():
    rows = np.array([[0, 0], [4, 0], [-1, 3], [-1, -3], [0, 0]], np.float32)
    np.testing.assert_array_equal(JITTED["geometric_median"](rows), [0, 0])


def test_median_of_means():
    rows = make_rows(12, 4)
    means = rows.reshape(3, 4, 4).mean(axis=1)
    fn = functools.partial(aggregation.median_of_means, num_iterations=300)
    fn = jax.jit(fn, static_argnames="num_groups")
    got = join(fn(split(rows), num_groups=3))
    np.testing.assert_allclose(got, nearest_point(means), atol=2e-3)
    got = fn(rows, num_groups=1)
    np.testing.assert_allclose(got, rows.mean(axis=0), atol=1e-6)


# Properties.


@each
@hypothesis.given(rows=ROWS, seed=st.integers(0, 99))
def test_order_does_not_matter(name, rows, seed):
    if name == "median_of_means":  # but for which of them share a group
        order = np.random.default_rng(seed).permutation(4)
        mixed = rows.reshape(4, 2, 7)[order].reshape(8, 7)
    else:
        mixed = np.random.default_rng(seed).permutation(rows)
    got, want = JITTED[name](mixed), JITTED[name](rows)
    np.testing.assert_allclose(got, want, atol=2e-4)  # of entries of 100


SHIFTS = {"shift": st.integers(-50, 50), "power": st.integers(-60, 60)}


@pytest.mark.parametrize("name", ["mean", "coordinate_median", "trimmed_mean"])
@hypothesis.given(rows=ROWS, **SHIFTS)
def test_shift_and_scale(name, rows, shift, power):
    want = JITTED[name](rows)
    got = JITTED[name](rows + np.float32(shift)) - shift
    np.testing.assert_allclose(got, want, atol=2e-4)  # of entries of 150
    scale = np.float32(2.0**power)
    np.testing.assert_allclose(JITTED[name](rows * scale) / scale, want, atol=2e-4)


@hypothesis.given(rows=ROWS, power=SHIFTS["power"])
def test_scale_of_the_mean_of_clipped(rows, power):
    scale = np.float32(2.0**power)
    got = JITTED["mean_of_clipped"](rows * scale, max_norm=2 * scale) / scale
    np.testing.assert_allclose(got, JITTED["mean_of_clipped"](rows), atol=1e-5)


@pytest.mark.parametrize("name", ["geometric_median", "median_of_means"])
@hypothesis.given(rows=ROWS, **SHIFTS)
def test_shift_and_scale_of_the_geometric_median(name, rows, shift, power):
    """Sums of distances agree; where these are flat, so few steps may part by more."""
    points = rows if name == "geometric_median" else rows.reshape(4, 2, 7).mean(axis=1)
    scale = np.float32(2.0**power)
    sums = [
        sum_of_distances(points, np.asarray(y))
        for y in (
            JITTED[name](rows),
            JITTED[name](rows + np.float32(shift)) - shift,
            JITTED[name](rows * scale) / scale,
        )
    ]
    assert max(sums) <= 1.01 * min(sums) + 1e-3


@each_robust
@hypothesis.given(
    rows=ROWS,
    value=st.sampled_from([1e6, -1e6, 1.5e38, np.inf, -np.inf, np.nan, 0.0]),
    seed=st.integers(0, 99),
)
def test_corrupted_microbatches(name, rows, value, seed):
    """One in eight, or as many as the function stands: 3, the trim, or one group."""
    number = {"coordinate_median": 3, "geometric_median": 3}.get(name, 1)
    bad = np.random.default_rng(seed).choice(8, number, replace=False)
    spoilt = rows.copy()
    spoilt[bad] = value * np.random.default_rng(seed).choice([1, 2], (number, 7))
    got = np.asarray(JITTED[name](spoilt))
    clean = np.delete(rows, bad, axis=0)
    if name in ("coordinate_median", "trimmed_mean"):
        slack = 1e-5 * np.max(np.abs(clean))
        assert np.all(got >= clean.min(axis=0) - slack)
        assert np.all(got <= clean.max(axis=0) + slack)
    else:  # lemma: within 2 (n - b) / (n - 2 b) of the largest distance in a ball
        radius = 2 * np.max(np.linalg.norm(clean, axis=1)) + 1e-3
        share = 3 / 8 if name == "geometric_median" else 1 / 4
        bound = 2 * (1 - share) / (1 - 2 * share)
        assert np.linalg.norm(got) <= bound * radius


@quick("geometric_median")
def test_one_microbatch_is_itself(name):
    kwargs = {
        "mean_of_clipped": {"max_norm": 1e9},
        "trimmed_mean": {"trim": 0},
        "median_of_means": {"num_groups": 1},
    }
    tree = make_tree(1)
    got = jax.jit(functools.partial(ALL[name], **kwargs.get(name, {})))(tree)
    assert_trees_equal(got, jax.tree.map(lambda x: x[0], tree))


# Numbers of every size.


@quick("mean_of_clipped", "trimmed_mean")
def test_dtypes_and_shapes(name):
    rows = make_rows()
    tree = {"a": rows[:, :2].astype(jnp.float16), "b": [rows[:, 2], None]}
    tree["c"] = rows[:, 3:].reshape(8, 2, 2).astype(jnp.bfloat16)
    got = JITTED[name](tree)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(lambda x: x.shape[1:], tree)
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, tree)
    want = JITTED[name](jax.tree.map(lambda x: x.astype(jnp.float32), tree))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        eps = float(jnp.finfo(x.dtype).eps)  # one rounding, at the end
        x = np.asarray(x).astype(np.float32)
        np.testing.assert_allclose(x, y, rtol=eps, atol=1e-6)


@quick("geometric_median")
def test_float64(name):
    with jax.enable_x64(True):
        rows = make_rows().astype(np.float64) * 1e200
        kwargs = {"max_norm": 2e200} if name == "mean_of_clipped" else {}
        got = JITTED[name](rows, **kwargs)
        assert got.dtype == jnp.float64
        got = np.asarray(got) / 1e200
    want = JITTED[name](make_rows())
    np.testing.assert_allclose(got, want, atol=1e-5)


@each
@pytest.mark.parametrize("size", [1e38, 1e30, 1e-30])
def test_huge_and_tiny_numbers(name, size):
    _check_size(name, jnp.float32, size)


@quick("mean_of_clipped", "geometric_median")
def test_huge_float16_numbers(name):
    _check_size(name, jnp.float16, 6e4)


def _check_size(name, dtype, size):
    rows = np.random.default_rng(0).uniform(-1, 1, (8, 7)).astype(np.float32)
    kwargs = {"max_norm": 1.0} if name == "mean_of_clipped" else {}
    want = JITTED[name](rows, **kwargs)
    if kwargs:
        kwargs = {"max_norm": np.float32(size)}
    got = np.asarray(JITTED[name]((rows * size).astype(dtype), **kwargs), np.float64)
    tolerance = 1e-2 if dtype == jnp.float16 else 1e-4
    np.testing.assert_allclose(got / size, want, atol=tolerance)


@each
def test_equal_microbatches(name):
    """No 0 / 0, and zeros stay zeros."""
    kwargs = {"max_norm": 1e9} if name == "mean_of_clipped" else {}
    for row in ([0.0] * 7, [1.0, -3.0, 2.0, 0.5, 1.0, -3.0, 0.0]):
        rows = np.tile(np.float32(row), (8, 1))
        np.testing.assert_allclose(JITTED[name](rows, **kwargs), row, rtol=1e-6)


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, pytest.param(-np.inf, marks=pytest.mark.nightly)], ids=str
)
def test_what_is_not_finite(value):
    rows = make_rows()
    rows[2, 1] = value
    others = np.arange(7) != 1
    got = np.asarray(JITTED["mean"](rows))
    np.testing.assert_equal(got[1], value)
    assert np.all(np.isfinite(got[others]))
    assert np.all(np.isnan(JITTED["mean_of_clipped"](rows)))
    extreme = np.where(np.isnan(rows), np.inf, rows)
    np.testing.assert_allclose(
        JITTED["coordinate_median"](rows), np.median(extreme, axis=0), rtol=1e-6
    )
    want = np.sort(extreme, axis=0)[1:-1].mean(axis=0)
    np.testing.assert_allclose(JITTED["trimmed_mean"](rows), want, rtol=1e-5, atol=1e-6)
    want = JITTED["geometric_median"](np.delete(rows, 2, axis=0))
    np.testing.assert_allclose(JITTED["geometric_median"](rows), want, atol=1e-5)
    means = np.delete(rows.reshape(4, 2, 7).mean(axis=1), 1, axis=0)
    want = JITTED["geometric_median"](means)
    np.testing.assert_allclose(JITTED["median_of_means"](rows), want, atol=1e-5)


@each_robust
@pytest.mark.parametrize("n_bad", [4, 8])
def test_too_much_that_is_not_finite_is_seen(name, n_bad):
    rows = make_rows()
    rows[:n_bad] = np.nan
    assert not np.any(np.isfinite(JITTED[name](rows)))


# Weights.


@each_weighted
def test_weights_are_repetitions(name):
    rows, weights = make_rows(), [3, 1, 2, 0, 1, 1, 1, 2]
    # The geometric median of few steps depends on where it starts.
    more = {"num_iterations": 300} if name == "geometric_median" else {}
    fn = jax.jit(functools.partial(ALL[name], **more))
    got = fn(rows, weights=jnp.array(weights))
    want = fn(np.repeat(rows, weights, axis=0))
    np.testing.assert_allclose(got, want, atol=1e-5)


@each_weighted
def test_weight_zero_leaves_out_whatever_it_holds(name):
    rows, weights = make_rows(), np.array([0, 1, 0, 1, 0, 1, 0, 0])
    rows[weights == 0] = np.nan
    got = JITTED[name](rows, weights=weights)
    np.testing.assert_allclose(got, JITTED[name](rows[weights == 1]), atol=1e-6)
    np.testing.assert_array_equal(JITTED[name](rows, weights=np.zeros(8)), np.zeros(7))


@pytest.mark.parametrize("name", sorted(set(ALL) - set(WEIGHTED)))
def test_no_weights_where_none_are_defined(name):
    with pytest.raises(TypeError, match="weights"):
        JITTED[name](make_rows(), weights=np.ones(8))


# One microbatch after another.


@pytest.mark.parametrize(
    ("max_norm", "dtype"),
    [
        (2.0, jnp.bfloat16),
        (None, jnp.float32),
        pytest.param(2.0, jnp.float32, marks=pytest.mark.nightly),
        pytest.param(None, jnp.bfloat16, marks=pytest.mark.nightly),
    ],
)
def test_running_mean(max_norm, dtype):
    tree = jax.tree.map(np.array, make_tree(dtype=dtype))
    weights = np.float32([1.0, 2, 0, 4, 1, 1, 3, 0.5])
    for leaf in jax.tree.leaves(tree):
        leaf[2] = np.nan
    like = jax.tree.map(lambda x: jnp.asarray(x[0]), tree)

    @jax.jit
    def stream(tree, weights, max_norm):
        def body(running, terms):
            return running.add(*terms, max_norm=max_norm), None

        start = aggregation.RunningMean.empty(like)
        running, _ = jax.lax.scan(body, start, (tree, weights))
        return running, running.result(like)

    running, got = stream(tree, weights, max_norm)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(running))
    if max_norm is None:
        want = JITTED["mean"](tree, weights=weights)
    else:
        want = JITTED["mean_of_clipped"](tree, weights=weights)
    assert_trees_close(got, want, jnp.finfo(dtype).eps * 4)


def test_running_mean_of_nothing_is_zero():
    got = aggregation.RunningMean.empty(jnp.ones(2)).result(jnp.ones(2))
    np.testing.assert_array_equal(got, [0, 0])


def test_running_mean_does_not_stall_in_bfloat16():
    running = aggregation.RunningMean.empty(jnp.zeros((), jnp.bfloat16))
    ones = jnp.ones((), jnp.bfloat16)
    running = jax.lax.fori_loop(0, 1000, lambda _, r: r.add(ones), running)
    assert running.total == 1000  # a bfloat16 sum ends at 256


# Transformations and devices.


@quick("trimmed_mean")
def test_without_jit(name):
    rows = make_rows()
    want = JITTED[name](rows)
    np.testing.assert_allclose(ALL[name](rows), want, rtol=2e-6, atol=1e-6)


@quick("mean_of_clipped", "geometric_median")
def test_vmap(name):
    rows = make_rows()
    both = np.stack([rows, make_rows(seed=1)])
    got = jax.jit(jax.vmap(ALL[name]))(both)
    np.testing.assert_allclose(got[0], JITTED[name](rows), rtol=2e-6, atol=1e-6)


def test_max_norm_may_be_traced():
    tree = make_tree()
    got = jax.jit(aggregation.mean_of_clipped)(tree, 2.0)
    assert_trees_close(got, JITTED["mean_of_clipped"](tree), 2e-6)


def make_mesh(kind):
    devices = jax.devices("cpu")[:8]
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind), devices=devices)


PLACED = [
    ("geometric_median", AxisType.Explicit),
    ("mean_of_clipped", AxisType.Auto),
    *(
        pytest.param(name, kind, marks=pytest.mark.nightly)
        for name, kind in (
            ("mean", AxisType.Explicit),
            ("trimmed_mean", AxisType.Explicit),
            ("mean_of_clipped", AxisType.Explicit),
            ("coordinate_median", AxisType.Explicit),
            ("median_of_means", AxisType.Explicit),
            ("geometric_median", AxisType.Auto),
        )
    ),
]


@pytest.mark.parametrize(("name", "kind"), PLACED, ids=str)
def test_leading_axis_over_devices(name, kind):
    mesh, tree = make_mesh(kind), make_tree()
    specs = {"kernel": P("x", "y"), "bias": [P("x"), P(("x", "y"))], "none": None}
    placed = jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs
    )
    with jax.set_mesh(mesh):
        got = JITTED[name](placed)
    assert_trees_close(got, JITTED[name](tree), 2e-6)
    if kind == AxisType.Explicit:
        assert jax.typeof(got["kernel"]).sharding.spec == P("y", None)


@quick("mean_of_clipped", "geometric_median")
def test_one_microbatch_per_device_in_shard_map(name):
    mesh, tree = make_mesh(AxisType.Explicit), make_tree()
    weights = jnp.array([1.0, 2, 3, 4, 1, 1, 3, 0.5])
    spec = P(("x", "y"))
    names = {"weights": weights} if name in WEIGHTED else {}

    def aggregate(tree, names):
        one, names = jax.tree.map(lambda x: x[0], (tree, names))
        return aggregation.over_devices(ALL[name], ("x", "y"))(one, **names)

    place = functools.partial(jax.device_put, device=NamedSharding(mesh, spec))
    mapped = jax.shard_map(aggregate, mesh=mesh, in_specs=(spec, spec), out_specs=P())
    got = jax.jit(mapped)(*jax.tree.map(place, (tree, names)))
    assert_trees_close(got, JITTED[name](tree, **names), 2e-6)


@pytest.mark.parametrize(
    "name",
    ["trimmed_mean", pytest.param("geometric_median", marks=pytest.mark.nightly)],
)
def test_one_microbatch_per_device_in_pmap(name):
    tree = make_tree()
    aggregate = aggregation.over_devices(ALL[name], "devices")
    got = jax.pmap(aggregate, axis_name="devices")(tree)
    for i in (0, 7):
        one = jax.tree.map(lambda x, i=i: x[i], got)
        assert_trees_close(one, JITTED[name](tree), 2e-6)


@pytest.mark.parametrize(
    "name",
    ["mean_of_clipped", pytest.param("median_of_means", marks=pytest.mark.nightly)],
)
def test_microbatches_of_one_device_in_shard_map(name):
    """Each device takes its own four rows; nothing is gathered."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    rows, spec = make_rows(8), P("x")
    mapped = jax.shard_map(
        lambda rows: JITTED[name](rows)[None], mesh=mesh, in_specs=spec, out_specs=spec
    )
    want = [JITTED[name](half) for half in (rows[:4], rows[4:])]
    np.testing.assert_allclose(jax.jit(mapped)(rows), want, rtol=1e-5, atol=1e-6)


def test_running_means_of_devices_add_up():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    rows, weights = make_rows(8), jnp.array([1.0, 2, 3, 4, 1, 1, 3, 0.5])

    def stream(rows, weights):
        start = aggregation.RunningMean.empty(rows[0])
        start = start.add(rows[0], weights[0]).add(rows[1], weights[1])
        return jax.lax.psum(start, "x").result(rows[0])

    spec = P("x")
    mapped = jax.shard_map(stream, mesh=mesh, in_specs=(spec, spec), out_specs=P())
    want = aggregation.mean(rows, weights=weights)
    np.testing.assert_allclose(jax.jit(mapped)(rows, weights), want, atol=1e-6)


# Bad arguments, the memory that is promised, the page.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: aggregation.mean(x, weights=[1, 2]), r"shape \(8,\), got \(2,\)"),
        (lambda x: aggregation.mean(x, weights=[-1] * 8), r"weights .*\[0.* got -1"),
        (lambda x: aggregation.mean({"a": x, "b": x[:4]}), "same leading axis"),
        (lambda x: aggregation.mean(x[0, 0]), "same leading axis"),
        (lambda x: aggregation.mean(x[:0]), "at least one microbatch"),
        (lambda x: aggregation.mean({}), "at least one microbatch"),
        (lambda x: aggregation.mean(x.astype(int)), "floating-point"),
        (lambda x: aggregation.mean_of_clipped(x, 0.0), "max_norm .* got 0.0"),
        (lambda x: aggregation.trimmed_mean(x, 4), "less than half of 8 .* got 4"),
        (lambda x: aggregation.trimmed_mean(x, -1), "at least 0 .* got -1"),
        (lambda x: aggregation.trimmed_mean(x, 0.5), r"trim .*0.5\), got 0.5"),
        (lambda x: aggregation.trimmed_mean(x, 0.1), "at least 1/8 .* got 0.1"),
        (lambda x: aggregation.trimmed_mean(x, True), "trim .* got True"),
        (lambda x: aggregation.trimmed_mean(x, "1"), "trim .* got '1'"),
        (
            lambda x: aggregation.geometric_median(x, num_iterations=0),
            "num_iterations .* at least 1, got 0",
        ),
        (lambda x: aggregation.median_of_means(x, 3), "divide 8 .* got 3"),
        (lambda x: aggregation.median_of_means(x, 0), "at least 1, got 0"),
        (lambda x: aggregation.RunningMean.empty(x).add(x, -1.0), "weight .* got -1.0"),
    ],
)
def test_bad_arguments_in_one_line(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call(jnp.asarray(make_rows()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("mean_of_clipped", 1),
        ("trimmed_mean", 1),
        ("geometric_median", 3),
        pytest.param("mean", 1, marks=pytest.mark.nightly),
        pytest.param("coordinate_median", 1, marks=pytest.mark.nightly),
        pytest.param("median_of_means", 3 + 4, marks=pytest.mark.nightly),
    ],
)
def test_memory_beside_the_gradients(name, most):
    tree = jax.ShapeDtypeStruct((8, 2**16), jnp.float32)
    analysis = jax.jit(ALL[name]).lower(tree).compile().memory_analysis()
    used = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    assert used <= (most + 0.1) * 4 * 2**16
