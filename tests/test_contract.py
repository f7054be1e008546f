"""Every Case of the registry against every rule that a transform must keep.

Most rules are the laws of the public conformance kit; here is what it lacks.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_heavytail import testing
from tests import compilation
from tests.compare import assert_trees_close, assert_trees_equal, types
from tests.in_time import in_time, in_turn
from tests.registry import CASES, make_grads, make_params

NARROW = (jnp.float16, jnp.bfloat16, jnp.float32)

# Gone through below, in a stronger form, and in tests/test_sharding.py.
STRONGER_HERE = {"grad", "injected", "scan", "sharding"}
LAWS = [law for law in testing.DEFAULT_LAWS if law not in STRONGER_HERE]
# These compile most and tell least of a transform that keeps the others.
LATER = {"two_models", "multi_steps", "vmap"}
# Their programs are the longest, and tests of their own have more to say.
LONG = {"by_mlp", "monitor"}
# Programs that tell apart what a wrapper does: several leaves in one norm, windows,
# branches.
A_FEW = ("acclip", "lambc", "gclip", "neumann", "cclip", "history", "skip-value")


def each_case(test, keep=lambda case: True):
    chosen = {name: case for name, case in CASES.items() if keep(case)}
    mark = pytest.mark.parametrize("case", chosen.values(), ids=chosen)
    return mark(test)


def is_structure(name):
    """Variants, which differ from another Case in their arithmetic alone, are none."""
    return not CASES[name].variant


@functools.cache
def is_first(name):
    """The first Case of its factory."""
    factory = CASES[name].factory
    return name == next(n for n, case in CASES.items() if case.factory is factory)


def is_first_structure(name):
    return is_first(name) and is_structure(name)


def each_in_time(is_quick):
    """Each Case; those that are not quick wait for the nightly."""
    return pytest.mark.parametrize("case", in_time(CASES, is_quick))


def each_in_turn(turn, keep=is_first_structure):
    """A third of these Cases, in other tests another third; all in the nightly.

    What compiles a program for each Case is what the tests take their time for.
    """
    names = in_turn((name for name in CASES if keep(name) and name not in LONG), turn)
    return each_in_time(lambda name: name in names)


each_structure = functools.partial(each_case, keep=lambda case: not case.variant)


def run(update, grads, params, state, **extra_args):
    """Updates of all steps, and the last state. The parameters stay where they are."""
    history = []
    for g in grads:
        updates, state = update(g, state, params, **extra_args)
        history.append(updates)
    return history, state


@functools.cache
def _jitted(name):
    """Donates the state; a field that is only written would be dropped, and is not."""
    update = functools.partial(CASES[name].make().update, **CASES[name].extra_args)
    return jax.jit(update, donate_argnums=1, keep_unused=True)


def run_case(case, grads, params):
    """The case alone under ``jit``, compiled once for all tests."""
    name = next(name for name, c in CASES.items() if c is case)
    return run(_jitted(name), grads, params, case.make().init(params))


def assert_same_run(got, want, case):
    assert_trees_close(got, want, case.drift)
    assert types(got) == types(want)


def _check_laws(case, laws, max_examples):
    """At the drift of the case, or at two roundings of a state that is narrow."""
    if not case.any_tree:
        laws = [law for law in laws if law not in ("empty", "scalar")]
    testing.check_transformation(
        case.make(),
        make_params(),
        factory=case.factory,
        kwargs=case.kwargs,
        static_args=case.static_args,
        extra_args=case.extra_args,
        laws=laws,
        rtol=case.drift,
        max_examples=max_examples,
    )


def _has_own_ways(name):
    """Chains are made of parts that have Cases."""
    if not is_first_structure(name):
        return False
    state = jax.eval_shape(CASES[name].make().init, make_params())
    is_chain = isinstance(state, tuple) and not hasattr(state, "_fields")
    return not is_chain or "inner" in CASES[name].kwargs


@each_in_turn(0, _has_own_ways)
def test_laws_of_the_kit(case):
    _check_laws(case, [law for law in LAWS if law not in LATER], max_examples=2)


@pytest.mark.nightly
@each_case
def test_laws_of_the_kit_on_many_inputs(case):
    _check_laws(case, LAWS, max_examples=10)


@pytest.mark.nightly
@each_case
def test_laws_of_the_kit_that_are_stronger_here(case):
    testing.check_transformation(
        case.make(),
        make_params(),
        factory=case.factory,
        kwargs=case.kwargs,
        static_args=case.static_args,
        extra_args=case.extra_args,
        laws=STRONGER_HERE,
    )


@each_in_time(is_first_structure)
def test_donated_buffers(case):
    """All runs of this module donate the state: here, that no leaf of it is copied."""
    name = next(name for name, c in CASES.items() if c is case)
    state = case.make().init(make_params())
    donated = jax.tree.leaves(state)
    run(_jitted(name), make_grads(), make_params(), state)
    assert all(x.is_deleted() for x in donated)


@each_in_turn(2)
def test_scan_with_bfloat16_parameters_and_float32_gradients(case):
    """The state must not change its type, nor the arithmetic lose its precision."""
    tx, params = case.make(), make_params(jnp.bfloat16)

    def step(state, grads):
        updates, state = tx.update(grads, state, params, **case.extra_args)
        return state, updates

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *make_grads())
    _, updates = jax.jit(lambda s: jax.lax.scan(step, s, stacked))(tx.init(params))
    got = [jax.tree.map(lambda u, k=k: u[k], updates) for k in range(4)]
    rounded = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    want, _ = run_case(case, make_grads(), rounded)
    # An inner transform that is not ours may keep its state in the parameters' dtype,
    # and a gradient function is called at parameters of that dtype.
    foreign = "inner" in case.kwargs or "grad_fn" in case.extra_args
    drift = 2**-7 if foreign else case.drift
    assert_trees_close(got, want, drift)
    assert types(got) == types(want)


@each_in_turn(1)
def test_derivatives_are_finite_and_right(case):
    """In float64: against finite differences, and at zero gradients."""
    _check_derivatives(case)


def test_derivatives_are_right_where_a_number_is_rounded_twice():
    """The newer code generator computes it anew for each use, to other last bits."""
    _check_derivatives(CASES["amsgrad"], compilation.as_users_do())


def _check_derivatives(case, compiler_options=None):
    with jax.enable_x64(True):
        tx, params = case.make(), make_params(jnp.float64)
        first, *_, grads = make_grads(jnp.float64)

        @functools.partial(jax.jit, compiler_options=compiler_options)
        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def summed(grads, params, state):  # all outputs, each with its own weights
            out = tx.update(grads, state, params, **case.extra_args)
            outputs = enumerate(_floats(out))
            return sum(jnp.sum(jnp.sin(i + x)) for i, x in outputs), out[1]

        fresh = tx.init(params)
        (_, later), _ = summed(first, params, fresh)
        zeros = jax.tree.map(jnp.zeros_like, grads)
        for g, state in itertools.product((grads, zeros), (fresh, later)):
            (value, _), slopes = summed(g, params, state)
            for leaf in jax.tree.leaves((value, slopes)):
                assert np.all(np.isfinite(leaf))

        if case.drift > 1e-3:
            return  # rounding a state to bfloat16 makes stairs, which have no slope
        # Zeros stay where they are: |g| has a kink there.
        direction = jax.tree.map(lambda g: jnp.where(g == 0, 0.0, jnp.cos(g)), grads)

        def along(h):
            moved = jax.tree.map(lambda g, d: g + h * d, grads, direction)
            (value, _), (slopes, _) = summed(moved, params, later)
            return value, optax.tree.vdot(slopes, direction)

        h = 1e-6  # balances rounding, 1e-16 / h, and curvature, h^2
        difference = (along(h)[0] - along(-h)[0]) / (2 * h)
        np.testing.assert_allclose(along(0.0)[1], difference, rtol=1e-6, atol=1e-8)


def _floats(tree):
    """But for inf, which is a limit that is not there yet."""
    floats = (x for x in jax.tree.leaves(tree) if jnp.isdtype(x.dtype, "real floating"))
    return [jnp.where(jnp.isinf(x), 0, x) for x in floats]


@each_in_turn(0)
def test_types_are_stable_under_every_mix_of_dtypes(case):
    """Also of two dtypes in one tree, and weak types."""
    for mix in itertools.product(NARROW, NARROW):
        _assert_stable(case, *mix)
    with jax.enable_x64(True):
        for mix in (jnp.float64, jnp.float32), (jnp.float16, jnp.float64):
            _assert_stable(case, *mix)


def _assert_stable(case, params_dtype, grads_dtype):
    tx = case.make()
    params, (grads, *_) = make_params(params_dtype), make_grads(grads_dtype)
    params["bias"][1] = params["bias"][1].astype(jnp.float32)  # dtypes mixed in a tree
    state = jax.eval_shape(tx.init, params)
    updates, new_state = jax.eval_shape(
        functools.partial(tx.update, **case.extra_args), grads, state, params
    )
    assert types(updates) == types(grads), (params_dtype, grads_dtype)
    assert types(new_state) == types(state), (params_dtype, grads_dtype)


@each_in_turn(1)
def test_injected_equals_plain(case):
    """Hyperparameters as arrays in the state, in one trace.

    A decay of 0.999 in float32 leaves 1 - 0.999 with 6e-8 / 1e-3 = 6e-5 of error, which
    the averages carry; the general power agrees with the special ones within 1e-6.
    """
    tx, params = case.make_injected(), make_params()
    traces = []

    @jax.jit
    def update(*args):
        traces.append(args)
        return tx.update(*args, **case.extra_args)

    history, state = run(update, make_grads(), params, tx.init(params))
    want_history, want_state = run_case(case, make_grads(), params)
    tolerance = max(6e-5, case.drift)
    assert_trees_close(history, want_history, tolerance)
    # A schedule's count is kept by inject_hyperparams, and not in the inner state.
    assert_trees_close(_floats(state.inner_state), _floats(want_state), tolerance)
    assert types(state) == types(tx.init(params))
    assert len(traces) == 1


@each_in_time(is_first_structure)
def test_zero_in_zero_out(case):
    """Zero gradients at zero parameters move nothing."""
    if np.isfinite(case.kwargs.get("inverse_temperature", np.inf)):
        pytest.skip("noise of that temperature moves them")
    if case.moves_at_zero:
        pytest.skip("a network says what a zero is")
    zeros = jax.tree.map(jnp.zeros_like, make_params())
    history, _ = run_case(case, [zeros, zeros], zeros)
    for u in jax.tree.leaves(history):
        np.testing.assert_array_equal(u, 0)


@each_in_time(is_first)
def test_parameters_are_asked_for_where_needed_and_only_there(case):
    tx, params, (grads, *_) = case.make(), make_params(), make_grads()
    update = functools.partial(tx.update, **case.extra_args)
    state = jax.eval_shape(tx.init, params)
    if case.needs_params:
        with pytest.raises(ValueError, match="needs the current parameters"):
            jax.eval_shape(update, grads, state)
    else:
        jax.eval_shape(update, grads, state)


@each_in_time(lambda name: name in A_FEW)
def test_apply_if_finite_skips_a_bad_step(case):
    params, (first, second, *_) = make_params(), make_grads()
    bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), first)
    tx = optax.apply_if_finite(case.make(), max_consecutive_errors=3)
    update = jax.jit(functools.partial(tx.update, **case.extra_args))
    (_, skipped, _), state = run(update, [first, bad, second], params, tx.init(params))
    assert all(np.all(u == 0) for u in jax.tree.leaves(skipped))
    want_state = run_case(case, [first, second], params)[1]
    assert_trees_close(state.inner_state, want_state, case.drift)


@each_case
def test_states_are_mapped_along_the_parameters(case):
    tx, params = case.make(), make_params()
    state = tx.init(params)
    map_params = functools.partial(
        optax.tree.map_params, tx, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    assert_trees_equal(map_params(lambda s: s, state), state)
    seen = []

    def record(s, name):
        seen.append(name)
        return s

    names = {"kernel": "kernel", "bias": ["bias", "scalar"]}
    if not case.like_params:
        with pytest.raises(ValueError, match="pytree"):
            map_params(record, state, names)
        return
    map_params(record, state, names)
    copies = seen.count("kernel")
    assert sorted(seen) == sorted(copies * ["kernel", "bias", "scalar"])
    arrays = [x for x in jax.tree.leaves(state) if x.shape == params["kernel"].shape]
    assert copies >= len(arrays)


@each_in_turn(2)
def test_numpy_inputs_are_left_alone(case):
    """The kit gives jax arrays, which cannot be written to."""
    tx, params, (grads, *_) = case.make(), make_params(), make_grads()
    _, state = run_case(case, [grads], params)
    inputs = jax.tree.map(np.array, (grads, state, params))
    before = jax.tree.map(np.copy, inputs)
    tx.update(*inputs, **case.extra_args)
    assert_trees_equal(inputs, before)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.complex64])
@each_in_time(is_first_structure)
def test_leaves_that_are_not_real_get_one_clear_error(case, dtype):
    tx, params, (grads, *_) = case.make(), make_params(), make_grads()
    state = tx.init(params)
    params["kernel"] = grads["kernel"] = jnp.ones((4, 2), dtype)
    message = rf"\['kernel'\] has dtype {jnp.dtype(dtype)}"
    with pytest.raises(TypeError, match=message):
        tx.init(params)
    with pytest.raises(TypeError, match=message):
        tx.update(grads, state, params, **case.extra_args)
