"""What the wrapper around every transform promises, and who goes through it."""

import functools
import inspect
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from optax_heavytail import _transform
from optax_heavytail._weight_decay import Mask
from tests.compare import assert_trees_equal, types
from tests.in_time import in_time
from tests.registry import CASES, make_grads, make_params

each_case = pytest.mark.parametrize(
    "case", in_time(CASES, lambda name: not CASES[name].variant)
)


class State(NamedTuple):
    count: jax.Array
    mean: dict


def _halve(needs_params=False, dtype=None):
    """A method as its file has it; its types are recorded."""
    seen = {}

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)
        return State(jnp.zeros([], jnp.int32), zeros)

    def update(grads, state, *params):
        seen.update(grads=types(grads), mean=types(state.mean), params=types(params))
        mean = jax.tree.map(lambda m, g: (m + g) / 2, state.mean, grads)
        return mean, State(state.count + jnp.float32(1), mean)

    tx = _transform.transform(
        init, update, dtypes={"mean": dtype}, needs_params=needs_params
    )
    return tx, seen


@pytest.mark.parametrize("needs_params", [False, True])
def test_the_mathematics_is_wide_and_nothing_else_is(needs_params):
    tx, seen = _halve(needs_params)
    params, grads = {"w": jnp.ones(3, jnp.float16)}, {"w": jnp.full(3, 0.1, "bfloat16")}
    state = tx.init(params)
    updates, new_state = tx.update(grads, state, params, value=1.0)
    wide = types({"w": jnp.zeros(3, jnp.float32)})
    given = types(({"w": jnp.zeros(3, jnp.float32)},) if needs_params else ())
    assert seen == {"grads": wide, "mean": wide, "params": given}
    assert types(updates) == types(grads)
    assert types(new_state) == types(state)
    assert state.mean["w"].dtype == jnp.float16


def test_a_bfloat16_field_is_rounded_to_both_sides():
    tx, seen = _halve(dtype=jnp.bfloat16)
    grads = {"w": jnp.full(1000, 2 + 2**-7, jnp.float32)}  # half between neighbours
    state = tx.init(grads)
    assert isinstance(state, oht.StochasticRoundingState)
    updates, state = tx.update(grads, state)
    assert seen["mean"] == types(grads)
    np.testing.assert_array_equal(updates["w"], 1 + 2**-8)
    assert set(np.asarray(state.inner_state.mean["w"], float)) == {1, 1 + 2**-7}


@each_case
def test_every_transform_takes_extra_arguments_by_its_type(case):
    tx = case.factory(**case.kwargs)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)


@each_case
def test_init_makes_arrays_of_shapes_alone(case):
    """NaN where parameters would be copied: no silent start."""
    params = make_params()
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    got, want = case.make().init(shapes), case.make().init(params)
    assert types(got) == types(want)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(got))
    without_copies = jax.tree.map(
        lambda x, y: y if np.isnan(x).all() else x, *map(_numbers, (got, want))
    )
    assert_trees_equal(without_copies, _numbers(want))


def _numbers(state):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(state)]


def test_a_template_of_neumann_is_loud_if_it_is_taken_for_a_start():
    tx, params = oht.neumann(0.1), make_params()
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    _, state = jax.jit(tx.update)(make_grads()[0], tx.init(shapes), params)
    assert all(np.isnan(x).all() for x in jax.tree.leaves(state.average))


# A mask's own function sees the odd leaf first.
UNMASKED = {
    name: case for name, case in CASES.items() if "mask" not in str(case.kwargs)
}
ODD = {"a function": (jax.nn.relu, "is a custom_jvp"), "a word": ("gelu", "is a str")}


@pytest.mark.parametrize(("leaf", "what"), ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "case", in_time(UNMASKED, lambda name: not UNMASKED[name].variant)
)
def test_a_leaf_that_is_no_array_is_named(case, leaf, what):
    tx, params, (grads, *_) = case.make(), make_params(), make_grads()
    state = tx.init(params)
    params["kernel"] = grads["kernel"] = leaf
    message = rf"\['kernel'\] {what}; put None there"
    with pytest.raises(TypeError, match=message):
        tx.init(params)
    with pytest.raises(TypeError, match=message):
        tx.update(grads, state, params, **case.extra_args)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.int4, jnp.complex64])
@pytest.mark.parametrize("name", ["ema", "by_adam", "ratio"])
def test_a_dtype_that_no_state_can_have_is_named(name, dtype):
    params = make_params()
    params["kernel"] = params["kernel"].astype(dtype)
    with pytest.raises(TypeError, match=rf"\['kernel'\] has dtype {jnp.dtype(dtype)}"):
        CASES[name].make().init(params)


@pytest.mark.parametrize(
    "name", ["ema", "by_adam", "moment-leaf", "ratio", "inner_loop"]
)
def test_a_none_where_an_array_was_is_named(name):
    case, params = CASES[name], make_params()
    tx, (grads, *_) = case.make(), make_grads()
    grads["bias"][1] = None
    with pytest.raises(ValueError, match=r"leaf at \['bias'\]\[1\]; what is not"):
        tx.update(grads, tx.init(params), params, **case.extra_args)


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


# What `optax.inject_hyperparams` makes an array of, unless it is told not to.
WRONG = {
    bool: np.array(True),
    bool | None: np.array(True),
    int: 3,
    float: 2,
    str: np.array(1.0),
    jax.typing.DTypeLike | None: jnp.bfloat16,
    Mask | None: _matrices,
}
WRONG_NAMED = {"layer_axis": 0, "inner": oht.lambc}


def _static_arguments():
    """Every argument of every public factory whose type says that it is no number."""
    for case in {case.factory: case for case in CASES.values()}.values():
        for name, parameter in inspect.signature(case.factory).parameters.items():
            wrong = WRONG_NAMED.get(name, WRONG.get(parameter.annotation))
            if name == "inner" and case.factory is not oht.stack_leaves:
                continue  # a transform is no array and cannot become one
            if wrong is not None:
                yield pytest.param(
                    case, name, wrong, id=f"{case.factory.__name__}-{name}"
                )


@pytest.mark.parametrize(("case", "name", "wrong"), list(_static_arguments()))
def test_static_arguments_that_arrive_as_arrays_are_named(case, name, wrong):
    static = set(case.static_args) - {name}
    injected = optax.inject_hyperparams(case.factory, static)
    with pytest.raises(TypeError, match=re.escape(f'`static_args=("{name}",)`')):
        jax.eval_shape(injected(**case.kwargs | {name: wrong}).init, make_params())


# Optax's names, and its positions.
POSITIONAL = {("ema", "debias"), ("trace", "nesterov"), ("add_decayed_weights", "mask")}
POSITIONAL |= {(name, "accumulator_dtype") for name in ("ema", "trace")}


def test_what_decides_what_is_compiled_is_keyword_only():
    positional = set()
    for parameter in _static_arguments():
        case, name, _ = parameter.values
        function = case.factory
        kind = inspect.signature(function).parameters[name].kind
        if kind is not inspect.Parameter.KEYWORD_ONLY:
            positional.add((function.__name__, name))
    # What a transform cannot do without leads: what is inside, how many, which norm.
    leading = {("stack_leaves", "inner"), ("snapshot_ensemble", "num_snapshots")}
    windows = ("history", "norm_quantile", "norm_deviation")
    leading |= {(f"clip_by_{name}", "window") for name in windows}
    leading |= {("guarded", "window"), ("conditional_gradient", "gauge")}
    leading |= {("saga", "num_groups")}
    assert positional == POSITIONAL | leading


def _dtypes():
    for case in {case.factory: case for case in CASES.values()}.values():
        names = inspect.signature(case.factory).parameters
        found = [name for name in names if name.endswith("_dtype")]
        if found:
            yield pytest.param(case, found, id=case.factory.__name__)


@pytest.mark.parametrize(("case", "names"), list(_dtypes()))
def test_every_dtype_that_can_be_asked_for_is_kept(case, names):
    """And a state in bfloat16 has no array per coordinate that is wider."""
    tx = case.make(**dict.fromkeys(names, jnp.bfloat16))
    params, (grads, *_) = make_params(jnp.float32), make_grads()
    state = jax.eval_shape(tx.init, params)
    update = functools.partial(tx.update, **case.extra_args)
    _, new_state = jax.eval_shape(update, grads, state, params)
    assert types(new_state) == types(state)
    size = params["kernel"].size
    wide = [
        x for x in jax.tree.leaves(state) if x.dtype == "float32" and x.size >= size
    ]
    # Of Neumann v, of which the step is a difference; of SAGA the sum of its table.
    assert len(wide) == {oht.neumann: 1, oht.saga: 2}.get(case.factory, 0)
