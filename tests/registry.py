"""Every public transform and its variants, with all that the tests know of each.

A transform is written down here and nowhere else among the tests: what holds for all of
them, their signatures, ranges, states and trajectories is tested from `CASES`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from tests import trajectories
from tests.trajectories import Golden

# Dimensions of 2 and 4 can be sharded over meshes of two and four devices.
SHAPES = {"kernel": (4, 2), "bias": [(2,), ()]}


class Range(NamedTuple):
    """What a number may be."""

    allowed: str  # as a regular expression for the message
    outside: tuple[Any, ...]
    inside: tuple[Any, ...]


class Whole(NamedTuple):
    """A whole number, which may be traced all the same."""

    low: int


DECAY = Range(r"\[0.0, 1.0\)", (-0.1, 1.0, 1), (0, 0.0, 0.999))
SHARE = Range(r"\(0.0, 1.0\]", (0.0, 0, 1.1), (1e-30, 1, 0.5))
CLOSED = Range(r"\[0.0, 1.0\]", (-0.1, 1.1), (0, 1, 0.5))
ANY = Range(r"\(-inf, inf\)", (float("inf"), float("nan")), (-2, 0.5))
ORDER = Range(r"\[1.0, 2.0\]", (0.99, 2.01, 0), (1, 2, 1.5))
NONNEGATIVE = Range(r"\[0.0, inf\)", (-1e-9, -1), (0, 0.0, 1e30))
POSITIVE = Range(r"\(0.0, inf\)", (0.0, 0, -1.0), (1e-30, 1e30))

_MOMENTS = {"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE}
_DECAYED = dict.fromkeys(("learning_rate", "weight_decay", "multiplier"), NONNEGATIVE)


@dataclasses.dataclass(frozen=True)
class Case:
    factory: Callable[..., Any]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    static_args: tuple[str, ...] = ()  # for inject_hyperparams: callables, dtypes
    needs_params: bool = False
    extra_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    any_tree: bool = True  # False: a hyperparameter has the tree structure of SHAPES
    # True: differs in its arithmetic alone from another Case of the same structure, so
    # it is not run once more under every wrapper.
    variant: bool = False
    # How far two ways of running the same steps may drift apart: XLA contracts
    # a * b + c inside a fusion, and sums in an order of its own, which moves the last
    # bits of each of a few steps. Where a state is kept in bfloat16, such a bit can
    # flip its rounding, of relative size 2^-8.
    drift: float = 2e-6
    like_params: bool = True  # False: the state has a layout of its own
    moves_at_zero: bool = False  # True: a gradient of zero is no reason to stay

    # What is said once of each factory, in one of its Cases:
    signature: str | None = None  # the names, order and defaults that users have typed
    # What each number may be, where all others are as in ``kwargs``.
    ranges: Mapping[str, Range | Whole] = dataclasses.field(default_factory=dict)
    # The fields of the classes of states that come with the factory.
    states: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # Algorithms of the reference trajectories that the factory follows.
    golden: Mapping[str, Golden] = dataclasses.field(default_factory=dict)

    def make(self, **changes):
        return optax.with_extra_args_support(self.factory(**self.kwargs | changes))

    def make_injected(self):
        injected = optax.inject_hyperparams(
            self.factory, self.static_args, hyperparam_dtype=jnp.float32
        )
        return injected(**self.kwargs)


def tree(seed, scale=1.0, dtype=jnp.float32, shapes=None):
    """Heavy-tailed numbers, one of them exactly 0."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        values = scale * rng.standard_t(1.5, size=shape)
        if shape == SHAPES["kernel"]:
            values[1, 1] = 0.0
        return jnp.asarray(values, dtype)

    shapes = SHAPES if shapes is None else shapes
    return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


def make_params(dtype=jnp.float32, shapes=None):
    return tree(0, dtype=dtype, shapes=shapes)


def make_grads(dtype=jnp.float32, shapes=None):
    """Gradients of four steps, small and large against the thresholds below."""
    scales = (1.0, 0.02, 30.0, 0.5)
    return [tree(k, s, dtype, shapes) for k, s in enumerate(scales, 1)]


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


def _dimensions(params):
    return jax.tree.map(lambda p: "rest" if jnp.ndim(p) < 2 else "matrices", params)


def _is_matrices(stacks):
    return {label: label == "matrices" for label in stacks}


def _half_life(count):
    return 0.5 ** (count / 2)


def _from_one(count):
    return 1 - 0.2 * count


def _grad_fn(params, k=0):
    """The gradient of a strongly convex function, another one in each inner step."""
    return jax.tree.map(lambda w: (0.3 + 0.1 * k) * w + 0.1 * jnp.sin(w), params)


# w - v has lost about one digit of its parameters' seven.
_CANCELS = {"drift": 2e-5}
# Iterations for a polar factor lift the rounding of small singular values.
_POLAR = {"drift": 1e-4}
_LOGITS = {"kernel": jnp.array([50.0, 400.0]), "bias": jnp.array([jnp.nan, 200.0])}
_STACKED = {"kernel": 0, "bias": None}
_TREE = {"kernel": 0.5, "bias": [0.25, 0.125]}
_PREFIX = {"kernel": jnp.linspace(0.1, 2.0, 8).reshape(4, 2), "bias": 0.25}
_DTYPES = ("mu_dtype", "threshold_dtype")
_BF16 = {"drift": 2**-7}
_HISTORY = ("threshold", "kept", "num_clipped", "history")
_RATE, _MOMENTUM = oht.normalized_momentum()


def network(kind, shapes):
    """Weights of a learned optimizer that nobody has trained, none of them 0."""
    rng = np.random.default_rng(0)
    return kind(*(np.float32(rng.normal(0, 0.3, shape)) for shape in shapes))


def lstm(inputs):
    shapes = [(inputs + 20, 80), (80,), (40, 80), (80,), (20,), ()]
    return network(oht.learned.LSTMWeights, shapes)


MLP = network(oht.learned.MLPWeights, [(9, 8), (8,), (8, 8), (8,), (8, 2), (2,)])

CASES = {
    "ema": Case(
        oht.ema,
        {"decay": 0.9},
        signature=(
            "decay, debias=True, accumulator_dtype=None, *, init='zero', nesterov=False"
        ),
        ranges={"decay": DECAY},
    ),
    "ema-first": Case(
        oht.ema,
        {"decay": _MOMENTUM, "init": "first", "nesterov": True},
        ("nesterov",),
        variant=True,
    ),
    "ema-published": Case(oht.ema, {"decay": 0.9, "debias": False}, variant=True),
    "ema-bfloat16": Case(
        oht.ema,
        {"decay": 0.9, "accumulator_dtype": jnp.bfloat16},
        ("accumulator_dtype",),
        **_BF16,
        variant=True,
    ),
    "decay-0": Case(
        oht.add_decayed_weights,
        signature="weight_decay=0.0, mask=None, *, cautious=False",
        ranges={"weight_decay": NONNEGATIVE},
        states={"AddDecayedWeightsState": ("count",)},
    ),
    "decay": Case(oht.add_decayed_weights, {"weight_decay": 0.1}, needs_params=True),
    "decay-mask": Case(
        oht.add_decayed_weights,
        {"weight_decay": 0.1, "mask": _matrices},
        ("mask",),
        needs_params=True,
    ),
    "decay-schedule": Case(
        oht.add_decayed_weights, {"weight_decay": _half_life}, needs_params=True
    ),
    "decay-cautious": Case(
        oht.add_decayed_weights,
        {"weight_decay": 0.1, "cautious": True},
        ("cautious",),
        needs_params=True,
        variant=True,
    ),
    "cautious": Case(
        oht.cautious,
        {"inner": oht.trace(0.9)},
        signature=(
            "inner, *, normalization='mean', floor=0.001, descent=False, "
            "scope='leaf', layer_axis=None, axis_name=None"
        ),
        ranges={"floor": SHARE},
    ),
    "cautious-descent": Case(
        oht.cautious,
        {
            "inner": oht.acclip(0.1, normalize=True),
            "descent": True,
            "floor": 0.5,
            "layer_axis": _STACKED,
        },
        ("layer_axis",),
        needs_params=True,
        any_tree=False,
    ),
    "cautious-paper": Case(
        oht.cautious,
        {"inner": oht.ema(0.9), "normalization": "paper", "scope": "global"},
        variant=True,
    ),
    "grams": Case(oht.grams, {"inner": oht.trace(0.9)}, signature="inner"),
    "clipped_ema": Case(
        oht.clipped_ema,
        {"threshold": 0.5},
        signature=(
            "decay=0.9, threshold=None, *, relative=None, b2=0.99, init='zero', "
            "inner=None, scope='coordinate', layer_axis=None, accumulator_dtype=None, "
            "nonfinite='propagate', axis_name=None"
        ),
        ranges={"decay": DECAY, "threshold": POSITIVE, "b2": DECAY},
        states={"ClippedEmaState": ("count", "mu", "distance", "inner_state")},
    ),
    "clipped_ema-relative": Case(
        oht.clipped_ema,
        {"relative": 2.0, "b2": 0.5, "nonfinite": "zero"},
        variant=True,
    ),
    "clipped_ema-layers": Case(
        oht.clipped_ema,
        {
            "relative": 1.5,
            "init": "first",
            "inner": oht.ema(0.5),
            "scope": "leaf",
            "layer_axis": _STACKED,
            "accumulator_dtype": jnp.bfloat16,
        },
        ("layer_axis", "accumulator_dtype"),
        any_tree=False,
        **_BF16,
    ),
    "clipped_ema-global": Case(
        oht.clipped_ema,
        {"decay": 0.0, "threshold": _half_life, "scope": "global"},
        variant=True,
    ),
    "lr": Case(
        oht.scale_by_learning_rate,
        {"learning_rate": 0.1},
        signature="learning_rate, *, flip_sign=True",
        ranges={"learning_rate": NONNEGATIVE},
    ),
    "lr-schedule": Case(oht.scale_by_learning_rate, {"learning_rate": _half_life}),
    "lr-ascent": Case(
        oht.scale_by_learning_rate,
        {"learning_rate": 0.1, "flip_sign": False},
        variant=True,
    ),
    "moment": Case(
        oht.clip_by_moment,
        signature=(
            "inner=None, *, b2=0.99, alpha=1.0, eps=1e-05, "
            "scope='coordinate', threshold_dtype=None, bias_correction=None, "
            "normalize=False, include_current=True, max_growth=None, winsorise=None, "
            "report=False, axis_name=None"
        ),
        ranges={
            "b2": DECAY,
            "alpha": ORDER,
            "eps": NONNEGATIVE,
            "max_growth": POSITIVE,
            "winsorise": POSITIVE,
        },
        states={
            "ClipByMomentState": (
                "count",
                "threshold",
                "clipped",
                "kept",
                "raw",
                "inner_state",
            )
        },
    ),
    "moment-ema": Case(
        oht.clip_by_moment, {"inner": oht.ema(0.9, debias=False)}, variant=True
    ),
    "moment-nesterov": Case(
        oht.clip_by_moment, {"inner": optax.trace(0.9, nesterov=True), "alpha": 1.5}
    ),
    "moment-normalize": Case(
        oht.clip_by_moment, {"alpha": 2, "eps": 0.0, "normalize": True}, variant=True
    ),
    "moment-corrected": Case(
        oht.clip_by_moment, {"alpha": 1.5, "bias_correction": True}, variant=True
    ),
    "moment-bfloat16": Case(
        oht.clip_by_moment,
        {"threshold_dtype": jnp.bfloat16},
        _DTYPES[1:],
        **_BF16,
        variant=True,
    ),
    "moment-guarded": Case(
        oht.clip_by_moment,
        {"normalize": True, "include_current": False, "winsorise": 8.0},
        variant=True,
    ),
    "moment-leaf": Case(oht.clip_by_moment, {"scope": "leaf"}),
    "moment-leaf-guarded": Case(
        oht.clip_by_moment,
        {"scope": "leaf", "max_growth": 2.0, "winsorise": 4.0},
        variant=True,
    ),
    "moment-leaf-normalize": Case(
        oht.clip_by_moment,
        {
            "inner": oht.ema(0.9, debias=False),
            "scope": "leaf",
            "alpha": 2.0,
            "normalize": True,
        },
        variant=True,
    ),
    "moment-global": Case(oht.clip_by_moment, {"scope": "global"}),
    "moment-global-corrected": Case(
        oht.clip_by_moment,
        {
            "inner": oht.ema(0.9, debias=False),
            "scope": "global",
            "alpha": 1.5,
            "bias_correction": True,
        },
        variant=True,
    ),
    "moment-global-normalize": Case(
        oht.clip_by_moment,
        {"scope": "global", "eps": 0.0, "normalize": True},
        variant=True,
    ),
    "threshold": Case(
        oht.adaptive_coordinate_threshold,
        signature="b2=0.99, alpha=1.0, *, threshold_dtype=None",
        ranges={"b2": DECAY, "alpha": ORDER},
        states={"AdaptiveCoordinateThresholdState": ("count", "threshold")},
    ),
    "threshold-bfloat16": Case(
        oht.adaptive_coordinate_threshold,
        {"alpha": 1.5, "threshold_dtype": jnp.bfloat16},
        _DTYPES[1:],
        **_BF16,
        variant=True,
    ),
    "by_acclip": Case(
        oht.scale_by_acclip,
        signature=(
            "b1=0.9, b2=0.99, alpha=1.0, eps=1e-05, *, "
            "bias_correction=None, normalize=False, include_current=True, "
            "max_growth=None, winsorise=None, report=False, mu_dtype=None, "
            "threshold_dtype=None"
        ),
        ranges={
            "b1": DECAY,
            "b2": DECAY,
            "alpha": ORDER,
            "eps": NONNEGATIVE,
            "max_growth": POSITIVE,
            "winsorise": POSITIVE,
        },
    ),
    "by_acclip-normalize": Case(
        oht.scale_by_acclip,
        {"b2": 0.999, "alpha": 1.5, "normalize": True},
        variant=True,
    ),
    "by_acclip-uncorrected": Case(
        oht.scale_by_acclip,
        {"alpha": 2.0, "normalize": True, "bias_correction": False},
        variant=True,
    ),
    "by_acclip-bfloat16": Case(
        oht.scale_by_acclip,
        {"mu_dtype": jnp.bfloat16, "threshold_dtype": jnp.bfloat16},
        _DTYPES,
        **_BF16,
        variant=True,
    ),
    "acclip": Case(
        oht.acclip,
        {"learning_rate": 0.1},
        needs_params=True,
        signature=(
            "learning_rate, b1=0.9, b2=0.99, alpha=1.0, eps=1e-05, "
            "weight_decay=1e-05, *, mask=None, bias_correction=None, "
            "normalize=False, include_current=True, max_growth=None, winsorise=None, "
            "mu_dtype=None, threshold_dtype=None"
        ),
        ranges={
            "learning_rate": NONNEGATIVE,
            "b1": DECAY,
            "b2": DECAY,
            "alpha": ORDER,
            "eps": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
            "max_growth": POSITIVE,
            "winsorise": POSITIVE,
        },
        golden={"acclip": trajectories.ACCLIP},
    ),
    "acclip-no-decay": Case(
        oht.acclip, {"learning_rate": 0.1, "weight_decay": 0}, variant=True
    ),
    "acclip-normalize-mask": Case(
        oht.acclip,
        {
            "learning_rate": 0.1,
            "weight_decay": 0.1,
            "mask": _matrices,
            "normalize": True,
        },
        ("mask",),
        needs_params=True,
    ),
    "acclip-schedules": Case(
        oht.acclip,
        {"learning_rate": _half_life, "b1": 0, "weight_decay": _half_life},
        needs_params=True,
    ),
    "norm": Case(
        oht.clip_by_norm,
        {"threshold": 1.0},
        signature=(
            "threshold, *, scope='global', nonfinite='propagate', axis_name=None"
        ),
        ranges={"threshold": POSITIVE},
        states={"ClipByNormState": ("count", "kept")},
    ),
    "norm-leaf": Case(oht.clip_by_norm, {"threshold": 1.0, "scope": "leaf"}),
    "norm-zero": Case(
        oht.clip_by_norm, {"threshold": 1.0, "nonfinite": "zero"}, variant=True
    ),
    "norm-leaf-zero": Case(
        oht.clip_by_norm,
        {"threshold": 1.0, "scope": "leaf", "nonfinite": "zero"},
        variant=True,
    ),
    "norm-schedule": Case(
        oht.clip_by_norm, {"threshold": oht.clipping_threshold(0.5, 1.5)}
    ),
    "rms": Case(
        oht.clip_by_rms,
        signature=(
            "threshold=1.0, *, scope='leaf', layer_axis=None, nonfinite='propagate', "
            "axis_name=None"
        ),
        ranges={"threshold": POSITIVE},
    ),
    "rms-layers": Case(
        oht.clip_by_rms,
        {"threshold": 0.5, "layer_axis": _STACKED, "nonfinite": "zero"},
        ("layer_axis",),
        any_tree=False,
    ),
    "conditional": Case(
        oht.conditional_gradient,
        {"strength": 2.0},
        needs_params=True,
        signature="strength, gauge='l1', *, step=None",
        ranges={"strength": POSITIVE, "step": CLOSED},
        states={"ConditionalGradientState": ("count",)},
    ),
    "conditional-l2": Case(
        oht.conditional_gradient,
        {"strength": 2.0, "gauge": "l2", "step": _half_life},
        needs_params=True,
        variant=True,
    ),
    "conditional-linf": Case(
        oht.conditional_gradient,
        {"strength": 2.0, "gauge": "linf"},
        needs_params=True,
        variant=True,
    ),
    "conditional-spectral": Case(
        oht.conditional_gradient,
        {"strength": 2.0, "gauge": "spectral", "step": 0.25},
        needs_params=True,
        **_POLAR,
        variant=True,
    ),
    "saga": Case(
        oht.saga,
        {"num_groups": 3},
        ("num_groups",),
        extra_args={"group": 1},
        signature="num_groups, *, variant='saga', table_dtype=None, axis_name=None",
        states={"SagaState": ("count", "table", "total", "rest", "seen")},
    ),
    "saga-sag-bfloat16": Case(
        oht.saga,
        {"num_groups": 3, "variant": "sag", "table_dtype": jnp.bfloat16},
        ("num_groups", "table_dtype"),
        extra_args={"group": 2},
        **_BF16,
        variant=True,
    ),
    "langevin": Case(
        oht.overdamped_langevin,
        {"learning_rate": 0.1, "inverse_temperature": 4.0, "key": 1},
        ("key",),
        signature="learning_rate, inverse_temperature, *, skew=0.0, key",
        ranges={
            "learning_rate": NONNEGATIVE,
            "skew": ANY,
        },
        states={"OverdampedLangevinState": ("count", "rng_key")},
    ),
    "langevin-skew": Case(
        oht.overdamped_langevin,
        {
            "learning_rate": _half_life,
            "inverse_temperature": float("inf"),
            "skew": 0.5,
            "key": jax.random.key(2),
        },
        ("key",),
        variant=True,
    ),
    "langevin-velocity": Case(
        oht.underdamped_langevin,
        {
            "learning_rate": 0.1,
            "friction": 2.0,
            "inverse_temperature": 4.0,
            "key": 3,
        },
        ("key",),
        signature="learning_rate, friction, inverse_temperature, *, key",
        ranges={
            "learning_rate": NONNEGATIVE,
            "friction": NONNEGATIVE,
        },
        states={"UnderdampedLangevinState": ("count", "rng_key", "mu")},
    ),
    "orthogonalize": Case(
        oht.orthogonalize,
        signature=(
            "*, matrix_axes=(-2, -1), steps=5, coefficients='polar_express', "
            "shape_scale='width', eps=1e-08"
        ),
        ranges={"eps": NONNEGATIVE},
        static_args=("matrix_axes", "steps"),
        **_POLAR,
    ),
    "orthogonalize-quintic": Case(
        oht.orthogonalize,
        {"coefficients": "quintic", "shape_scale": "rms", "matrix_axes": (-1, -2)},
        ("matrix_axes", "steps"),
        **_POLAR,
        variant=True,
    ),
    "qk": Case(
        oht.qk_clip,
        {
            "exponents": {"kernel": 0.5, "bias": [1.0, None]},
            "head_axes": {"kernel": 0, "bias": 0},
        },
        ("head_axes",),
        needs_params=True,
        extra_args={"max_logits": _LOGITS},
        any_tree=False,
        signature="exponents, *, head_axes, threshold=100.0",
        ranges={"threshold": POSITIVE},
        states={"QKClipState": ("count", "num_clipped", "num_nonfinite")},
    ),
    "spectral": Case(
        oht.clip_by_spectral_norm,
        {"threshold": 1.0},
        ("matrix_axes", "steps"),
        **_POLAR,
        signature=(
            "threshold, *, soft=True, steps=12, matrix_axes=(-2, -1), shape_scale=None"
        ),
        ranges={"threshold": POSITIVE},
    ),
    "spectral-hard": Case(
        oht.clip_by_spectral_norm,
        {"threshold": _half_life, "soft": False, "shape_scale": "width"},
        ("matrix_axes", "steps"),
        **_POLAR,
        variant=True,
    ),
    "value": Case(
        oht.clip_by_value,
        {"threshold": 0.5},
        signature="threshold",
        ranges={"threshold": POSITIVE},
        states={"ClipByValueState": ("count",)},
    ),
    "value-tree": Case(oht.clip_by_value, {"threshold": _TREE}, any_tree=False),
    "value-prefix": Case(oht.clip_by_value, {"threshold": _PREFIX}, any_tree=False),
    "value-schedule": Case(
        oht.clip_by_value, {"threshold": oht.clipping_threshold(0.1, 1.5)}, variant=True
    ),
    "value-tree-schedule": Case(
        oht.clip_by_value,
        {"threshold": oht.clipping_threshold(_TREE, 1.5)},
        ("threshold",),  # inject_hyperparams takes schedules of single numbers only
        any_tree=False,
    ),
    "gclip": Case(
        oht.gclip,
        {"learning_rate": 0.1, "threshold": 1.0},
        signature=(
            "learning_rate, threshold, b1=0.9, weight_decay=0.0, *, "
            "mask=None, bias_correction=False, mu_dtype=None, "
            "axis_name=None"
        ),
        ranges={
            "learning_rate": NONNEGATIVE,
            "threshold": POSITIVE,
            "b1": DECAY,
            "weight_decay": NONNEGATIVE,
        },
        golden={"gclip": trajectories.GCLIP},
    ),
    "gclip-theory": Case(
        oht.gclip,
        {
            "learning_rate": oht.strongly_convex_step(0.5),
            "threshold": oht.clipping_threshold(0.5, 1.5),
            "b1": 0.0,
        },
        variant=True,
    ),
    "gclip-all": Case(
        oht.gclip,
        {
            "learning_rate": oht.nonconvex_step(1.0, 100, 1.5),
            "threshold": oht.nonconvex_threshold(0.1, 100, 1.5),
            "weight_decay": 0.1,
            "mask": _matrices,
            "bias_correction": True,
            "mu_dtype": jnp.bfloat16,
        },
        ("mask", "mu_dtype"),
        needs_params=True,
        **_BF16,
    ),
    "cclip": Case(
        oht.cclip,
        {"learning_rate": 0.1, "threshold": 0.5},
        signature=(
            "learning_rate, threshold, b1=0.9, weight_decay=0.0, *, "
            "mask=None, bias_correction=False, mu_dtype=None"
        ),
        ranges={
            "learning_rate": NONNEGATIVE,
            "threshold": POSITIVE,
            "b1": DECAY,
            "weight_decay": NONNEGATIVE,
        },
        golden={"cclip": trajectories.CCLIP},
    ),
    "cclip-all": Case(
        oht.cclip,
        {
            "learning_rate": _half_life,
            "threshold": _PREFIX,
            "weight_decay": 0.1,
            "mask": _matrices,
            "bias_correction": True,
            "mu_dtype": jnp.bfloat16,
        },
        ("mask", "mu_dtype"),
        needs_params=True,
        any_tree=False,
        **_BF16,
    ),
    "average": Case(
        oht.weighted_iterate_average,
        {"inner": oht.gclip(0.1, 1.0, weight_decay=0.1)},
        needs_params=True,
        signature="inner",
        states={"WeightedIterateAverageState": ("count", "average", "inner_state")},
    ),
    "average-acclip": Case(
        oht.weighted_iterate_average,
        {"inner": oht.acclip(0.1, normalize=True)},
        needs_params=True,
        variant=True,
    ),
    "skip": Case(
        oht.skip_if_unsafe,
        {"inner": oht.gclip(0.1, 1.0, weight_decay=0.1), "window": 3},
        ("window",),
        needs_params=True,
        signature="inner, *, max_deviations=10.0, max_value_deviations=None, "
        "window=128, rule='median', remember='safe', max_in_a_row=10, axis_name=None",
        ranges={
            "max_deviations": POSITIVE,
            "max_value_deviations": POSITIVE,
            "max_in_a_row": Whole(1),
        },
        states={
            "SkipIfUnsafeState": (
                "count",
                "num_nonfinite",
                "num_spikes",
                "num_value_spikes",
                "num_in_a_row",
                "limit_reached",
                "norms",
                "values",
                "inner_state",
            )
        },
    ),
    "skip-value": Case(
        oht.skip_if_unsafe,
        {
            "inner": oht.gclip(0.1, 1.0),
            "max_value_deviations": 6.0,
            "window": 2,
            "rule": "mean",
            "remember": "all",
        },
        ("window",),
        extra_args={"value": 2.0},
        variant=True,
    ),
    "guarded": Case(
        oht.guarded,
        {"inner": oht.gclip(0.1, 1.0), "window": 3, "warmup_steps": 1},
        ("window",),
        extra_args={"value": 2.0},
        signature="inner, factor=2.0, window=100, *, warmup_steps=10, "
        "max_value_deviations=20.0, max_in_a_row=10, axis_name=None",
        ranges={
            "factor": POSITIVE,
            "max_value_deviations": POSITIVE,
            "warmup_steps": Whole(0),
            "max_in_a_row": Whole(1),
        },
    ),
    "history": Case(
        oht.clip_by_history,
        {"window": 3, "warmup_steps": 1},
        ("window",),
        signature="factor=2.0, window=100, *, scope='global', layer_axis=None, "
        "warmup_steps=10, nonfinite='zero', mask=None, axis_name=None",
        ranges={"factor": POSITIVE, "warmup_steps": Whole(0)},
        states={"ClipByHistoryState": _HISTORY},
    ),
    "quantile": Case(
        oht.clip_by_norm_quantile,
        {"quantile": 0.5, "window": 3},
        ("window",),
        signature="quantile=0.9, window=1000, *, include_current=True, min_history=1, "
        "scope='global', layer_axis=None, nonfinite='propagate', axis_name=None",
        ranges={"quantile": CLOSED, "min_history": Whole(1)},
        variant=True,
    ),
    "deviation": Case(
        oht.clip_by_norm_deviation,
        {"max_deviations": 2.0, "window": 2},
        ("window",),
        signature="max_deviations=6.0, window=128, *, rule='median', remember='raw', "
        "scope='global', layer_axis=None, nonfinite='propagate', axis_name=None",
        ranges={"max_deviations": POSITIVE},
        variant=True,
    ),
    "deviation-mean": Case(
        oht.clip_by_norm_deviation,
        {
            "max_deviations": 0.5,
            "window": 3,
            "rule": "mean",
            "remember": "clipped",
            "scope": "leaf",
        },
        ("window",),
        variant=True,
    ),
    "zscore": Case(
        oht.clip_by_zscore,
        {"warmup_steps": 1, "max_norm": 2.0},
        signature="max_zscore=2.5, decay=0.97, *, warmup_steps=25, max_norm=None, "
        "action='adaptive', min_deviation=0.05, log=False, scope='global', "
        "layer_axis=None, nonfinite='propagate', axis_name=None",
        ranges={
            "max_zscore": POSITIVE,
            "decay": DECAY,
            "warmup_steps": Whole(1),
            "max_norm": POSITIVE,
            "min_deviation": NONNEGATIVE,
        },
        states={
            "ClipByZscoreState": (
                "count",
                "threshold",
                "kept",
                "seen",
                "mean",
                "deviation",
            )
        },
    ),
    "zscore-log-leaf": Case(
        oht.clip_by_zscore,
        {"max_zscore": 1.0, "warmup_steps": 2, "log": True, "scope": "leaf"},
        ("log",),
    ),
    "norm_ema": Case(
        oht.clip_by_norm_ema,
        {"warmup_steps": 2, "mask": _matrices},
        ("mask",),
        signature="decay=0.98, relative_threshold=1.05, *, absolute_threshold=1.0, "
        "warmup_steps=100, init='min', scope='leaf', layer_axis=None, mask=None, "
        "nonfinite='propagate', axis_name=None",
        ranges={
            "decay": DECAY,
            "relative_threshold": POSITIVE,
            "absolute_threshold": POSITIVE,
            "warmup_steps": Whole(0),
        },
        states={"ClipByNormEmaState": ("count", "threshold", "kept", "seen")},
    ),
    "norm_ema-layers": Case(
        oht.clip_by_norm_ema,
        {"warmup_steps": 0, "init": "mean", "layer_axis": _STACKED},
        ("layer_axis",),
        any_tree=False,
        variant=True,
    ),
    "adagc": Case(
        oht.adagc,
        {"learning_rate": 0.1, "warmup_steps": 2},
        needs_params=True,
        signature="learning_rate, b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.1, *, "
        "mask=None, decay=0.98, relative_threshold=1.05, absolute_threshold=1.0, "
        "warmup_steps=100, init='min', scope='leaf', layer_axis=None, "
        "nonfinite='propagate', axis_name=None",
        ranges={
            **_MOMENTS,
            "learning_rate": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
            "decay": DECAY,
            "relative_threshold": POSITIVE,
            "absolute_threshold": POSITIVE,
            "warmup_steps": Whole(0),
        },
        variant=True,
    ),
    "history-leaf": Case(
        oht.clip_by_history,
        {
            "factor": 1.5,
            "window": 2,
            "scope": "leaf",
            "warmup_steps": 1,
            "nonfinite": "propagate",
        },
        ("window",),
    ),
    "history-layers": Case(
        oht.clip_by_history,
        {"window": 2, "scope": "leaf", "layer_axis": _STACKED, "warmup_steps": 0},
        ("window", "layer_axis"),
        any_tree=False,
        variant=True,
    ),
    "history-mask": Case(
        oht.clip_by_history,
        {"window": 2, "warmup_steps": 1, "mask": _matrices},
        ("window", "mask"),
        variant=True,
    ),
    "skip-nonfinite": Case(
        oht.skip_if_unsafe,
        {"inner": oht.acclip(0.1, normalize=True), "max_deviations": None},
        ("window",),
        needs_params=True,
        variant=True,
    ),
    "monitor": Case(
        oht.diagnostics.monitor,
        {"inner": oht.gclip(0.1, 1.0, weight_decay=0.1), "reservoir_size": 3},
        ("every", "reservoir_size"),
        needs_params=True,
    ),
    "monitor-every": Case(
        oht.diagnostics.monitor,
        {"inner": oht.trace(0.9), "every": 2, "reservoir_size": 3},
        ("every", "reservoir_size"),
        needs_params=True,
        variant=True,
    ),
    "monitor_clipping": Case(
        oht.diagnostics.monitor_clipping,
        {"clip": oht.clip_by_norm(1.0), "window": 3},
        variant=True,
    ),
    "monitor_clipping-bias": Case(
        oht.diagnostics.monitor_clipping,
        {"clip": oht.scale_by_acclip(normalize=True, report=True), "bias": True},
        ("bias",),
        variant=True,
    ),
    "compress": Case(
        oht.compress_state,
        {"inner": oht.trace(0.9)},
        signature="inner",
        states={
            "CompressStateState": ("key", "inner_state"),
            "CompressedArray": ("codes", "scales"),
        },
    ),
    "stack": Case(
        oht.stack_leaves,
        {"inner": functools.partial(oht.lambc, 0.1, weight_decay=0.1)},
        ("inner", "labels"),
        needs_params=True,
        like_params=False,
        signature="inner, *, labels='all'",
    ),
    "stack-labels": Case(
        oht.stack_leaves,
        {
            "inner": functools.partial(oht.larsc, 0.1, trust_ratio_mask=_is_matrices),
            "labels": _dimensions,
        },
        ("inner", "labels"),
        needs_params=True,
        like_params=False,
        variant=True,
    ),
    "trace": Case(
        oht.trace,
        {"decay": 0.9},
        signature="decay, nesterov=False, accumulator_dtype=None",
        ranges={"decay": DECAY},
    ),
    "trace-nesterov": Case(oht.trace, {"decay": 0.9, "nesterov": True}, variant=True),
    "trace-bfloat16": Case(
        oht.trace,
        {"decay": 0.9, "accumulator_dtype": jnp.bfloat16},
        ("accumulator_dtype",),
        **_BF16,
        variant=True,
    ),
    "by_adam": Case(
        oht.scale_by_adam,
        signature=(
            "b1=0.9, b2=0.999, eps=1e-08, *, bias_correction=True, "
            "mu_dtype=None, nu_dtype=None"
        ),
        ranges=_MOMENTS,
    ),
    "by_adam-uncorrected": Case(
        oht.scale_by_adam, {"bias_correction": False}, variant=True
    ),
    "by_adam-bfloat16": Case(
        oht.scale_by_adam,
        {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16},
        ("mu_dtype", "nu_dtype"),
        **_BF16,
        variant=True,
    ),
    "adamw_decoupled": Case(
        oht.adamw_decoupled,
        {"learning_rate": 0.1},
        variant=True,
        signature=(
            "learning_rate, b1=0.9, b2=0.999, eps=1e-08, "
            "weight_decay=0.0, *, multiplier=1.0, bias_correction=True, "
            "mask=None, mu_dtype=None, nu_dtype=None"
        ),
        ranges=_MOMENTS | _DECAYED,
        golden={"adamw": trajectories.ADAMW},
    ),
    "adamw_decoupled-all": Case(
        oht.adamw_decoupled,
        {
            "learning_rate": _half_life,
            "b1": 0,
            "weight_decay": 0.1,
            "multiplier": oht.warm_restarts(1.0, t_0=2),
            "bias_correction": False,
            "mask": _matrices,
        },
        ("mask",),
        needs_params=True,
    ),
    "by_stable_adam": Case(
        oht.scale_by_stable_adam,
        signature=(
            "b1=0.9, b2=0.99, eps=1e-06, *, threshold=1.0, layer_axis=None, "
            "axis_name=None, mu_dtype=None, nu_dtype=None, after=None"
        ),
        ranges=_MOMENTS | {"threshold": POSITIVE},
        states={"ScaleByStableAdamState": ("count", "mu", "nu", "inner_state")},
    ),
    "stable_adamw": Case(
        oht.stable_adamw,
        {"learning_rate": 0.1},
        variant=True,
        signature=(
            "learning_rate, b1=0.9, b2=0.99, eps=1e-06, weight_decay=0.0, *, "
            "threshold=1.0, mask=None, layer_axis=None, mu_dtype=None, nu_dtype=None, "
            "axis_name=None"
        ),
        ranges=_MOMENTS
        | {
            "learning_rate": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
            "threshold": POSITIVE,
        },
    ),
    "stable_adamw-all": Case(
        oht.stable_adamw,
        {
            "learning_rate": _half_life,
            "b2": 0.5,
            "weight_decay": 0.1,
            "threshold": 0.5,
            "mask": _matrices,
            "layer_axis": _STACKED,
            "mu_dtype": jnp.bfloat16,
        },
        ("mask", "layer_axis", "mu_dtype"),
        needs_params=True,
        any_tree=False,
        **_BF16,
    ),
    "by_stable_norm": Case(
        oht.scale_by_stable_norm,
        signature=(
            "b1=0.6, b2=0.999, eps=1e-12, *, max_ratio=None, scope='leaf', "
            "layer_axis=None, nonfinite='propagate', axis_name=None"
        ),
        ranges=_MOMENTS | {"max_ratio": POSITIVE},
        states={"ScaleByStableNormState": ("seen", "mean", "root")},
    ),
    "by_stable_norm-layers": Case(
        oht.scale_by_stable_norm,
        {"b2": 0.9, "max_ratio": 2.0, "layer_axis": _STACKED, "nonfinite": "zero"},
        ("layer_axis",),
        any_tree=False,
    ),
    "by_stable_norm-global": Case(
        oht.scale_by_stable_norm,
        {"b1": 0.7, "b2": 0.9, "eps": 0.0, "max_ratio": 3.0, "scope": "global"},
        variant=True,
    ),
    "reset": Case(
        oht.reset_moments,
        {"inner": oht.scale_by_adam(), "period": 3, "warmup_steps": 2},
        signature="inner, period=500, *, warmup_steps=150, warmup_start=0.01",
        ranges={"period": Whole(1), "warmup_steps": Whole(0), "warmup_start": CLOSED},
        states={"ResetMomentsState": ("count", "inner_state")},
    ),
    "spikes": Case(
        oht.clip_spikes,
        {"threshold": 9.0, "b2": 0.9, "grace": 2},
        signature="threshold=5000.0, b2=0.999, *, grace=20, nu_dtype=None",
        ranges={"threshold": POSITIVE, "b2": DECAY, "grace": Whole(0)},
        states={"ClipSpikesState": ("count", "root")},
    ),
    "spikes-bfloat16": Case(
        oht.clip_spikes,
        {"threshold": 9.0, "b2": 0.9, "grace": 2, "nu_dtype": jnp.bfloat16},
        ("nu_dtype",),
        **_BF16,
        variant=True,
    ),
    "by_spam": Case(
        oht.scale_by_spam,
        {"threshold": 9.0, "b2": 0.9, "grace": 2},
        signature=(
            "b1=0.9, b2=0.999, eps=1e-06, *, threshold=5000.0, grace=20, "
            "mu_dtype=None, nu_dtype=None"
        ),
        ranges=_MOMENTS | {"threshold": POSITIVE, "grace": Whole(0)},
        states={"ScaleBySpamState": ("count", "mu", "root")},
    ),
    "spam": Case(
        oht.spam,
        {"learning_rate": 0.1, "period": 3, "warmup_steps": 1},
        variant=True,
        signature=(
            "learning_rate, b1=0.9, b2=0.999, eps=1e-06, weight_decay=0.0, *, "
            "threshold=5000.0, grace=20, period=500, warmup_steps=150, "
            "warmup_start=0.01, mask=None, mu_dtype=None, nu_dtype=None"
        ),
        ranges=_MOMENTS
        | {
            "learning_rate": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
            "threshold": POSITIVE,
            "grace": Whole(0),
            "period": Whole(1),
            "warmup_steps": Whole(0),
            "warmup_start": CLOSED,
        },
    ),
    "spam-all": Case(
        oht.spam,
        {
            "learning_rate": _half_life,
            "b2": 0.9,
            "weight_decay": 0.1,
            "threshold": 9.0,
            "grace": 1,
            "period": 2,
            "mask": _matrices,
            "mu_dtype": jnp.bfloat16,
            "nu_dtype": jnp.bfloat16,
        },
        ("mask", "mu_dtype", "nu_dtype"),
        needs_params=True,
        **_BF16,
    ),
    "peak": Case(
        oht.clip_by_peak,
        {"decay": 0.5},
        signature="decay=0.999, *, rescale=False, axis_name=None",
        ranges={"decay": DECAY},
        states={"ClipByPeakState": ("seen", "peak")},
    ),
    "peak-rescale": Case(
        oht.clip_by_peak, {"decay": 0.5, "rescale": True}, ("rescale",), variant=True
    ),
    "stable_spam": Case(
        oht.stable_spam,
        {"learning_rate": 0.1, "weight_decay": 0.1, "period": 3},
        needs_params=True,
        signature=(
            "learning_rate, b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.0, *, "
            "period=1000, mask=None, layer_axis=None, mu_dtype=None, nu_dtype=None, "
            "axis_name=None"
        ),
        ranges=_MOMENTS
        | {
            "learning_rate": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
            "period": Whole(1),
        },
    ),
    "by_amsgrad": Case(
        oht.scale_by_amsgrad,
        signature=(
            "b1=0.9, b2=0.999, eps=1e-08, *, bias_correction=True, "
            "mu_dtype=None, nu_dtype=None"
        ),
        ranges=_MOMENTS,
    ),
    "amsgrad": Case(
        oht.amsgrad,
        {"learning_rate": 0.1},
        variant=True,
        signature=(
            "learning_rate, b1=0.9, b2=0.999, eps=1e-08, *, "
            "bias_correction=True, mu_dtype=None, nu_dtype=None"
        ),
        ranges=_MOMENTS | {"learning_rate": NONNEGATIVE},
        golden={"amsgrad": trajectories.AMSGRAD},
    ),
    "amsgrad-published": Case(
        oht.amsgrad,
        {"learning_rate": 0.1, "b2": 0.5, "bias_correction": False},
        variant=True,
    ),
    "by_adashift": Case(
        oht.scale_by_adashift,
        {"b2": 0.5, "n": 1},
        ("n",),
        signature=(
            "b1=0.9, b2=0.999, eps=1e-10, *, n=10, nu_dtype=None, window_dtype=None"
        ),
        ranges=_MOMENTS,
        states={"ScaleByAdashiftState": ("count", "nu", "window")},
    ),
    "adashift": Case(
        oht.adashift,
        {"learning_rate": 0.1, "b1": 0, "n": 3},
        ("n",),
        variant=True,
        signature=(
            "learning_rate, b1=0.9, b2=0.999, eps=1e-10, *, n=10, "
            "nu_dtype=None, window_dtype=None"
        ),
        ranges=_MOMENTS | {"learning_rate": NONNEGATIVE},
        golden={"adashift": trajectories.ADASHIFT},
    ),
    "by_powersign": Case(
        oht.scale_by_powersign,
        signature=("b1=0.9, base=2.718281828459045, *, sign_decay=None, mu_dtype=None"),
        ranges={"b1": DECAY, "base": POSITIVE},
        states={"ScaleBySignAgreementState": ("count", "mu")},
    ),
    "powersign-decay": Case(
        oht.powersign,
        {"learning_rate": 0.1, "b1": 0.5, "base": 2, "sign_decay": _from_one},
        variant=True,
        signature=(
            "learning_rate, b1=0.9, base=2.718281828459045, *, "
            "sign_decay=None, mu_dtype=None"
        ),
        ranges={"learning_rate": NONNEGATIVE, "b1": DECAY, "base": POSITIVE},
        golden={"powersign": trajectories.POWERSIGN},
    ),
    "by_addsign": Case(
        oht.scale_by_addsign,
        signature="b1=0.9, alpha=1.0, *, sign_decay=None, mu_dtype=None",
        ranges={"b1": DECAY, "alpha": NONNEGATIVE},
    ),
    "addsign-decay": Case(
        oht.addsign,
        {"learning_rate": 0.1, "b1": 0.5, "alpha": 2, "sign_decay": _from_one},
        variant=True,
        signature=(
            "learning_rate, b1=0.9, alpha=1.0, *, sign_decay=None, mu_dtype=None"
        ),
        ranges={"learning_rate": NONNEGATIVE, "b1": DECAY, "alpha": NONNEGATIVE},
        golden={"addsign": trajectories.ADDSIGN},
    ),
    "normalize": Case(
        oht.normalize_by_norm,
        signature=("offset=1e-08, *, scope='global', layer_axis=None, axis_name=None"),
        ranges={"offset": NONNEGATIVE},
    ),
    "normalize-layers": Case(
        oht.normalize_by_norm,
        {"offset": 0.0, "scope": "leaf", "layer_axis": _STACKED},
        ("layer_axis",),
        any_tree=False,
    ),
    "normalize-exactly": Case(oht.normalize_by_norm, {"offset": 0.0}, variant=True),
    "smooth": Case(
        oht.clip_smoothly,
        {"threshold": 0.5},
        signature=(
            "threshold, *, shape='algebraic', scope='coordinate', layer_axis=None, "
            "nonfinite='propagate', axis_name=None"
        ),
        ranges={"threshold": POSITIVE},
    ),
    "smooth-layers": Case(
        oht.clip_smoothly,
        {
            "threshold": _half_life,
            "shape": "tanh",
            "scope": "leaf",
            "layer_axis": _STACKED,
            "nonfinite": "zero",
        },
        ("layer_axis",),
        any_tree=False,
    ),
    "smooth-global": Case(
        oht.clip_smoothly,
        {"threshold": 1.0, "shape": "arctan", "scope": "global"},
        variant=True,
    ),
    "smooth-softsign": Case(
        oht.clip_smoothly, {"threshold": 1.0, "shape": "softsign"}, variant=True
    ),
    "by_adam_atan2": Case(
        oht.scale_by_adam_atan2,
        signature=(
            "b1=0.9, b2=0.999, *, scale=1.2732395447351628, ratio=1.0, mu_dtype=None, "
            "nu_dtype=None"
        ),
        ranges={"b1": DECAY, "b2": DECAY, "scale": POSITIVE, "ratio": POSITIVE},
        states={"ScaleByAdamAtan2State": ("count", "mu", "root")},
    ),
    "adam_atan2": Case(
        oht.adam_atan2,
        {"learning_rate": 0.1},
        variant=True,
        signature=(
            "learning_rate, b1=0.9, b2=0.999, weight_decay=0.0, *, "
            "scale=1.2732395447351628, ratio=1.0, mask=None, mu_dtype=None, "
            "nu_dtype=None"
        ),
        ranges={
            "learning_rate": NONNEGATIVE,
            "b1": DECAY,
            "b2": DECAY,
            "weight_decay": NONNEGATIVE,
            "scale": POSITIVE,
            "ratio": POSITIVE,
        },
    ),
    "adam_atan2-all": Case(
        oht.adam_atan2,
        {
            "learning_rate": _half_life,
            "weight_decay": 0.1,
            "ratio": 2.0,
            "mask": _matrices,
            "mu_dtype": jnp.bfloat16,
            "nu_dtype": jnp.bfloat16,
        },
        ("mask", "mu_dtype", "nu_dtype"),
        needs_params=True,
        **_BF16,
    ),
    "interval": Case(
        oht.clip_by_interval,
        {"lower": 0.1, "upper": 1.0},
        signature=(
            "lower, upper, *, scope='coordinate', layer_axis=None, "
            "nonfinite='propagate', axis_name=None"
        ),
    ),
    "interval-layers": Case(
        oht.clip_by_interval,
        {
            "lower": _PREFIX["bias"],
            "upper": {"kernel": 1.0, "bias": 0.5},
            "scope": "leaf",
            "layer_axis": _STACKED,
            "nonfinite": "zero",
        },
        ("layer_axis", "upper"),
        any_tree=False,
    ),
    "biclip": Case(
        oht.biclip,
        {"learning_rate": 0.1, "lower": 0.1, "upper": 1.0},
        variant=True,
        signature=(
            "learning_rate, lower, upper, weight_decay=0.0, *, scope='coordinate', "
            "layer_axis=None, mask=None, axis_name=None"
        ),
        ranges={"learning_rate": NONNEGATIVE, "weight_decay": NONNEGATIVE},
    ),
    "biclip-global": Case(
        oht.biclip,
        {
            "learning_rate": 0.1,
            "lower": _half_life,
            "upper": lambda count: 2 * _half_life(count),
            "weight_decay": 0.1,
            "scope": "global",
        },
        needs_params=True,
        variant=True,
    ),
    "by_fast_belief": Case(
        oht.scale_by_fast_belief,
        signature=(
            "b1=0.9, gamma=0.9, delta=0.01, *, amsgrad=True, step_decay=True, "
            "mu_dtype=None, nu_dtype=None"
        ),
        ranges={
            "b1": DECAY,
            "gamma": SHARE,
            "delta": NONNEGATIVE,
        },
        states={"ScaleByFastBeliefState": ("count", "mu", "nu", "nu_max")},
    ),
    "by_fast_belief-plain": Case(
        oht.scale_by_fast_belief,
        {"delta": 0.1, "amsgrad": False, "step_decay": False},
        ("amsgrad", "step_decay"),
        variant=True,
    ),
    "fast_adabelief": Case(
        oht.fast_adabelief,
        {"learning_rate": 0.1, "weight_decay": 0.1, "nu_dtype": jnp.bfloat16},
        ("nu_dtype",),
        needs_params=True,
        **_BF16,
        signature=(
            "learning_rate, b1=0.9, gamma=0.9, delta=0.01, weight_decay=0.0, *, "
            "amsgrad=True, step_decay=True, mask=None, mu_dtype=None, nu_dtype=None"
        ),
        ranges={
            "learning_rate": NONNEGATIVE,
            "b1": DECAY,
            "gamma": SHARE,
            "delta": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
        },
    ),
    "clipped_gd": Case(
        oht.clipped_gd,
        {"learning_rate": 0.1, "max_update_norm": 0.5},
        signature="learning_rate, max_update_norm, *, axis_name=None",
        ranges={"learning_rate": NONNEGATIVE, "max_update_norm": POSITIVE},
        golden={"clipped_gd": trajectories.CLIPPED_GD},
    ),
    "clipped_gd-schedules": Case(
        oht.clipped_gd,
        {"learning_rate": _half_life, "max_update_norm": _half_life},
        variant=True,
    ),
    "normalized_gd": Case(
        oht.normalized_gd,
        {"learning_rate": 0.1, "b1": 0.5},
        variant=True,
        signature=(
            "learning_rate, offset=1e-08, b1=0.0, *, init='zero', scope='global', "
            "max_norm=None, nesterov=False, mu_dtype=None, axis_name=None"
        ),
        ranges={
            "learning_rate": NONNEGATIVE,
            "offset": NONNEGATIVE,
            "b1": DECAY,
            "max_norm": POSITIVE,
        },
        golden={"normalized_gd": trajectories.NORMALIZED_GD},
    ),
    "normalized_gd-all": Case(
        oht.normalized_gd,
        {
            "learning_rate": _RATE,
            "b1": _MOMENTUM,
            "init": "first",
            "scope": "leaf",
            "max_norm": 1.0,
            "nesterov": True,
        },
        ("nesterov",),
        variant=True,
    ),
    "ratio": Case(oht.scale_by_clipped_trust_ratio, needs_params=True),
    "ratio-unbounded": Case(
        oht.scale_by_clipped_trust_ratio,
        {"lower": None, "upper": None, "trust_coefficient": 0.1, "eps": 0.01},
        needs_params=True,
        variant=True,
        signature=(
            "lower=0.0, upper=1.0, *, layer_axis=None, "
            "mask=None, axis_name=None, trust_coefficient=1.0, eps=0.0"
        ),
        ranges={
            "lower": NONNEGATIVE,
            "upper": POSITIVE,
            "trust_coefficient": POSITIVE,
            "eps": NONNEGATIVE,
        },
        states={
            "ScaleByClippedTrustRatioState": ("count", "trust_ratio", "raw_trust_ratio")
        },
    ),
    "ratio-schedules": Case(
        oht.scale_by_clipped_trust_ratio,
        {"lower": _half_life, "upper": lambda count: 2 - _half_life(count)},
        needs_params=True,
        variant=True,
    ),
    "ratio-layers": Case(
        oht.scale_by_clipped_trust_ratio,
        {"lower": 0.1, "upper": None, "layer_axis": _STACKED},
        ("layer_axis",),
        needs_params=True,
        any_tree=False,
    ),
    "ratio-mask": Case(
        oht.scale_by_clipped_trust_ratio,
        {"mask": _matrices, "upper": 2},
        ("mask",),
        needs_params=True,
    ),
    "lambc": Case(
        oht.lambc,
        {"learning_rate": 0.1},
        needs_params=True,
        variant=True,
        signature=(
            "learning_rate, b1=0.9, b2=0.999, eps=1e-06, "
            "weight_decay=0.0, *, mask=None, trust_ratio_bounds=(0.0, "
            "1.0), bias_correction=False, max_grad_norm=None, "
            "trust_ratio_mask=None, layer_axis=None, mu_dtype=None, "
            "nu_dtype=None, axis_name=None"
        ),
        ranges=_MOMENTS
        | {
            "learning_rate": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
            "max_grad_norm": POSITIVE,
        },
        golden={"lambc": trajectories.LAMBC, "lamb": trajectories.LAMB},
    ),
    "lambc-all": Case(
        oht.lambc,
        {
            "learning_rate": _half_life,
            "weight_decay": 0.1,
            "mask": _matrices,
            "trust_ratio_bounds": (0.1, _half_life),
            "bias_correction": True,
            "max_grad_norm": 1.0,
            "trust_ratio_mask": _matrices,
            "layer_axis": _STACKED,
            "mu_dtype": jnp.bfloat16,
            "nu_dtype": jnp.float32,
        },
        ("mask", "trust_ratio_mask", "layer_axis", "mu_dtype", "nu_dtype"),
        needs_params=True,
        any_tree=False,
        **_BF16,
    ),
    "larsc": Case(
        oht.larsc,
        {"learning_rate": 0.1},
        needs_params=True,
        variant=True,
        signature=(
            "learning_rate, weight_decay=0.0, *, mask=None, "
            "trust_coefficient=0.001, trust_ratio_bounds=(0.0, 1.0), "
            "momentum=0.9, nesterov=False, trust_ratio_mask=None, "
            "eps=0.0, layer_axis=None, accumulator_dtype=None, "
            "axis_name=None"
        ),
        ranges={
            "learning_rate": NONNEGATIVE,
            "weight_decay": NONNEGATIVE,
            "trust_coefficient": POSITIVE,
            "momentum": DECAY,
            "eps": NONNEGATIVE,
        },
    ),
    "larsc-all": Case(
        oht.larsc,
        {
            "learning_rate": _half_life,
            "weight_decay": _half_life,
            "mask": _matrices,
            "trust_coefficient": 0.1,
            "trust_ratio_bounds": (_half_life, None),
            "nesterov": True,
            "trust_ratio_mask": _matrices,
            "eps": 1e-3,
        },
        ("mask", "trust_ratio_mask"),
        needs_params=True,
    ),
    "sgdw": Case(
        oht.sgdw,
        {"learning_rate": 0.1},
        variant=True,
        signature=(
            "learning_rate, momentum=0.9, weight_decay=0.0, *, "
            "multiplier=1.0, mask=None, accumulator_dtype=None"
        ),
        ranges=_DECAYED | {"momentum": DECAY},
        golden={"sgdw": trajectories.SGDW},
    ),
    "sgdw-all": Case(
        oht.sgdw,
        {
            "learning_rate": 0.1,
            "weight_decay": _half_life,
            "multiplier": _half_life,
            "mask": _matrices,
        },
        ("mask",),
        needs_params=True,
    ),
    "neumann": Case(
        oht.neumann,
        {"learning_rate": 0.1, "reset_interval": 2},
        needs_params=True,
        **_CANCELS,
        signature=(
            "learning_rate, *, cubic=1e-07, repulsive=1e-05, "
            "repulsive_scale='leaves', ema_decay=0.99, momentum=None, "
            "burn_in_steps=0, reset_interval=None, reset_growth=2, "
            "mu_dtype=None, axis_name=None"
        ),
        ranges={
            "learning_rate": NONNEGATIVE,
            "cubic": NONNEGATIVE,
            "repulsive": NONNEGATIVE,
            "ema_decay": CLOSED,
            "momentum": DECAY,
        }
        | {
            "burn_in_steps": Whole(0),
            "reset_interval": Whole(1),
            "reset_growth": Whole(1),
        },
        states={
            "NeumannState": (
                "count",
                "next_reset",
                "interval",
                "momentum_coefficient",
                "mu",
                "average",
            )
        },
        golden={"neumann": trajectories.NEUMANN},
    ),
    "neumann-burn-in": Case(
        oht.neumann,
        {
            "learning_rate": _half_life,
            "cubic": 0.1,
            "repulsive": 0.1,
            "repulsive_scale": "params",
            "burn_in_steps": 1,
            "momentum": lambda count: 1 - 0.5 ** (count + 1),
        },
        ("momentum",),  # its count starts after the burn-in
        needs_params=True,
        **_CANCELS,
        variant=True,
    ),
    "inner_loop": Case(
        oht.neumann_inner_loop,
        {"learning_rate": 0.5, "num_inner_steps": 3},
        needs_params=True,
        extra_args={"grad_fn": _grad_fn},
        signature=(
            "learning_rate, num_inner_steps, *, convexify=None, "
            "fresh_batches=False, use_hvp=False"
        ),
        ranges={"learning_rate": POSITIVE} | {"num_inner_steps": Whole(0)},
        states={"NeumannInnerLoopState": ("count",)},
    ),
    "inner_loop-hvp": Case(
        oht.neumann_inner_loop,
        {"learning_rate": _half_life, "num_inner_steps": 2, "use_hvp": True},
        needs_params=True,
        extra_args={"grad_fn": _grad_fn},
        variant=True,
    ),
    "two_loop": Case(
        oht.neumann_two_loop,
        {
            "learning_rate": 0.5,
            "num_inner_steps": 2,
            "outer_learning_rate": _half_life,
            "convexify": (-0.1, 1.0),
            "fresh_batches": True,
        },
        needs_params=True,
        extra_args={"grad_fn": _grad_fn},
        variant=True,
        signature=(
            "learning_rate, num_inner_steps, *, outer_learning_rate=None, "
            "convexify=None, fresh_batches=False, use_hvp=False"
        ),
        ranges={"learning_rate": POSITIVE} | {"num_inner_steps": Whole(0)},
    ),
    "rule": Case(
        oht.rules.transform,
        {"rule": "g * exp(sign(g) * sign(m))"},
        ("rule", "seed", "vocabulary"),
    ),
    "rule-everything": Case(
        oht.rules.transform,
        {
            "rule": "ld * min(1 / norm(g), 1) * tail + 0.01 * w",
            "vocabulary": oht.rules.EXTENDED,
            "operands": {"tail": oht.trace(0.9)},
            "total_steps": 9,
        },
        ("rule", "seed", "vocabulary", "operands"),
        needs_params=True,
        variant=True,
    ),
    "by_lstm": Case(
        oht.learned.scale_by_lstm,
        {"weights": lstm(2)},
        ("weights", "preprocess", "state_dtype"),
        moves_at_zero=True,
    ),
    "by_lstm-none": Case(
        oht.learned.scale_by_lstm,
        {
            "weights": lstm(1),
            "preprocess": "none",
            "output_scale": 0.5,
            "state_dtype": jnp.bfloat16,
        },
        ("weights", "preprocess", "state_dtype"),
        moves_at_zero=True,
        **_BF16,
        variant=True,
    ),
    "by_mlp": Case(oht.learned.scale_by_mlp, {"weights": MLP}, ("weights",)),
    "by_mlp-layers": Case(
        oht.learned.scale_by_mlp,
        {
            "weights": MLP,
            "rms": 1.0,
            "layer_axis": _STACKED,
            "state_dtype": jnp.bfloat16,
        },
        ("weights", "layer_axis", "state_dtype"),
        any_tree=False,
        **_BF16,
        variant=True,
    ),
    "snapshots": Case(
        oht.snapshot_ensemble,
        {"inner": oht.gclip(0.1, 1.0), "num_snapshots": 3, "t_0": 1, "t_mult": 2},
        ("num_snapshots", "t_0", "t_mult"),
        needs_params=True,
        signature="inner, num_snapshots, *, t_0, t_mult=1",
        states={
            "SnapshotEnsembleState": ("count", "taken", "snapshots", "inner_state")
        },
    ),
}

# One Case of each public factory of the top level, by its name.
RECORDS = {
    case.factory.__name__: case for case in CASES.values() if case.signature is not None
}
