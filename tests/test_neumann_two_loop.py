"""The inner loop of the Neumann optimizer: its limit, its rate, its calls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import optax_heavytail as oht
from tests.compare import assert_leaf_close, assert_same_bits, assert_trees_close
from tests.driving import one_step
from tests.registry import make_grads, make_params

ETA = 0.4


def _hessian(eigenvalues):
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))
    return basis @ np.diag(eigenvalues) @ basis.T


def _direction(hessian, **kwargs):
    """The direction at a point of a quadratic, as a function of K; the gradient."""
    matrix = jnp.asarray(hessian)
    w = jnp.asarray(np.random.default_rng(1).normal(size=len(hessian)))

    def grad_fn(point):
        return matrix @ point - 1.0

    @jax.jit
    def direction(num_inner_steps):
        tx = oht.neumann_inner_loop(ETA, num_inner_steps, **kwargs)
        return tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)[0]

    return direction, np.asarray(grad_fn(w))


@pytest.mark.parametrize("use_hvp", [False, True])
def test_a_quadratic_converges_to_the_newton_step_at_the_rate_of_the_theory(use_hvp):
    hessian = _hessian([0.2, 0.7, 1.5, 2.0])
    contraction = np.eye(4) - ETA * hessian
    rate = np.linalg.norm(contraction, 2)
    assert 0.9 < rate < 1
    with jax.enable_x64(True):
        direction, grad = _direction(hessian, use_hvp=use_hvp)
        newton = np.linalg.solve(hessian, grad)
        for k in (0, 1, 2, 5, 20, 80, 400):
            got = ETA * direction(k)
            error = np.linalg.norm(got - newton) / np.linalg.norm(newton)
            # Rounding: 1e-16 times the condition number 10, in up to 400 steps.
            assert error <= rate ** (k + 1) * (1 + 1e-10) + 1e-13
            exact = newton - np.linalg.matrix_power(contraction, k + 1) @ newton
            assert_leaf_close(got, exact, 1e-12, f"K = {k}")
            if k <= 20:  # the slowest direction is in the start: the bound is sharp
                assert error >= 0.1 * rate ** (k + 1)
        assert error < 1e-12


def test_without_inner_steps_it_is_the_gradient():
    direction, grad = _direction(_hessian([1.0, 2.0]))
    np.testing.assert_allclose(direction(0), grad, rtol=1e-6)


@pytest.mark.parametrize("use_hvp", [False, True])
def test_convexified_it_is_a_damped_newton_step_where_the_hessian_is_indefinite(
    use_hvp,
):
    hessian = _hessian([-0.5, 0.3, 1.0, 3.0])
    low, high = -0.6, 4.0
    mu, eta = high / (abs(low) + high), 1 / high
    with jax.enable_x64(True):
        direction, grad = _direction(hessian, convexify=(low, high), use_hvp=use_hvp)
        m = -eta * grad  # the recursion as it is written in the paper
        for k in range(30):
            assert_leaf_close(direction(k), -m / eta, 1e-12, f"K = {k}")
            m = mu * m - eta * (grad + mu * hessian @ m)
        damped = np.linalg.solve(hessian + abs(low) * np.eye(4), grad)
        limit = (abs(low) + high) * damped
        got = direction(2000)  # contracts by 0.98 in each step
        assert_leaf_close(got, limit, 1e-10)
        assert got @ grad > 0
        plain, _ = _direction(hessian)
        assert np.linalg.norm(plain(200)) > 1e10 * np.linalg.norm(limit)


def test_the_learning_rate_is_not_used_when_convexified():
    hessian = _hessian([-0.5, 1.0])
    w, grad_fn = jnp.ones(2), lambda point: jnp.asarray(hessian) @ point

    def directions(rate):
        tx = oht.neumann_inner_loop(rate, 5, convexify=(-1.0, 2.0))
        return tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)[0]

    np.testing.assert_array_equal(directions(0.1), directions(10.0))


def test_the_number_of_inner_steps_is_traced_once():
    traces = []

    def grad_fn(point):
        traces.append(point)
        return 0.5 * point

    @jax.jit
    def direction(w, num_inner_steps):
        tx = oht.neumann_inner_loop(1.0, num_inner_steps)
        return tx.update(0.5 * w, tx.init(w), w, grad_fn=grad_fn)[0]

    for k in range(6):
        np.testing.assert_allclose(direction(jnp.ones(1), k), 1 - 0.5 ** (k + 1))
    calls = len(traces)
    assert calls <= 2  # fori_loop may look at its body twice
    direction(2 * jnp.ones(1), 1000)
    assert len(traces) == calls
    text = direction.lower(jnp.ones(1), 5).as_text()
    assert text.count("stablehlo.while") == 1


def test_an_injected_number_of_inner_steps_can_be_changed():
    tx = optax.inject_hyperparams(oht.neumann_two_loop)(
        learning_rate=1.0, num_inner_steps=2
    )
    grad_fn = functools.partial(jnp.multiply, 0.5)
    params = jnp.ones(1)
    state = tx.init(params)
    update = jax.jit(functools.partial(tx.update, grad_fn=grad_fn))
    for k in (2, 5):
        state.hyperparams["num_inner_steps"] = jnp.asarray(k)
        updates, state = update(grad_fn(params), state, params)
        np.testing.assert_allclose(updates, -(1 - 0.5 ** (k + 1)))


def test_the_number_of_inner_steps_may_be_of_any_integer_dtype():
    params = jnp.array([0.5])
    args = (params, oht.NeumannInnerLoopState(jnp.zeros([], jnp.int32)), params)
    want = oht.neumann_inner_loop(0.01, 127).update(*args, grad_fn=lambda w: w)[0]
    for dtype in (np.int8, np.uint8, np.uint32, jnp.int8, jnp.uint32):
        tx = oht.neumann_inner_loop(0.01, dtype(127))
        got = tx.update(*args, grad_fn=lambda w: w)[0]
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_fresh_batches_are_numbered_from_1_to_k():
    """Each adds another power of two, so the sum tells which were taken."""

    def grad_fn(point, k):
        assert point.shape == ()
        return 2.0**k

    w = jnp.zeros(())
    for steps in (0, 1, 3):
        tx = oht.neumann_inner_loop(0.1, steps, fresh_batches=True)
        updates, _ = tx.update(jnp.ones(()), tx.init(w), w, grad_fn=grad_fn)
        assert float(updates) == sum(2**k for k in range(steps + 1))


def test_without_fresh_batches_the_function_gets_the_parameters_alone():
    tx = oht.neumann_inner_loop(0.1, 1)
    w = jnp.ones(1)

    def grad_fn(*args):
        assert len(args) == 1
        return args[0]

    tx.update(w, tx.init(w), w, grad_fn=grad_fn)


def _loss(params):
    return jnp.sum(jnp.cosh(params["a"] * params["b"])) + jnp.sum(params["a"] ** 4)


@pytest.mark.parametrize("convexify", [None, (-0.5, 4.0)], ids=str)
def test_use_hvp_is_the_exact_series(convexify):
    """Of the Hessian at the parameters, whatever the size of the displacement."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {"a": jnp.asarray(rng.normal(size=3)), "b": jnp.asarray(1.5)}
        grad_fn, flat = jax.grad(_loss), ravel_pytree(params)
        hessian = jax.jit(jax.hessian(lambda w: _loss(flat[1](w))))(flat[0])
        grads = grad_fn(params)
        g = ravel_pytree(grads)[0]
        eta, mu = 0.05, 1.0
        if convexify:
            eta, mu = 1 / 4.0, 4.0 / 4.5
        want = g
        for _ in range(3):
            want = mu * want + g - mu * eta * hessian @ want

        def direction(use_hvp):
            tx = oht.neumann_inner_loop(0.05, 3, convexify=convexify, use_hvp=use_hvp)
            update = jax.jit(functools.partial(tx.update, grad_fn=grad_fn))
            return ravel_pytree(update(grads, tx.init(params), params)[0])[0]

        assert_leaf_close(direction(True), want, 1e-12)
        difference = direction(False) - want
        assert np.linalg.norm(difference) > 1e-3 * np.linalg.norm(want)


def _network():
    """A regression with a tanh layer: its loss, and parameters in one vector."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3))
    y = np.tanh(x @ rng.normal(size=(3, 2))) @ rng.normal(size=(2, 1))
    y = y + 0.1 * rng.normal(size=y.shape)
    params = {
        "first": jnp.asarray(rng.normal(size=(3, 4)) / 3**0.5),
        "bias": jnp.zeros((1, 4)),
        "last": jnp.asarray(rng.normal(size=(4, 1)) / 2),
    }
    start, unravel = ravel_pytree(params)

    def loss(w):
        p = unravel(w)
        hidden = jnp.tanh(x @ p["first"] + jnp.broadcast_to(p["bias"], (64, 4)))
        return jnp.mean((hidden @ p["last"] - y) ** 2)

    return loss, start


def _cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.nightly
@pytest.mark.parametrize("trained", [0, 20])
def test_on_a_network_it_is_closer_to_the_damped_newton_direction(trained):
    """Than the gradient is, and the closer the more inner steps.

    The damping is what ``convexify`` adds to the Hessian: 1.5, 2 or 4 times the most
    negative curvature, so that the exact direction exists. At the random start the
    displacement leaves the region where the loss is nearly a quadratic, and the plain
    form stops at a cosine below 1, where the exact Hessian-vector products go on.
    """
    with jax.enable_x64(True):
        loss, w = _network()
        grad_fn = jax.grad(loss)
        descend = jax.jit(lambda w: w - 0.1 * grad_fn(w))
        for _ in range(trained):
            w = descend(w)
        grads, hessian = jax.jit(grad_fn)(w), jax.jit(jax.hessian(loss))(w)
        curvature = np.linalg.eigvalsh(hessian)
        assert curvature[0] < -0.01
        high = float(curvature[-1])

        @functools.partial(jax.jit, static_argnums=2)
        def direction(damping, num_inner_steps, use_hvp):
            tx = oht.neumann_inner_loop(
                1.0, num_inner_steps, convexify=(-damping, high), use_hvp=use_hvp
            )
            return tx.update(grads, tx.init(w), w, grad_fn=grad_fn)[0]

        for factor in (1.5, 2.0, 4.0):
            damping = factor * -float(curvature[0])
            exact = np.linalg.solve(hessian + damping * np.eye(len(w)), grads)
            plain, hvp = (
                [_cosine(direction(damping, k, form), exact) for k in (0, 5, 20, 100)]
                for form in (False, True)
            )
            of_gradient = _cosine(grads, exact)
            assert plain[0] == pytest.approx(of_gradient, abs=1e-12)
            assert np.all(np.diff(hvp) > 0)
            assert hvp[-1] > 0.95
            assert min(plain[1:]) > of_gradient + 0.2 * (1 - of_gradient)
            assert np.all(np.diff(plain) > -1e-3)
            if trained:
                assert plain[-1] > 0.9


def test_the_alias_is_the_composition_bit_for_bit():
    grad_fn = functools.partial(jax.tree.map, lambda w: 0.5 * w)
    for outer in (None, 0.2):
        rate = 0.5 if outer is None else outer
        parts = optax.chain(
            oht.neumann_inner_loop(0.5, 3), oht.scale_by_learning_rate(rate)
        )
        alias = oht.neumann_two_loop(0.5, 3, outer_learning_rate=outer)
        bound = (
            optax.GradientTransformation(
                tx.init, functools.partial(tx.update, grad_fn=grad_fn)
            )
            for tx in (alias, parts)
        )
        assert_same_bits(*bound, make_grads(), make_params())


def test_both_learning_rates_may_be_schedules_from_count_zero():
    tx = oht.neumann_two_loop(
        lambda count: 0.5**count, 1, outer_learning_rate=lambda count: 2.0**count
    )
    params = jnp.ones(1)
    grad_fn = functools.partial(jnp.multiply, 1.0)
    state, update = (
        tx.init(params),
        jax.jit(functools.partial(tx.update, grad_fn=grad_fn)),
    )
    for count in range(3):
        updates, state = update(params, state, params)
        inner = 0.5**count
        np.testing.assert_allclose(updates, -(2.0**count) * (2 - inner), rtol=1e-6)


def test_what_is_missing_is_named():
    tx = oht.neumann_two_loop(0.1, 2)
    w = jnp.ones(1)
    with pytest.raises(ValueError, match=r"grad_fn=grad_fn") as error:
        tx.update(w, tx.init(w), w)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="needs the current parameters"):
        tx.update(w, tx.init(w), grad_fn=jnp.sin)


def test_a_gradient_function_of_narrow_parameters_sees_their_dtype():
    """The sum is kept in float32 beside bfloat16 parameters."""
    w = jnp.ones(2, jnp.bfloat16)

    def grad_fn(point):
        assert point.dtype == jnp.bfloat16
        return jnp.full_like(point, 2.0**-9)

    tx = oht.neumann_inner_loop(0.1, 4)
    updates, _ = tx.update(jnp.ones(2), tx.init(w), w, grad_fn=grad_fn)
    assert updates.dtype == jnp.float32
    np.testing.assert_array_equal(updates, 1 + 4 * 2.0**-9)  # in bfloat16: 1


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_zero_gradients_move_nothing_and_bad_ones_are_loud(bad):
    tx = oht.neumann_two_loop(0.1, 3)
    grad_fn = functools.partial(jnp.multiply, 0.5)
    update = jax.jit(functools.partial(tx.update, grad_fn=grad_fn))
    zeros = jnp.zeros(2)
    np.testing.assert_array_equal(update(zeros, tx.init(zeros), zeros)[0], 0)
    updates, _ = update(jnp.array([1.0, bad]), tx.init(zeros), jnp.ones(2))
    assert np.isfinite(updates[0])
    assert not np.isfinite(updates[1])


def test_it_trains_a_quadratic_in_few_outer_steps():
    hessian = jnp.asarray(_hessian([0.1, 0.5, 1.0]), jnp.float32)
    grad_fn = functools.partial(jnp.matmul, hessian)
    tx = oht.neumann_two_loop(0.9, 50)
    update = jax.jit(functools.partial(tx.update, grad_fn=grad_fn))
    w = jnp.ones(3)
    state = tx.init(w)
    for _ in range(3):
        updates, state = update(grad_fn(w), state, w)
        w = optax.apply_updates(w, updates)
    assert np.linalg.norm(w) < 1e-5  # (1 - 0.09)^(3 * 51) is 5e-7


def test_positions_of_the_arguments():
    grad_fn = functools.partial(jnp.multiply, 0.5)
    bind = functools.partial(functools.partial, grad_fn=grad_fn)
    w = jnp.ones(2)
    first = oht.neumann_two_loop(0.1, 2)
    second = oht.neumann_two_loop(learning_rate=0.1, num_inner_steps=2)
    got, want = (
        one_step(optax.GradientTransformation(tx.init, bind(tx.update)), w, w)
        for tx in (first, second)
    )
    assert_trees_close(got, want, 0)
