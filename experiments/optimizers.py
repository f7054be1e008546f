"""Optimizers by name, built from a config."""

import inspect
import math
from collections.abc import Callable

import jax.numpy as jnp
import optax

import optax_heavytail as oht
from experiments.errors import UserError
from experiments.types import Config


def momentum(
    learning_rate: float, weight_decay: float = 0.0, mask=None, *, decay: float = 0.9
) -> optax.GradientTransformation:
    """Momentum SGD whose weight decay is decoupled, as it is in the others."""
    return optax.chain(
        optax.trace(decay),
        oht.add_decayed_weights(weight_decay, mask),
        oht.scale_by_learning_rate(learning_rate),
    )


BUILDERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "acclip": oht.acclip,
    "adamw": optax.adamw,
    "gclip": oht.gclip,
    "momentum": momentum,
}


def select(config: Config, name: str) -> Config:
    """A copy of ``config`` that selects the optimizer ``name``."""
    chosen = config.copy_and_resolve_references()
    chosen.optimizer.name = name
    return chosen


def settings(config: Config) -> Config:
    """The entry of ``config.optimizers`` that ``config.optimizer.name`` selects.

    Raises:
      UserError: no such entry, or values out of range in it.
    """
    name = config.optimizer.name
    if name not in config.optimizers:
        allowed = ", ".join(config.optimizers)
        raise UserError(f"config.optimizer.name={name}: must be one of {allowed}")
    chosen = config.optimizers[name]
    where = f"config.optimizers.{name}"
    if chosen.transform not in BUILDERS:
        allowed = ", ".join(BUILDERS)
        raise UserError(
            f"{where}.transform={chosen.transform}: must be one of {allowed}"
        )
    _check_ranges(where, chosen)
    try:
        build(chosen)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
    return chosen


def _check_ranges(where: str, chosen: Config) -> None:
    """Checks numbers here, since optax itself takes any."""
    rate, decay = chosen.learning_rate, chosen.weight_decay
    if not (math.isfinite(rate) and rate > 0):
        raise UserError(
            f"{where}.learning_rate={rate}: must be a finite number above 0"
        )
    if not (math.isfinite(decay) and decay >= 0):
        raise UserError(
            f"{where}.weight_decay={decay}: must be a finite number, 0 or more"
        )
    for name, value in chosen.kwargs.items():
        if name in ("b1", "b2", "decay") and not 0 <= value < 1:
            raise UserError(f"{where}.kwargs.{name}={value}: must be in [0, 1)")
        if name == "eps" and not (math.isfinite(value) and value >= 0):
            raise UserError(
                f"{where}.kwargs.eps={value}: must be a finite number, 0 or more"
            )


def build(chosen: Config) -> optax.GradientTransformationExtraArgs:
    """Builds the transform; its learning rate is an array in its state."""
    builder = BUILDERS[chosen.transform]
    static = set(inspect.signature(builder).parameters) - {"learning_rate"}
    inject = optax.inject_hyperparams(builder, static, hyperparam_dtype=jnp.float32)
    kwargs = dict(
        weight_decay=chosen.weight_decay, mask=oht.decay_mask, **chosen.kwargs
    )
    builder(chosen.learning_rate, **kwargs)  # checks ranges before any array
    return inject(chosen.learning_rate, **kwargs)


def with_learning_rate(opt_state, learning_rate):
    """Sets the learning rate that the next update uses."""
    hyperparams = {**opt_state.hyperparams, "learning_rate": learning_rate}
    return opt_state._replace(hyperparams=hyperparams)
