"""Every public transform and its variants, for the rules that hold for all of them."""

import dataclasses
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


def _half_life(count):
    return 0.5 ** (count / 2)


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
}
