"""Hessian products and Lanczos's method against dense matrices and known spectra."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from optax_heavytail import diagnostics

KEY = jax.random.key(0)
SIZES = (20, 64, 10)  # 1,994 parameters
INPUTS = jax.random.normal(jax.random.key(1), (4, 32, 20))
LABELS = jax.random.randint(jax.random.key(2), (4, 32), 0, 10)
BATCHES = {"inputs": INPUTS, "labels": LABELS}
WHOLE = {"inputs": INPUTS.reshape(-1, 20), "labels": LABELS.reshape(-1)}


def new_network():
    keys = jax.random.split(KEY, len(SIZES) - 1)
    pairs = zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    return [
        {"kernel": jax.random.normal(key, (m, n)) / m**0.5, "bias": jnp.zeros(n)}
        for key, m, n in pairs
    ]


def loss(params, batch):
    x = batch["inputs"]
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    x = x @ params[-1]["kernel"] + params[-1]["bias"][None]
    picked = jnp.take_along_axis(jax.nn.log_softmax(x), batch["labels"][:, None], 1)
    return -jnp.mean(picked)


@functools.cache
def networks():
    """One as it starts, and one that was trained: their spectra differ."""
    start = new_network()

    def step(_, params):
        grads = jax.grad(loss)(params, WHOLE)
        return jax.tree.map(lambda w, g: w - 0.5 * g, params, grads)

    trained = jax.jit(lambda params: jax.lax.fori_loop(0, 200, step, params))(start)
    return {"start": start, "trained": trained}


@jax.jit
def dense_hessian(params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return jax.hessian(lambda x: loss(unravel(x), WHOLE))(flat)


def product(params, vector):
    return diagnostics.hvp(loss, params, vector, BATCHES)


@jax.jit
def ends(params):
    return diagnostics.extreme_eigenvalues(
        functools.partial(product, params), params, KEY
    )


def diagonal(values):
    """The operator with these eigenvalues."""
    return lambda v: values * v


# Jitted: one by one, the operations take longer to compile.
@functools.partial(jax.jit, static_argnames="num_steps")
def ends_of(values, num_steps):
    return diagnostics.extreme_eigenvalues(diagonal(values), values, KEY, num_steps)


@functools.partial(jax.jit, static_argnames="num_steps")
def lanczos_of(values, start, num_steps):
    return diagnostics.lanczos(diagonal(values), start, num_steps)


@functools.partial(jax.jit, static_argnames=("num_steps", "num_probes"))
def spectrum_of(values, num_steps, num_probes):
    return diagnostics.spectral_density(
        diagonal(values), values, KEY, num_steps, num_probes
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["start", "trained"])
def test_the_ends_agree_with_the_dense_hessian(name):
    params = networks()[name]
    dense = np.asarray(dense_hessian(params), np.float64)
    assert dense.shape == (1994, 1994)
    values = np.linalg.eigvalsh(dense)
    size = max(abs(values[0]), abs(values[-1]))
    found = ends(params)
    # The goal is 1e-4. Both are 32-bit Hessians: 1e-5 is a hundred roundings.
    for value, wanted in ((found.smallest, values[0]), (found.largest, values[-1])):
        assert abs(value - wanted) < 1e-5 * size
    assert max(found.smallest_error, found.largest_error) < 1e-4 * size


def test_products_are_those_of_the_dense_hessian():
    params = networks()["trained"]
    vector = jax.tree.map(
        lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), params
    )
    flat, _ = jax.flatten_util.ravel_pytree(vector)
    wanted = np.asarray(dense_hessian(params), np.float64) @ np.asarray(flat)
    found, _ = jax.flatten_util.ravel_pytree(jax.jit(product)(params, vector))
    # Sums of 1,994 terms, each with a rounding of 6e-8.
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


def test_the_gradient_is_the_mean_over_batches():
    @jax.jit
    def gradients(params):
        return (
            jax.grad(loss)(params, WHOLE),
            diagnostics.mean_gradient(loss, params, BATCHES),
            diagnostics.mean_gradient(lambda p: loss(p, WHOLE), params),
        )

    wanted, *found = gradients(networks()["trained"])
    for tree in found:  # of a loss near 1, in 32 bits
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), tree, wanted
        )


def test_narrow_parameters_have_wide_products():
    """Sums over batches in bfloat16 would stay at 256 times the first."""

    def loss(w, x):
        return jnp.sum(w.astype(jnp.float32) ** 2 * x) / 2

    w = jnp.ones(2, jnp.bfloat16)
    batches = jnp.concatenate([jnp.full(1, 512.0), jnp.ones(511)])
    vector = jnp.ones(2, jnp.bfloat16)
    for found in (
        diagnostics.mean_gradient(loss, w, batches),
        diagnostics.hvp(loss, w, vector, batches),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, 1023 / 512)


def test_batches_need_a_common_axis():
    params = networks()["start"]
    odd = {"inputs": INPUTS, "labels": LABELS[:3]}
    for call in (
        lambda: diagnostics.mean_gradient(loss, params, odd),
        lambda: diagnostics.hvp(loss, params, params, odd),
        lambda: diagnostics.mean_gradient(loss, params, {}),
    ):
        with pytest.raises(ValueError, match="the same leading axis"):
            call()
    with pytest.raises(TypeError, match="int32"):
        diagnostics.hvp(jnp.sum, jnp.arange(3), jnp.arange(3))


def test_vectors_stay_orthonormal_long_after_an_end_is_found():
    """Without reorthogonalisation the largest eigenvalue comes up many times."""
    values = np.concatenate([np.linspace(-1, 1, 499), [100.0]])
    start = jax.random.normal(KEY, (500,))
    found = lanczos_of(jnp.asarray(values), start, num_steps=100)
    assert found.num_found == 100
    rows = np.asarray(found.vectors, np.float64)
    # Every entry is rounded by 6e-8 of at most 1, and summed over 500.
    np.testing.assert_allclose(rows @ rows.T, np.eye(100), atol=2e-6)
    small = rows @ (values[:, None] * rows.T)
    beside = found.off_diagonal[:-1]
    matrix = np.diag(found.diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    np.testing.assert_allclose(small, matrix, atol=2e-6 * 100)
    assert np.sum(np.linalg.eigvalsh(matrix) > 50) == 1


def test_as_many_steps_as_dimensions_give_the_whole_spectrum():
    values = np.array([-3.0, -1, -0.1, 0, 0.2, 0.3, 1, 2, 5, 5.5, 7, 9])
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))

    @jax.jit
    def spectrum_of(matrix):
        return diagnostics.spectral_density(
            lambda v: matrix @ v, jnp.zeros(12), KEY, num_steps=12, num_probes=1
        )

    for factor in (1e-25, 1.0, 1e25):  # no square of these is a float32
        found = spectrum_of(jnp.asarray((q * values) @ q.T * factor, jnp.float32))
        np.testing.assert_allclose(found.nodes[0] / factor, values, atol=9e-5)


@pytest.mark.parametrize(
    ("values", "num_found"),
    [
        (np.repeat([-1.0, 2.0, 5.0], [10, 20, 10]), 3),
        pytest.param(np.full(40, 3.0), 1, marks=pytest.mark.nightly),
        (np.zeros(40), 1),
        (np.repeat([0.0, 4.0], [39, 1]), 2),
    ],
    ids=["three", "identity", "zero", "rank one"],
)
def test_an_invariant_space_ends_the_search(values, num_found):
    operator = jnp.asarray(values, jnp.float32)
    found = lanczos_of(operator, jax.random.normal(KEY, (40,)), num_steps=20)
    assert found.num_found == num_found
    assert not np.any(found.vectors[num_found:])
    at_ends = ends_of(operator, num_steps=20)
    # A space ends at a residual of 64 roundings.
    np.testing.assert_allclose(at_ends[:2], [values[0], values[-1]], atol=4e-5)
    assert np.all(np.array(at_ends[2:]) < 4e-5)
    spectrum = spectrum_of(operator, num_steps=20, num_probes=4)
    np.testing.assert_allclose(spectrum.ends()[:2], at_ends[:2], atol=4e-5)
    assert np.all(np.array(spectrum.ends()[2:]) < 4e-5)
    # Only what was found has a weight and an error.
    is_found = np.isfinite(spectrum.errors)
    assert np.all(is_found.sum(axis=1) == num_found)
    assert not np.any(np.asarray(spectrum.weights)[~is_found])
    for value in np.unique(values):
        near = np.abs(spectrum.nodes - value) < 1e-3
        weight = np.sum(spectrum.weights * near) / 4
        # Over 4 probes of 40 entries a share of 1/2 varies by 0.06.
        assert weight == pytest.approx(np.mean(values == value), abs=0.18)
    integral = jnp.trapezoid(spectrum.density(spectrum.grid()), spectrum.grid())
    assert integral == pytest.approx(1, abs=1e-4)


def test_the_density_is_that_of_the_eigenvalues():
    rng = np.random.default_rng(0)
    values = np.sort(np.concatenate([rng.normal(size=1800), rng.uniform(5, 8, 200)]))
    spectrum = spectrum_of(jnp.asarray(values), num_steps=40, num_probes=8)
    np.testing.assert_allclose(np.sum(spectrum.weights, axis=1), 1, atol=1e-5)
    mean = np.mean(np.sum(spectrum.weights * spectrum.nodes, axis=1))
    # The deviation of 8 x 2,000 products, with the variance of a squared normal.
    assert abs(mean - values.mean()) < 3 * np.sqrt(2 * np.mean(values**2) / 16000)
    grid = spectrum.grid(1024, width=0.02)
    density = spectrum.density(grid, width=0.02)
    assert jnp.trapezoid(density, grid) == pytest.approx(1, abs=1e-4)
    sigma = 0.02 * np.ptp(spectrum.nodes)
    smooth = np.mean(
        np.exp(-(((np.asarray(grid)[:, None] - values) / sigma) ** 2) / 2), axis=1
    ) / (sigma * np.sqrt(2 * np.pi))
    assert np.max(np.abs(density - smooth)) < 0.05 * smooth.max()


@pytest.mark.nightly
def test_weights_reproduce_the_moments_of_the_start():
    values = np.linspace(-1, 2, 200)
    spectrum = spectrum_of(jnp.asarray(values), num_steps=5, num_probes=1)
    start = jax.random.normal(jax.random.split(jax.random.split(KEY, 1)[0], 1)[0], 200)
    share = np.square(np.asarray(start, np.float64))
    for power in range(10):  # 2 x 5 - 1 is the last one that is exact
        wanted = np.sum(share * values**power) / share.sum()
        found = np.sum(spectrum.weights * spectrum.nodes**power)
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.nightly
def test_the_error_bounds_hold_when_steps_are_few():
    values = np.concatenate([np.linspace(-1, 1, 300), [1.5, 2.0]])
    for num_steps in (3, 12):
        found = ends_of(jnp.asarray(values), num_steps)
        spectrum = spectrum_of(jnp.asarray(values), num_steps, num_probes=4)
        distances = np.abs(values - np.asarray(spectrum.nodes)[..., None]).min(-1)
        assert np.all(distances <= spectrum.errors + 1e-6)
        assert spectrum.ends().smallest == spectrum.nodes.min()
        assert spectrum.ends().largest_error in spectrum.errors[:, -1]
        assert values[0] - 1e-6 <= found.smallest <= found.largest <= values[-1] + 1e-6


def test_a_tree_is_one_vector():
    """Leaves of any shape and dtype, and what has no leaves at all."""
    values = jnp.linspace(-1, 1, 13)
    tree = {"a": jnp.zeros((2, 3), jnp.bfloat16), "b": [jnp.zeros(6), None], "c": ()}
    tree["c"] = jnp.zeros(())

    def matvec(v):
        flat, unravel = jax.flatten_util.ravel_pytree(v)
        assert flat.dtype == jnp.float32
        return unravel(values * flat)

    found = jax.jit(
        lambda: diagnostics.extreme_eigenvalues(matvec, tree, KEY, num_steps=13)
    )()
    np.testing.assert_allclose(found[:2], [-1, 1], atol=1e-5)


def test_shards_change_nothing():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    values = jnp.linspace(-1, 3, 64)
    whole = ends_of(values, num_steps=30)
    cut = ends_of(jax.device_put(values, spec), num_steps=30)
    np.testing.assert_allclose(whole[:2], cut[:2], atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_nan(bad):
    values = jnp.ones(40).at[3].set(bad)
    assert np.all(np.isnan(ends_of(values, num_steps=20)))
    spectrum = spectrum_of(values, num_steps=20, num_probes=4)
    assert np.all(np.isnan(spectrum.nodes))
    assert np.all(np.isnan(spectrum.weights))


def test_a_start_of_zeros_gives_nan():
    found = lanczos_of(jnp.ones(40), jnp.zeros(40), num_steps=20)
    assert np.all(np.isnan(found.diagonal))


def test_bad_arguments_are_named():
    matvec, params = diagonal(jnp.ones(4)), jnp.zeros(4)
    with pytest.raises(ValueError, match="number of entries, 4, got 5"):
        diagnostics.lanczos(matvec, params, 5)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1"):
        diagnostics.extreme_eigenvalues(matvec, params, KEY, 0)
    with pytest.raises(ValueError, match="num_probes"):
        diagnostics.spectral_density(matvec, params, KEY, 2, num_probes=0)
    with pytest.raises(TypeError, match="int32"):
        diagnostics.extreme_eigenvalues(matvec, jnp.arange(4), KEY, 2)
    spectrum = diagnostics.Spectrum(*jnp.ones((3, 1, 2)))
    with pytest.raises(ValueError, match="num_points must be at least"):
        spectrum.grid(num_points=50, width=0.01)
    with pytest.raises(ValueError, match="width must be in"):
        spectrum.density(spectrum.grid(), width=0.0)
