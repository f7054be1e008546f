"""Numbers out of range and unknown words: one clear line, before anything runs."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_heavytail as oht

# argument: (its range as the message has it, numbers just outside, numbers inside)
DECAY = (r"\[0.0, 1.0\)", (-0.1, 1.0, 1), (0, 0.0, 0.999))
ORDER = (r"\[1.0, 2.0\]", (0.99, 2.01, 0), (1, 2, 1.5))
TAIL = (r"\(1.0, 2.0\]", (1.0, 2.5, 0), (1.01, 2))
NONNEGATIVE = (r"\[0.0, inf\)", (-1e-9, -1), (0, 0.0, 1e30))
POSITIVE = (r"\(0.0, inf\)", (0.0, 0, -1.0), (1e-30, 1e30))
COUNT = (r"\[1.0, inf\)", (0, -5, 0.5), (1, 10**7))

_gclip = {"learning_rate": 0.1, "threshold": 1.0}
_nonconvex = {"scale": 1.0, "num_steps": 10, "tail_order": 1.5}

# factory, valid arguments, what each argument allows
RANGES = {
    "ema": (oht.ema, {"decay": 0.9}, {"decay": DECAY}),
    "add_decayed_weights": (oht.add_decayed_weights, {}, {"weight_decay": NONNEGATIVE}),
    "scale_by_learning_rate": (
        oht.scale_by_learning_rate,
        {"learning_rate": 0.1},
        {"learning_rate": NONNEGATIVE},
    ),
    "clip_by_moment": (
        oht.clip_by_moment,
        {},
        {"b2": DECAY, "alpha": ORDER, "eps": NONNEGATIVE},
    ),
    "adaptive_coordinate_threshold": (
        oht.adaptive_coordinate_threshold,
        {},
        {"b2": DECAY, "alpha": ORDER},
    ),
    "scale_by_acclip": (
        oht.scale_by_acclip,
        {},
        {"b1": DECAY, "b2": DECAY, "alpha": ORDER, "eps": NONNEGATIVE},
    ),
    "acclip": (
        oht.acclip,
        {"learning_rate": 0.1},
        {
            "learning_rate": NONNEGATIVE,
            "b1": DECAY,
            "b2": DECAY,
            "alpha": ORDER,
            "eps": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
        },
    ),
    "clip_by_norm": (oht.clip_by_norm, {"threshold": 1.0}, {"threshold": POSITIVE}),
    "clip_by_value": (oht.clip_by_value, {"threshold": 1.0}, {"threshold": POSITIVE}),
    "gclip": (
        oht.gclip,
        _gclip,
        {
            "learning_rate": NONNEGATIVE,
            "threshold": POSITIVE,
            "b1": DECAY,
            "weight_decay": NONNEGATIVE,
        },
    ),
    "cclip": (
        oht.cclip,
        _gclip,
        {
            "learning_rate": NONNEGATIVE,
            "threshold": POSITIVE,
            "b1": DECAY,
            "weight_decay": NONNEGATIVE,
        },
    ),
    "strongly_convex_step": (oht.strongly_convex_step, {"mu": 1.0}, {"mu": POSITIVE}),
    "clipping_threshold": (
        oht.clipping_threshold,
        {"moment_bound": 1.0, "tail_order": 1.5},
        {"moment_bound": POSITIVE, "tail_order": TAIL},
    ),
    "nonconvex_step": (
        oht.nonconvex_step,
        _nonconvex,
        {"scale": POSITIVE, "num_steps": COUNT, "tail_order": TAIL},
    ),
    "nonconvex_threshold": (
        oht.nonconvex_threshold,
        _nonconvex,
        {"scale": POSITIVE, "num_steps": COUNT, "tail_order": TAIL},
    ),
}

each_argument = pytest.mark.parametrize(
    ("factory", "valid", "name", "rule"),
    [
        pytest.param(factory, valid, argument, rule, id=f"{name}-{argument}")
        for name, (factory, valid, rules) in RANGES.items()
        for argument, rule in rules.items()
    ],
)


@each_argument
def test_numbers_out_of_range_are_named(factory, valid, name, rule):
    allowed, outside, _ = rule
    for value in (*outside, np.nan, np.inf, -np.inf):
        for number in (value, np.float32(value), jnp.float32(value)):
            with pytest.raises(ValueError, match="must be in") as error:
                factory(**valid | {name: number})
            message = str(error.value)
            assert message.startswith(f"{name} must be in")
            assert error.match(allowed)
            assert message.endswith(f"got {number}.")
            assert "\n" not in message


@each_argument
def test_numbers_in_range_pass(factory, valid, name, rule):
    for value in rule[2]:
        factory(**valid | {name: value})
        factory(**valid | {name: np.float64(value)})


@each_argument
def test_traced_numbers_pass(factory, valid, name, rule):
    """They cannot be looked at: whoever traces them answers for them."""

    @jax.jit
    def make(x):
        factory(**valid | {name: x})
        return x

    make(rule[1][0])


@each_argument
def test_what_is_no_number_is_named(factory, valid, name, rule):
    for value in ("0.5", 0.5j, True, {"a": "0.5"}):
        with pytest.raises(TypeError, match="must be a number"):
            factory(**valid | {name: value})


@pytest.mark.parametrize("value", [[0.5], np.array([0.5]), jnp.ones(2)], ids=str)
def test_arrays_are_no_numbers(value):
    for factory, valid, rules in RANGES.values():
        for name in set(rules) - {"moment_bound", "threshold"}:
            with pytest.raises(TypeError, match=f"{name} must be a number"):
                factory(**valid | {name: value})
    with pytest.raises(TypeError, match="threshold must be a number"):
        oht.clip_by_norm(value)


def test_thresholds_of_no_leaves():
    for empty in ({}, None):
        with pytest.raises(ValueError, match="threshold must be a number, tree or"):
            oht.clip_by_value(empty)


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (functools.partial(oht.ema, 0.9), "accumulator_dtype"),
        (oht.clip_by_moment, "threshold_dtype"),
        (oht.adaptive_coordinate_threshold, "threshold_dtype"),
        (oht.scale_by_acclip, "threshold_dtype"),
    ],
)
def test_states_are_floating_point(factory, name):
    for dtype in (jnp.int32, "complex64", bool):
        with pytest.raises(ValueError, match=f"{name} must be a floating-point dtype"):
            factory(**{name: dtype})


def test_what_is_no_transform_is_named():
    with pytest.raises(TypeError, match="inner must be a gradient transformation, got"):
        oht.clip_by_moment(oht.ema)


def test_every_number_of_every_factory_is_checked():
    """Arguments without a range are words, flags, dtypes, masks and transforms."""
    others = {
        "accumulator_dtype",
        "axis_name",
        "bias_correction",
        "debias",
        "flip_sign",
        "inner",
        "mask",
        "mu_dtype",
        "nonfinite",
        "normalize",
        "scope",
        "threshold_dtype",
    }
    for factory, _, rules in RANGES.values():
        assert set(inspect.signature(factory).parameters) <= set(rules) | others
        assert set(rules) <= set(inspect.signature(factory).parameters)


def test_each_entry_of_a_tree_is_checked():
    for make in (
        oht.clip_by_value,
        functools.partial(oht.cclip, 0.1),
        functools.partial(oht.clipping_threshold, tail_order=1.5),
    ):
        for bad in (0.0, np.array([1.0, -1.0]), np.nan):
            with pytest.raises(ValueError, match=r"must be in \(0.0, inf\), got"):
                make({"w": 1.0, "b": [2.0, bad]})


@pytest.mark.parametrize(
    ("factory", "name", "allowed"),
    [
        (oht.clip_by_moment, "scope", "['coordinate', 'leaf', 'global']"),
        (
            functools.partial(oht.clip_by_norm, 1.0),
            "scope",
            "['global', 'leaf']",
        ),
        (
            functools.partial(oht.clip_by_norm, 1.0),
            "nonfinite",
            "['propagate', 'zero']",
        ),
    ],
)
def test_unknown_words_are_named(factory, name, allowed):
    for word in ("Global", "", "none"):
        with pytest.raises(ValueError, match=name) as error:
            factory(**{name: word})
        assert str(error.value) == f"{name} must be one of {allowed}, got {word!r}."


@pytest.mark.parametrize(
    "bad", [[0.5, 0.5], [0.5], np.array([0.5, 0.5]), (0.5,)], ids=str
)
def test_one_number_is_not_several(bad):
    """An array would broadcast against a leaf whose last axis happens to fit."""
    for make in (oht.clip_by_norm, oht.acclip, oht.ema, oht.add_decayed_weights):
        with pytest.raises(TypeError, match="must be a number"):
            make(bad)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.complex64])
def test_a_state_is_not_kept_in_integers(dtype):
    for make in (
        lambda: oht.scale_by_acclip(mu_dtype=dtype),
        lambda: oht.scale_by_acclip(threshold_dtype=dtype),
        lambda: oht.adaptive_coordinate_threshold(threshold_dtype=dtype),
    ):
        with pytest.raises(ValueError, match="must be a floating-point dtype"):
            make()


def test_what_is_no_transform_and_no_threshold():
    with pytest.raises(TypeError, match=r"inner must be .* got 0\.9"):
        oht.clip_by_moment(0.9)
    for empty in (None, {}):
        with pytest.raises(ValueError, match="threshold must be a number"):
            oht.clip_by_value(empty)


@pytest.mark.parametrize("bad", [np.nan, -1.0])
@pytest.mark.parametrize("clip", [oht.clip_by_norm, oht.clip_by_value])
def test_a_bad_threshold_of_a_schedule_is_loud(clip, bad):
    """It must not turn the clip off, nor the step around."""
    grads = jnp.array([0.0, 3.0, -4.0])
    tx = clip(lambda count: jnp.where(count < 1, 1.0, bad))
    updates, state = tx.update(grads, tx.init(grads))
    assert np.all(np.isfinite(updates))
    updates, _ = tx.update(grads, state)
    assert np.all(np.isnan(updates))


def test_a_decay_of_zero_has_a_finite_slope():
    def last_update(b2):
        tx = oht.clip_by_moment(b2=b2, bias_correction=True)
        grads = jnp.array([1.0, -2.0])
        return jnp.sum(tx.update(grads, tx.init(grads))[0])

    assert np.isfinite(jax.grad(last_update)(0.0))
