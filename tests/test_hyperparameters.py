"""Numbers out of range and unknown words: one clear line, before anything runs."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.registry import DECAY, NONNEGATIVE, POSITIVE, RECORDS, Range, Whole

TAIL = Range(r"\(1.0, 2.0\]", (1.0, 2.5, 0), (1.01, 2))
COUNT = Range(r"\[1.0, inf\)", (0, -5, 0.5), (1, 10**7))

_nonconvex = {"scale": 1.0, "num_steps": 10, "tail_order": 1.5}

MAY_BE_TREES = ("moment_bound", "threshold")

# Factory, valid arguments, what each argument allows. The transforms' are in the
# registry.
SCHEDULES = {
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
    "normalized_momentum": (
        oht.normalized_momentum,
        _nonconvex,
        {"scale": POSITIVE, "num_steps": COUNT, "tail_order": TAIL},
    ),
}
RANGES = SCHEDULES | {
    name: (case.factory, case.kwargs, case.ranges) for name, case in RECORDS.items()
}


def _each(kind):
    """All arguments whose numbers are of this kind."""
    params = [
        pytest.param(factory, valid, argument, rule, id=f"{name}-{argument}")
        for name, (factory, valid, rules) in RANGES.items()
        for argument, rule in rules.items()
        if isinstance(rule, kind)
    ]
    return pytest.mark.parametrize(("factory", "valid", "name", "rule"), params)


each_argument, each_whole_number = _each(Range), _each(Whole)


@each_argument
def test_numbers_out_of_range_are_named(factory, valid, name, rule):
    for value in (*rule.outside, np.nan, np.inf, -np.inf):
        for number in (value, np.float32(value), jnp.float32(value)):
            with pytest.raises(ValueError, match="must be in") as error:
                factory(**valid | {name: number})
            message = str(error.value)
            assert message.startswith(f"{name} must be in")
            assert error.match(rule.allowed)
            assert message.endswith(f"got {number}.")
            assert "\n" not in message


@each_argument
def test_numbers_in_range_pass(factory, valid, name, rule):
    for value in rule.inside:
        factory(**valid | {name: value})
        factory(**valid | {name: np.float64(value)})


@each_argument
def test_traced_numbers_pass(factory, valid, name, rule):
    """They cannot be looked at: whoever traces them answers for them."""

    def make(x):
        factory(**valid | {name: x})
        return x

    jax.eval_shape(make, rule.outside[0])


@each_argument
def test_what_is_no_number_is_named(factory, valid, name, rule):
    for value in ("0.5", 0.5j, True, {"a": "0.5"}):
        with pytest.raises(TypeError, match="must be a number"):
            factory(**valid | {name: value})


@pytest.mark.parametrize("value", [[0.5], np.array([0.5]), jnp.ones(2)], ids=str)
def test_arrays_are_no_numbers(value):
    for factory, valid, rules in RANGES.values():
        for name in rules:
            if name in MAY_BE_TREES or isinstance(rules[name], Whole):
                continue
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
    numbers = (jax.typing.ArrayLike, optax.ScalarOrSchedule)
    kinds = (*numbers, *(kind | None for kind in numbers))
    for factory, _, rules in RANGES.values():
        parameters = inspect.signature(factory).parameters
        found = {name for name, p in parameters.items() if p.annotation in kinds}
        # Up to inf, which the sampler's own test knows.
        assert found - {"inverse_temperature"} <= {*rules, *FURTHER}, factory
        assert set(rules) <= set(parameters)


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
        (oht.clip_by_history, "scope", "['global', 'leaf']"),
        (oht.clip_by_history, "nonfinite", "['propagate', 'zero']"),
        (oht.clip_by_norm_quantile, "scope", "['global', 'leaf']"),
        (oht.clip_by_norm_deviation, "rule", "['median', 'mean']"),
        (oht.clip_by_norm_deviation, "remember", "['raw', 'clipped']"),
        (oht.clip_by_zscore, "action", "['adaptive', 'mean', 'percentile']"),
        (oht.clip_by_norm_ema, "init", "['min', 'mean']"),
        (
            functools.partial(oht.skip_if_unsafe, optax.sgd(0.1)),
            "rule",
            "['median', 'mean']",
        ),
        (
            functools.partial(oht.skip_if_unsafe, optax.sgd(0.1)),
            "remember",
            "['safe', 'all']",
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

    assert np.isfinite(jax.jit(jax.grad(last_update))(0.0))


@pytest.mark.parametrize("factory", [oht.lambc, oht.larsc])
def test_bounds_are_a_pair_in_order(factory):
    for bad in ((), (1.0,), (0.0, 1.0, 2.0), 1.0):
        with pytest.raises(ValueError, match="trust_ratio_bounds must be a pair, got"):
            factory(0.1, trust_ratio_bounds=bad)
    for low, high in ((2.0, 1.0), (np.float32(2), 1.0), (jnp.array(2), jnp.array(1))):
        with pytest.raises(
            ValueError, match=r"bounds\[0\] must be at most trust_ratio_"
        ):
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
        (functools.partial(oht.guarded, optax.sgd(0.1)), "window"),
        (oht.clip_by_history, "window"),
        (oht.clip_by_norm_quantile, "window"),
        (oht.clip_by_norm_deviation, "window"),
        (
            functools.partial(oht.snapshot_ensemble, optax.sgd(0.1), t_0=2),
            "num_snapshots",
        ),
    ],
    ids=["n", "skip", "guarded", "history", "quantile", "deviation", "num_snapshots"],
)
def test_numbers_that_fix_a_shape_are_static(factory, name):
    for bad in (2.0, "2"):
        with pytest.raises(ValueError, match=f"{name} must be a Python integer"):
            factory(**{name: bad})
    for bad in (jnp.array(2), np.array(2)):
        with pytest.raises(TypeError, match=f"{name} decides what is compiled"):
            factory(**{name: bad})
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
        factory(**{name: 0})
    factory(**{name: np.int32(3)})


def test_whole_numbers_fit_the_count():
    with pytest.raises(ValueError, match="burn_in_steps must be at most 2147483647"):
        oht.neumann(0.1, burn_in_steps=2**31)


@each_whole_number
def test_whole_numbers_out_of_range_are_named(factory, valid, name, rule):
    low = rule.low
    for bad in (low - 1, 1.5, np.float32(2), np.nan, "2", True, np.array([2, 2])):
        with pytest.raises(ValueError, match="must be an integer") as error:
            factory(**valid | {name: bad})
        message = str(error.value)
        assert message == f"{name} must be an integer of at least {low}, got {bad!r}."
    for good in (low, np.int32(low + 3), jnp.asarray(low + 3)):
        factory(**valid | {name: good})


# Numbers that may be something else too, or go by another name in the message.
FURTHER = {
    "repulsive_scale": (functools.partial(oht.neumann, 0.1), -1.0),
    "outer_learning_rate": (functools.partial(oht.neumann_two_loop, 0.1, 2), -1.0),
    "maximum": (oht.neumann_momentum, 1.0),
    "t_mult": (functools.partial(oht.warm_restarts, 1.0, 2), 0.5),
    "relative": (oht.clipped_ema, -1.0),
}


@pytest.mark.parametrize("name", FURTHER)
def test_further_numbers_out_of_range(name):
    factory, outside = FURTHER[name]
    for bad in (outside, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"{name} must be in .*got {bad}"):
            factory(**{name: bad})


@pytest.mark.parametrize("make", [oht.lambc, oht.larsc], ids=["lambc", "larsc"])
def test_bounds_of_the_trust_ratio(make):
    for bounds, message in (
        ((-1.0, 1.0), r"trust_ratio_bounds\[0\] must be in \[0.0, inf\), got -1.0"),
        ((0.0, 0.0), r"trust_ratio_bounds\[1\] must be in \(0.0, inf\), got 0.0"),
        ((2.0, 1.0), r"must be at most trust_ratio_bounds\[1\], got 2.0 and 1.0"),
        ((np.nan, None), r"trust_ratio_bounds\[0\] must be in"),
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
