"""orthogonalize and clip_by_spectral_norm: against the SVD in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from optax_heavytail import _matrices
from tests.compare import assert_leaf_close, assert_trees_equal
from tests.driving import jitted, one_step
from tests.in_time import only


def _of_singular_values(x, function):
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return (u * function(s)[..., None, :]) @ vt


def _soft(s, c=1.0):
    return s / np.sqrt(1 + np.square(s / c))


def _matrix(singular_values, columns=5, seed=0):
    rng = np.random.default_rng(seed)
    n = len(singular_values)
    u, v = (np.linalg.qr(rng.normal(size=(m, n)))[0] for m in (n, columns))
    return (u * np.asarray(singular_values)) @ v.T


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_polar_factor_of_every_layout(x64):
    """Wide, tall, batched, and with the axes of inputs and outputs exchanged."""
    rng = np.random.default_rng(0)
    grads = {"wide": (3, 5), "tall": (5, 3), "experts": (2, 4, 3), "bias": (4,)}
    grads = {name: rng.normal(size=shape) for name, shape in grads.items()}
    got = one_step(oht.orthogonalize(steps=16, eps=0.0), grads)
    for name, stretch in ("wide", 5 / 3), ("tall", 1.0), ("experts", 1.0):
        want = np.sqrt(stretch) * _of_singular_values(grads[name], np.ones_like)
        assert_leaf_close(got[name], want, 1e-12, name)
    np.testing.assert_array_equal(got["bias"], grads["bias"])
    torch = oht.orthogonalize(steps=16, matrix_axes=(-1, -2), shape_scale="rms")
    want = 0.2 * np.sqrt(5) * _of_singular_values(grads["wide"], np.ones_like)
    assert_leaf_close(one_step(torch, grads["wide"]), want, 1e-7)
    middle = one_step(oht.orthogonalize(matrix_axes=(0, 2)), grads["experts"])
    apart = one_step(oht.orthogonalize(), list(np.moveaxis(grads["experts"], 1, 0)))
    assert_leaf_close(middle, np.moveaxis(apart, 0, 1), 1e-12)


def test_five_steps_bring_all_but_the_smallest_near_one(x64):
    grads = jnp.diag(jnp.geomspace(1e-4, 1.0, 40))
    for coefficients in ("polar_express", "quintic"):
        tx = oht.orthogonalize(coefficients=coefficients)
        got = np.diag(one_step(tx, grads))
        reached = got[np.diag(grads) > 1e-3 * np.linalg.norm(grads)]
        assert np.all((reached > 0.1) & (reached < 1.25))
        if coefficients == "polar_express":
            assert np.min(reached) > 0.75


def test_as_muon_without_momentum():
    grads = {"w": jnp.asarray(_matrix([3.0, 1.0, 0.2], 6), jnp.float32)}
    dimensions = {"w": optax.contrib.MuonDimensionNumbers()}
    muon = optax.contrib.scale_by_muon(
        beta=0.0, nesterov=False, weight_dimension_numbers=dimensions
    )
    ours = oht.orthogonalize(coefficients="quintic", shape_scale=None)
    assert_leaf_close(one_step(ours, grads)["w"], one_step(muon, grads)["w"], 1e-5)


def test_clipped_singular_values(x64):
    """A spike of 100 thresholds leaves the others as they should be."""
    x = _matrix([100.0, 1.0001, 0.5, 0.1, 0.0], 7)
    for grads in (x, x.T, np.stack([x, 2 * x]), np.stack([x, 2 * x], -1)):
        axes = (0, 1) if grads.shape[-1] == 2 else (-2, -1)
        clip = functools.partial(oht.clip_by_spectral_norm, 1.0, matrix_axes=axes)
        last = np.moveaxis(grads, axes, (-2, -1))
        for soft, function in (True, _soft), (False, lambda s: np.minimum(s, 1)):
            got = np.moveaxis(one_step(clip(soft=soft), grads), axes, (-2, -1))
            assert_leaf_close(got, _of_singular_values(last, function), 1e-10)


def _published_soft_clip(x, steps):
    """SPECTRA's, with c = 1: Newton-Schulz for the inverse root of I + X X^T."""
    squares = np.eye(len(x)) + x @ x.T
    bound = np.abs(x @ x.T).sum(axis=1).max()  # Gershgorin's
    alpha = 1 + min(bound, np.linalg.norm(x) ** 2)
    y, z = squares / alpha, np.eye(len(x))
    for _ in range(steps):
        t = (3 * np.eye(len(x)) - z @ y) / 2
        y, z = y @ t, t @ z
    return z @ x / np.sqrt(alpha)


def test_elsewhere_ten_iterations_lose_what_is_behind_a_spike(x64):
    x = _matrix([100.0, 0.5, 0.4, 0.3], 6)
    want = _of_singular_values(x, _soft)

    def error(got):
        behind = np.linalg.svd(np.asarray(got), compute_uv=False)[1:]
        return np.max(np.abs(behind / np.linalg.svd(want, compute_uv=False)[1:] - 1))

    assert error(_published_soft_clip(x, 10)) > 0.2
    assert error(_published_soft_clip(x, 20)) < 1e-6  # it is that method
    assert error(one_step(oht.clip_by_spectral_norm(1.0), x)) < 1e-6


def test_elsewhere_the_clip_of_a_vector_jumps():
    def published(size):  # with c = 1
        return size if size <= 1 else size / np.sqrt(1 + size**2)

    assert published(1.0) - published(1.0001) > 0.29
    sizes = [
        float(one_step(oht.clip_by_spectral_norm(1.0), jnp.array([size]))[0])
        for size in (1.0, 1.0001)
    ]
    assert 0 < sizes[1] - sizes[0] < 1e-4


def test_worked_values():
    grads = {"w": jnp.diag(jnp.array([3.0, 0.5])), "b": jnp.array([1.8, 2.4])}
    soft = one_step(oht.clip_by_spectral_norm(1.0), grads)
    np.testing.assert_allclose(np.diag(soft["w"]), [0.948683, 0.447214], rtol=1e-6)
    np.testing.assert_allclose(soft["b"], [0.6 * 0.948683, 0.8 * 0.948683], rtol=1e-6)
    hard = one_step(oht.clip_by_spectral_norm(1.0, soft=False), grads)
    np.testing.assert_allclose(np.diag(hard["w"]), [1.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(hard["b"], [0.6, 0.8], rtol=1e-6)


def test_steps_that_the_docstring_promises(x64):
    for steps, ratio in (8, 1e3), (12, 1e4), (16, 1e5):
        s = np.geomspace(1 / ratio, 1.0, 100)
        got = _matrices.polar(jnp.asarray(s[:, None, None]), _TRIPLES, steps)
        np.testing.assert_allclose(got.ravel(), 1.0, rtol=2e-6)


_TRIPLES = _matrices.POLAR_EXPRESS


@pytest.mark.parametrize("soft", only({True}, [True, False]))
def test_far_thresholds(soft):
    """A threshold that is out of reach changes nothing; a tiny one leaves directions.

    Vectors as well, and neither squares nor ratios leave the range of float32.
    """
    grads = {"w": jnp.asarray(_matrix([3.0, 1.0, 0.2]), jnp.float32), "b": jnp.ones(4)}
    for huge in (1e6, 1e30):
        got = one_step(oht.clip_by_spectral_norm(huge, soft=soft), grads)
        assert_leaf_close(got["w"], grads["w"], 1e-6)
        assert_leaf_close(got["b"], grads["b"], 1e-6)
        small = oht.clip_by_spectral_norm(huge, soft=soft)
        assert_trees_equal(one_step(small, jnp.zeros((2, 3))), jnp.zeros((2, 3)))
    tiny = one_step(oht.clip_by_spectral_norm(1e-30, soft=soft, steps=30), grads)
    assert_leaf_close(tiny["b"] * 1e30, np.full(4, 0.5), 1e-6)
    if soft:
        want = _of_singular_values(grads["w"], np.ones_like)
        assert_leaf_close(tiny["w"] * 1e30, want, 1e-5)


def test_within_the_threshold_bit_for_bit():
    grads = {"w": jnp.asarray(_matrix([0.5, 0.3, 0.2]), jnp.float32), "b": jnp.ones(4)}
    tx = oht.clip_by_spectral_norm(2.0, soft=False)
    assert_trees_equal(one_step(tx, grads), grads)


@pytest.mark.parametrize(
    "tx",
    [
        oht.orthogonalize(),
        oht.clip_by_spectral_norm(1.0),
        oht.clip_by_spectral_norm(1.0, soft=False),
    ],
    ids=["orthogonalize", "soft", "hard"],
)
def test_a_bad_entry_is_of_its_matrix_alone(tx):
    x = jnp.asarray(_matrix([3.0, 1.0, 0.2]), jnp.float32)
    for bad in (jnp.nan, jnp.inf):
        grads = {"w": jnp.stack([x, x.at[1, 2].set(bad)]), "zero": jnp.zeros((0, 3))}
        got = one_step(tx, grads)
        assert np.all(np.isfinite(got["w"][0]))
        assert np.all(np.isnan(got["w"][1]))
        assert got["zero"].shape == (0, 3)


def test_a_schedule_is_of_the_count():
    tx = oht.clip_by_spectral_norm(lambda count: 1.0 / (count + 1), soft=False)
    tx = jitted(tx)
    grads, state = jnp.diag(jnp.array([3.0, 0.1])), tx.init(jnp.zeros((2, 2)))
    for want in (1.0, 0.5):
        updates, state = tx.update(grads, state)
        np.testing.assert_allclose(np.diag(updates), [want, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: oht.orthogonalize(matrix_axes=(0,)), "matrix_axes must be a pair"),
        (lambda: oht.orthogonalize(matrix_axes=(0, 1.5)), "two integers, got .*1.5"),
        (lambda: oht.orthogonalize(coefficients="cubic"), "one of .* got 'cubic'"),
        (lambda: oht.orthogonalize(coefficients=[(1, 2)]), "triples .* got .*1, 2"),
        (lambda: oht.orthogonalize(shape_scale="d"), "shape_scale .* got 'd'"),
        (lambda: oht.clip_by_spectral_norm(1.0, steps=0), "steps .* at least 1, got 0"),
        (
            lambda: one_step(oht.orthogonalize(matrix_axes=(1, -1)), jnp.ones((2, 2))),
            r"two axes of each leaf .* got \(1, -1\) for one of shape \(2, 2\)",
        ),
    ],
)
def test_bad_arguments_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
