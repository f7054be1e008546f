"""Every public transform and its variants, for the rules that hold for all of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht

# Dimensions of 2 and 4 can be sharded over meshes of two and four devices.
SHAPES = {"kernel": (4, 2), "bias": [(2,), ()]}


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
_STACKED = {"kernel": 0, "bias": None}
_TREE = {"kernel": 0.5, "bias": [0.25, 0.125]}
_PREFIX = {"kernel": jnp.linspace(0.1, 2.0, 8).reshape(4, 2), "bias": 0.25}
_DTYPES = ("mu_dtype", "threshold_dtype")
_BF16 = {"drift": 2**-7}

CASES = {
    "ema": Case(oht.ema, {"decay": 0.9}),
    "ema-debias": Case(oht.ema, {"decay": 0.9, "debias": True}, variant=True),
    "ema-bfloat16": Case(
        oht.ema,
        {"decay": 0.9, "accumulator_dtype": jnp.bfloat16},
        ("accumulator_dtype",),
        **_BF16,
        variant=True,
    ),
    "decay-0": Case(oht.add_decayed_weights),
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
    "lr": Case(oht.scale_by_learning_rate, {"learning_rate": 0.1}),
    "lr-schedule": Case(oht.scale_by_learning_rate, {"learning_rate": _half_life}),
    "lr-ascent": Case(
        oht.scale_by_learning_rate,
        {"learning_rate": 0.1, "flip_sign": False},
        variant=True,
    ),
    "moment": Case(oht.clip_by_moment),
    "moment-ema": Case(oht.clip_by_moment, {"inner": oht.ema(0.9)}, variant=True),
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
    "moment-leaf": Case(oht.clip_by_moment, {"scope": "leaf"}),
    "moment-leaf-normalize": Case(
        oht.clip_by_moment,
        {"inner": oht.ema(0.9), "scope": "leaf", "alpha": 2.0, "normalize": True},
        variant=True,
    ),
    "moment-global": Case(oht.clip_by_moment, {"scope": "global"}),
    "moment-global-corrected": Case(
        oht.clip_by_moment,
        {
            "inner": oht.ema(0.9),
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
    "threshold": Case(oht.adaptive_coordinate_threshold),
    "threshold-bfloat16": Case(
        oht.adaptive_coordinate_threshold,
        {"alpha": 1.5, "threshold_dtype": jnp.bfloat16},
        _DTYPES[1:],
        **_BF16,
        variant=True,
    ),
    "by_acclip": Case(oht.scale_by_acclip),
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
    "acclip": Case(oht.acclip, {"learning_rate": 0.1}, needs_params=True),
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
    "norm": Case(oht.clip_by_norm, {"threshold": 1.0}),
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
    "value": Case(oht.clip_by_value, {"threshold": 0.5}),
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
    "gclip": Case(oht.gclip, {"learning_rate": 0.1, "threshold": 1.0}),
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
    "cclip": Case(oht.cclip, {"learning_rate": 0.1, "threshold": 0.5}),
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
        ("reservoir_size",),
        needs_params=True,
    ),
    "monitor_clipping": Case(
        oht.diagnostics.monitor_clipping,
        {"clip": oht.clip_by_norm(1.0), "window": 3},
        variant=True,
    ),
    "monitor_clipping-bias": Case(
        oht.diagnostics.monitor_clipping,
        {"clip": oht.scale_by_acclip(normalize=True), "bias": True},
        ("bias",),
        variant=True,
    ),
    "stack": Case(
        oht.stack_leaves,
        {"inner": functools.partial(oht.lambc, 0.1, weight_decay=0.1)},
        ("inner", "labels"),
        needs_params=True,
        like_params=False,
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
    "trace": Case(oht.trace, {"decay": 0.9}),
    "trace-nesterov": Case(oht.trace, {"decay": 0.9, "nesterov": True}, variant=True),
    "trace-bfloat16": Case(
        oht.trace,
        {"decay": 0.9, "accumulator_dtype": jnp.bfloat16},
        ("accumulator_dtype",),
        **_BF16,
        variant=True,
    ),
    "by_adam": Case(oht.scale_by_adam),
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
    "adamw_decoupled": Case(oht.adamw_decoupled, {"learning_rate": 0.1}, variant=True),
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
    "by_amsgrad": Case(oht.scale_by_amsgrad),
    "amsgrad": Case(oht.amsgrad, {"learning_rate": 0.1}, variant=True),
    "amsgrad-corrected": Case(
        oht.amsgrad,
        {"learning_rate": 0.1, "b2": 0.5, "bias_correction": True},
        variant=True,
    ),
    "by_adashift": Case(oht.scale_by_adashift, {"b2": 0.5, "n": 1}, ("n",)),
    "adashift": Case(
        oht.adashift, {"learning_rate": 0.1, "b1": 0, "n": 3}, ("n",), variant=True
    ),
    "by_powersign": Case(oht.scale_by_powersign),
    "powersign-decay": Case(
        oht.powersign,
        {"learning_rate": 0.1, "b1": 0.5, "base": 2, "decay": _from_one},
        variant=True,
    ),
    "by_addsign": Case(oht.scale_by_addsign),
    "addsign-decay": Case(
        oht.addsign,
        {"learning_rate": 0.1, "b1": 0.5, "alpha": 2, "decay": _from_one},
        variant=True,
    ),
    "normalize": Case(oht.normalize_by_norm),
    "normalize-exactly": Case(oht.normalize_by_norm, {"offset": 0.0}, variant=True),
    "clipped_gd": Case(oht.clipped_gd, {"learning_rate": 0.1, "max_update_norm": 0.5}),
    "clipped_gd-schedules": Case(
        oht.clipped_gd,
        {"learning_rate": _half_life, "max_update_norm": _half_life},
        variant=True,
    ),
    "normalized_gd": Case(
        oht.normalized_gd, {"learning_rate": 0.1, "momentum": 0.5}, variant=True
    ),
    "ratio": Case(oht.scale_by_clipped_trust_ratio, needs_params=True),
    "ratio-unbounded": Case(
        oht.scale_by_clipped_trust_ratio,
        {"lower": None, "upper": None, "trust_coefficient": 0.1, "eps": 0.01},
        needs_params=True,
        variant=True,
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
    "lambc": Case(oht.lambc, {"learning_rate": 0.1}, needs_params=True, variant=True),
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
    "larsc": Case(oht.larsc, {"learning_rate": 0.1}, needs_params=True, variant=True),
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
    "sgdw": Case(oht.sgdw, {"learning_rate": 0.1}, variant=True),
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
    ),
    "snapshots": Case(
        oht.snapshot_ensemble,
        {"inner": oht.gclip(0.1, 1.0), "num_snapshots": 3, "t_0": 1, "t_mult": 2},
        ("num_snapshots", "t_0", "t_mult"),
        needs_params=True,
    ),
}
