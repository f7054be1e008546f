"""The optimizers that the conformance kit judges, of Optax and of other packages."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from experiments.common.errors import UserError

_STEP: Mapping[str, Any] = {"learning_rate": 0.1}
_VALUE = {"value": jnp.asarray(2.0, jnp.float32)}


class Subject(NamedTuple):
    """An optimizer with what its factory and its update need."""

    factory: Callable[..., Any] | str  # as text, "package:function" is not imported yet
    kwargs: Mapping[str, Any] = _STEP
    extra_args: Mapping[str, Any] = {}
    static_args: tuple[str, ...] = ()
    params: Any = None  # in place of the kit's own

    def found(self) -> "Subject":
        """With the factory itself, whose integers are sizes and not injected.

        Raises:
          UserError: there is none of this name.
        """
        if not isinstance(self.factory, str):
            return self
        factory = _imported(self.factory)
        integers = [
            name
            for name, parameter in inspect.signature(factory).parameters.items()
            if type(parameter.default) is int
        ]
        static = tuple(dict.fromkeys((*self.static_args, *integers)))
        return self._replace(factory=factory, static_args=static)


def _imported(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UserError(f"a factory is named package:function, got {name!r}")
    try:
        factory = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        why = str(error).partition(" (/")[0]  # a path of this machine
        raise UserError(f"{module} cannot be imported: {why}") from error
    if not callable(factory):
        raise UserError(f"{module} has no function {attribute}")
    return factory


def _squared_norm(params):
    """Smooth, with a derivative at 0."""
    return optax.tree.norm(params, squared=True)


_KERNEL = jnp.linspace(-1.0, 2.0, 8, dtype=jnp.float32).reshape(4, 2)
_NO_SCALAR = {"bias": jnp.asarray([0.5, -2.0], jnp.bfloat16), "kernel": _KERNEL}
_FLOAT32 = {
    "bias": jnp.asarray([0.5, -2.0], jnp.float32),
    "kernel": _KERNEL,
    "scale": jnp.asarray(1.5, jnp.float32),
}
_FLOAT32_NO_SCALAR = {"bias": _FLOAT32["bias"], "kernel": _KERNEL}
PARAMS = {
    "kit": None,
    "float32": _FLOAT32,
    "no-scalar": _NO_SCALAR,
    "float32-no-scalar": _FLOAT32_NO_SCALAR,
}

_PLAIN = (
    "adabelief adadelta adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb "
    "lars lion nadam nadamw novograd optimistic_adam_v2 optimistic_gradient_descent "
    "radam rmsprop rprop sgd sign_sgd signum yogi"
)
_CONTRIB = (
    "acprop ademamix cocob dadapt_adamw dog dowg madgrad prodigy "
    "schedule_free_sgd simplified_ademamix"
)

# All optimizers of optax and optax.contrib but dpsgd, whose gradients have one more
# dimension than its parameters. Names that stand for a size or a dtype are static.
# What differs from the defaults, other than a learning rate, stands after a comma.
OPTAX = {
    **{name: Subject(f"optax:{name}") for name in _PLAIN.split()},
    "sgd, momentum": Subject("optax:sgd", {**_STEP, "momentum": 0.9}),
    "sm3, no scalar": Subject("optax:sm3", params=_NO_SCALAR),
    "adafactor": Subject(
        "optax:adafactor",
        static_args=("min_dim_size_to_factor", "dtype_momentum"),
    ),
    "lbfgs, no linesearch": Subject(
        "optax:lbfgs", {**_STEP, "linesearch": None}, static_args=("memory_size",)
    ),
    "noisy_sgd": Subject("optax:noisy_sgd", {**_STEP, "key": 0}, static_args=("key",)),
    "polyak_sgd": Subject("optax:polyak_sgd", {}, _VALUE),
    **{
        f"contrib.{name}": Subject(f"optax.contrib:{name}") for name in _CONTRIB.split()
    },
    "contrib.adopt": Subject("optax.contrib:adopt", static_args=("clip_value_fn",)),
    "contrib.galore": Subject(
        "optax.contrib:galore",
        static_args=("rank", "update_proj_gap"),
    ),
    "contrib.mechanize, float32": Subject(
        "optax.contrib:mechanize",
        {"base_optimizer": optax.sgd(0.1)},
        static_args=("num_betas",),
        params=_FLOAT32,
    ),
    "contrib.momo": Subject("optax.contrib:momo", {}, _VALUE),
    "contrib.momo_adam": Subject("optax.contrib:momo_adam", {}, _VALUE),
    "contrib.muon": Subject("optax.contrib:muon", static_args=("ns_steps",)),
    "contrib.reduce_on_plateau": Subject(
        "optax.contrib:reduce_on_plateau",
        {},
        _VALUE,
        static_args=("patience", "cooldown", "accumulation_size"),
    ),
    "contrib.sam": Subject(
        "optax.contrib:sam",
        {"optimizer": optax.sgd(0.1), "adv_optimizer": optax.sgd(0.05)},
        static_args=("sync_period",),
    ),
    "contrib.schedule_free_adamw": Subject(
        "optax.contrib:schedule_free_adamw", static_args=("warmup_steps",)
    ),
    "contrib.sophia, float32": Subject(
        "optax.contrib:sophia", extra_args={"obj_fn": _squared_norm}, params=_FLOAT32
    ),
}

PACKAGES = {
    "psgd-jax": {
        "psgd_jax kron": Subject("psgd_jax.kron:kron"),
        "psgd_jax affine, float32": Subject("psgd_jax.affine:affine", params=_FLOAT32),
        "psgd_jax xmat": Subject("psgd_jax.xmat:xmat"),
        "psgd_jax low_rank_approximation": Subject(
            "psgd_jax.low_rank_approximation:low_rank_approximation"
        ),
    },
    "psgdax": {"psgdax kron": Subject("psgdax:kron", static_args=("key",))},
    "distributed-kron": {
        "distributed_kron kron": Subject("distributed_kron:kron"),
        "distributed_kron pro": Subject("distributed_kron:pro"),
    },
    "optax-shampoo": {
        "optax_shampoo distributed_shampoo": Subject(
            "optax_shampoo.distributed_shampoo:distributed_shampoo",
            {**_STEP, "block_size": 128},
            static_args=("block_size", "start_preconditioning_step"),
        )
    },
    "optax-adan": {"optax_adan adan": Subject("optax_adan:adan")},
    "aura-optax": {
        "aura_optax adam_aura": Subject("aura_optax:adam_aura"),
        "aura_optax muon_aura": Subject("aura_optax:muon_aura"),
    },
    "flashoptim-jax": {
        "flashoptim_jax flash_adamw": Subject("flashoptim_jax:flash_adamw"),
        "flashoptim_jax flash_sgd": Subject("flashoptim_jax:flash_sgd"),
        "flashoptim_jax flash_lion": Subject("flashoptim_jax:flash_lion"),
    },
}
