"""Numbers out of range and unknown words: one clear line, before anything runs."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
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

CLOSED = (r"\[0.0, 1.0\]", (-0.1, 1.1), (0, 1, 0.5))

_rate = {"learning_rate": 0.1}
_moments = {"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE}
_decayed = {
    "learning_rate": NONNEGATIVE,
    "weight_decay": NONNEGATIVE,
    "multiplier": NONNEGATIVE,
}

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
    "trace": (oht.trace, {"decay": 0.9}, {"decay": DECAY}),
    "scale_by_adam": (oht.scale_by_adam, {}, _moments),
    "adamw_decoupled": (oht.adamw_decoupled, _rate, _moments | _decayed),
    "sgdw": (oht.sgdw, _rate, _decayed | {"momentum": DECAY}),
    "scale_by_amsgrad": (oht.scale_by_amsgrad, {}, _moments),
    "amsgrad": (oht.amsgrad, _rate, _moments | {"learning_rate": NONNEGATIVE}),
    "scale_by_adashift": (oht.scale_by_adashift, {}, _moments),
    "adashift": (oht.adashift, _rate, _moments | {"learning_rate": NONNEGATIVE}),
    "scale_by_powersign": (
        oht.scale_by_powersign,
        {},
        {"b1": DECAY, "base": POSITIVE},
    ),
    "powersign": (
        oht.powersign,
        _rate,
        {"learning_rate": NONNEGATIVE, "b1": DECAY, "base": POSITIVE},
    ),
    "scale_by_addsign": (
        oht.scale_by_addsign,
        {},
        {"b1": DECAY, "alpha": NONNEGATIVE},
    ),
    "addsign": (
        oht.addsign,
        _rate,
        {"learning_rate": NONNEGATIVE, "b1": DECAY, "alpha": NONNEGATIVE},
    ),
    "clipped_gd": (
        oht.clipped_gd,
        _rate | {"max_update_norm": 1.0},
        {"learning_rate": NONNEGATIVE, "max_update_norm": POSITIVE},
    ),
    "normalize_by_norm": (oht.normalize_by_norm, {}, {"offset": NONNEGATIVE}),
    "normalized_gd": (
        oht.normalized_gd,
        _rate,
        {"learning_rate": NONNEGATIVE, "offset": NONNEGATIVE, "momentum": DECAY},
    ),
    "scale_by_clipped_trust_ratio": (
        oht.scale_by_clipped_trust_ratio,
        {"lower": None, "upper": None},
        {
            "lower": NONNEGATIVE,
            "upper": POSITIVE,
            "trust_coefficient": POSITIVE,
            "eps": NONNEGATIVE,
        },
    ),
    "lambc": (
        oht.lambc,
        _rate,
        _moments
        | {
            "learning_rate": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
            "max_grad_norm": POSITIVE,
        },
    ),
    "larsc": (
        oht.larsc,
        _rate,
        {
            "learning_rate": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
            "trust_coefficient": POSITIVE,
            "momentum": DECAY,
            "eps": NONNEGATIVE,
        },
    ),
    "neumann": (
        oht.neumann,
        _rate,
        {
            "learning_rate": NONNEGATIVE,
            "cubic": NONNEGATIVE,
            "repulsive": NONNEGATIVE,
            "ema_decay": CLOSED,
            "momentum": DECAY,
        },
    ),
    "skip_if_unsafe": (
        oht.skip_if_unsafe,
        {"inner": optax.sgd(0.1)},
        {"max_deviations": POSITIVE},
    ),
    "neumann_inner_loop": (
        oht.neumann_inner_loop,
        _rate | {"num_inner_steps": 1},
        {"learning_rate": POSITIVE},
    ),
    "neumann_two_loop": (
        oht.neumann_two_loop,
        _rate | {"num_inner_steps": 1},
        {"learning_rate": POSITIVE},
    ),
    "warm_restarts": (
        oht.warm_restarts,
        {"max_value": 1.0, "t_0": 2},
        {"max_value": NONNEGATIVE, "min_value": NONNEGATIVE},
    ),
    "transformer_schedule": (
        oht.transformer_schedule,
        {"model_dim": 4, "warmup_steps": 4},
        {"model_dim": COUNT, "warmup_steps": COUNT, "scale": POSITIVE},
    ),
    "neumann_momentum": (
        oht.neumann_momentum,
        {"maximum": 0.9995},
        {"minimum": DECAY},
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
    for dtype in (jnp.int32, "complex64", bool, jnp.float16, jnp.float8_e5m2):
        with pytest.raises(ValueError, match=f"{name} must be None, bfloat16"):
            factory(**{name: dtype})


def test_what_is_no_transform_is_named():
    with pytest.raises(TypeError, match="inner must be a gradient transformation, got"):
        oht.clip_by_moment(oht.ema)


def test_every_number_of_every_factory_is_checked():
    """The others are words, flags, dtypes, masks, whole numbers and functions."""
    others = {
        "accumulator_dtype",
        "burn_in_steps",
        "convexify",
        "decay",
        "fresh_batches",
        "layer_axis",
        "max_in_a_row",
        "maximum",
        "n",
        "nesterov",
        "nu_dtype",
        "num_inner_steps",
        "outer_learning_rate",
        "repulsive_scale",
        "reset_growth",
        "reset_interval",
        "t_0",
        "t_mult",
        "trust_ratio_bounds",
        "trust_ratio_mask",
        "use_hvp",
        "window",
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
        with pytest.raises(ValueError, match="must be None, bfloat16"):
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


@pytest.mark.parametrize("factory", [oht.lambc, oht.larsc])
def test_bounds_are_a_pair_in_order(factory):
    for bad in ((), (1.0,), (0.0, 1.0, 2.0), 1.0):
        with pytest.raises(ValueError, match="trust_ratio_bounds must be a pair, got"):
            factory(0.1, trust_ratio_bounds=bad)
    for low, high in ((2.0, 1.0), (np.float32(2), 1.0), (jnp.array(2), jnp.array(1))):
        with pytest.raises(ValueError, match="lower must be at most upper"):
            factory(0.1, trust_ratio_bounds=(low, high))


def test_curvature_bounds_are_a_pair():
    for bad in (1.0, (1.0,), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="convexify must be a pair, got"):
            oht.neumann_inner_loop(0.1, 1, convexify=bad)


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (functools.partial(oht.adashift, 0.1), "n"),
        (functools.partial(oht.skip_if_unsafe, optax.sgd(0.1)), "window"),
        (
            functools.partial(oht.snapshot_ensemble, optax.sgd(0.1), t_0=2),
            "num_snapshots",
        ),
    ],
    ids=["n", "window", "num_snapshots"],
)
def test_numbers_that_fix_a_shape_are_static(factory, name):
    for bad in (2.0, jnp.array(2), np.array(2), "2"):
        with pytest.raises(ValueError, match=f"{name} must be a Python integer"):
            factory(**{name: bad})
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
        factory(**{name: 0})
    factory(**{name: np.int32(3)})


def test_whole_numbers_fit_the_count():
    with pytest.raises(ValueError, match="burn_in_steps must be at most 2147483647"):
        oht.neumann(0.1, burn_in_steps=2**31)


WHOLE = [
    (functools.partial(oht.neumann, 0.1), "burn_in_steps", 0),
    (functools.partial(oht.neumann, 0.1), "reset_interval", 1),
    (functools.partial(oht.neumann, 0.1), "reset_growth", 1),
    (functools.partial(oht.neumann_two_loop, 0.1), "num_inner_steps", 0),
    (functools.partial(oht.skip_if_unsafe, optax.sgd(0.1)), "max_in_a_row", 1),
]


@pytest.mark.parametrize(
    ("factory", "name", "low"), WHOLE, ids=[name for _, name, _ in WHOLE]
)
def test_whole_numbers_out_of_range_are_named(factory, name, low):
    for bad in (low - 1, 1.5, np.float32(2), np.nan, "2", True, np.array([2, 2])):
        with pytest.raises(ValueError, match="must be an integer") as error:
            factory(**{name: bad})
        message = str(error.value)
        assert message == f"{name} must be an integer of at least {low}, got {bad!r}."
    for good in (low, np.int32(low + 3), jnp.asarray(low + 3)):
        factory(**{name: good})


@pytest.mark.parametrize(
    ("factory", "name", "outside"),
    [
        (functools.partial(oht.neumann, 0.1), "repulsive_scale", -1.0),
        (
            functools.partial(oht.neumann_two_loop, 0.1, 2),
            "outer_learning_rate",
            -1.0,
        ),
        (oht.neumann_momentum, "maximum", 1.0),
        (functools.partial(oht.warm_restarts, 1.0, 2), "t_mult", 0.5),
    ],
)
def test_further_numbers_out_of_range(factory, name, outside):
    word = name.removeprefix("outer_")
    for bad in (outside, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"{word} must be in .*got {bad}"):
            factory(**{name: bad})


@pytest.mark.parametrize("make", [oht.lambc, oht.larsc], ids=["lambc", "larsc"])
def test_bounds_of_the_trust_ratio(make):
    for bounds, message in (
        ((-1.0, 1.0), r"lower must be in \[0.0, inf\), got -1.0"),
        ((0.0, 0.0), r"upper must be in \(0.0, inf\), got 0.0"),
        ((2.0, 1.0), "lower must be at most upper, got 2.0 and 1.0"),
        ((np.nan, None), "lower must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            make(0.1, trust_ratio_bounds=bounds)
    for bounds in (None, (None, None), (0.5, None), (None, 0.5), (1, 1), (0.0, len)):
        make(0.1, trust_ratio_bounds=bounds)


def test_bounds_of_the_curvature():
    for bounds, message in (
        ((0.0, 0.0), r"convexify\[1\] must be in \(0.0, inf\), got 0.0"),
        ((-np.inf, 1.0), r"convexify\[0\] must be in"),
        ((2.0, 1.0), r"convexify\[0\] must be at most convexify\[1\], got 2.0 and 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            oht.neumann_inner_loop(0.1, 2, convexify=bounds)
