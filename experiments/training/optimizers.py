"""Optimizers by name, built from a config."""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import optax_heavytail as oht
from experiments.common import fields
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.configs import fields as tables
from optax_heavytail import diagnostics, rules


def momentum(
    learning_rate: float, weight_decay: float = 0.0, mask=None, *, decay: float = 0.9
) -> optax.GradientTransformation:
    """Momentum SGD whose weight decay is decoupled, as it is in the others."""
    return optax.chain(
        optax.trace(decay),
        oht.add_decayed_weights(weight_decay, mask),
        oht.scale_by_learning_rate(learning_rate),
    )


def clip_by_moment(
    learning_rate: float, weight_decay: float = 0.0, mask=None, **kwargs
) -> optax.GradientTransformation:
    """SGD along the clipped gradient, with decoupled weight decay."""
    return optax.chain(
        oht.clip_by_moment(**kwargs),
        oht.add_decayed_weights(weight_decay, mask),
        oht.scale_by_learning_rate(learning_rate),
    )


def lars(
    learning_rate: float, weight_decay: float = 0.0, mask=True, **kwargs
) -> optax.GradientTransformation:
    """LARS, with the others' name for the mask of the weight decay."""
    return optax.lars(learning_rate, weight_decay, mask, **kwargs)


def weighted_iterate_average(
    learning_rate: float, **kwargs
) -> optax.GradientTransformation:
    """Momentum SGD that is evaluated at the average of its iterates."""
    return oht.weighted_iterate_average(momentum(learning_rate, **kwargs))


def cautious_adamw(
    learning_rate: float, weight_decay: float = 0.0, mask=None, **kwargs
) -> optax.GradientTransformation:
    """AdamW whose steps leave out what points against the gradient."""
    return optax.chain(
        oht.cautious(oht.scale_by_adam(**kwargs)),
        oht.add_decayed_weights(weight_decay, mask),
        oht.scale_by_learning_rate(learning_rate),
    )


def guarded_adamw(
    learning_rate: float,
    weight_decay: float = 0.0,
    mask=None,
    *,
    factor: float = 2.0,
    window: int = 100,
    **kwargs,
) -> optax.GradientTransformation:
    """AdamW behind a limit from the past; what is not finite is skipped."""
    inner = optax.adamw(learning_rate, weight_decay=weight_decay, mask=mask, **kwargs)
    return oht.guarded(inner, factor, window)


def history_adamw(
    learning_rate: float,
    weight_decay: float = 0.0,
    mask=None,
    *,
    factor: float = 2.0,
    window: int = 100,
    **kwargs,
) -> optax.GradientTransformation:
    """AdamW behind a limit from the past."""
    inner = optax.adamw(learning_rate, weight_decay=weight_decay, mask=mask, **kwargs)
    return optax.chain(oht.clip_by_history(factor, window), inner)


VOCABULARIES = {"bello": rules.BELLO, "extended": rules.EXTENDED}


def rule(
    learning_rate: float,
    weight_decay: float = 0.0,
    mask=None,
    *,
    expression: str,
    vocabulary: str = "bello",
    **kwargs,
) -> optax.GradientTransformation:
    """The rule that is an expression, with decoupled weight decay."""
    if vocabulary not in VOCABULARIES:
        allowed = " or ".join(VOCABULARIES)
        raise ValueError(f"vocabulary must be {allowed}, got {vocabulary!r}")
    return optax.chain(
        rules.transform(expression, vocabulary=VOCABULARIES[vocabulary], **kwargs),
        oht.add_decayed_weights(weight_decay, mask),
        oht.scale_by_learning_rate(learning_rate),
    )


BUILDERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "acclip": oht.acclip,
    "adabelief": optax.adabelief,
    "adagc": oht.adagc,
    "adam_atan2": oht.adam_atan2,
    "adamw": optax.adamw,
    "adamw_decoupled": oht.adamw_decoupled,
    "adashift": oht.adashift,
    "addsign": oht.addsign,
    "amsgrad": oht.amsgrad,
    "biclip": oht.biclip,
    "cautious_adamw": cautious_adamw,
    "cclip": oht.cclip,
    "clip_by_moment": clip_by_moment,
    "clipped_gd": oht.clipped_gd,
    "fast_adabelief": oht.fast_adabelief,
    "gclip": oht.gclip,
    "guarded_adamw": guarded_adamw,
    "history_adamw": history_adamw,
    "lamb": optax.lamb,
    "lambc": oht.lambc,
    "lars": lars,
    "larsc": oht.larsc,
    "momentum": momentum,
    "neumann": oht.neumann,
    "neumann_two_loop": oht.neumann_two_loop,
    "normalized_gd": oht.normalized_gd,
    "novograd": optax.novograd,
    "powersign": oht.powersign,
    "rule": rule,
    "sgdw": oht.sgdw,
    "spam": oht.spam,
    "stable_adamw": oht.stable_adamw,
    "stable_spam": oht.stable_spam,
    "weighted_iterate_average": weighted_iterate_average,
}

# Where the parameters in training are not the ones to evaluate and to keep.
READOUTS: dict[str, Callable[..., optax.Params]] = {
    "neumann": oht.neumann_eval_params,
    "weighted_iterate_average": oht.weighted_iterate_average_eval_params,
}

MONITOR = "monitor"  # what comes before the names of its numbers in records
SKIPPED = ("num_nonfinite", "num_spikes", "num_value_spikes")


def eval_params(transform: str, opt_state, params):
    """The parameters that an optimizer has found."""
    readout = READOUTS.get(transform)
    return readout(opt_state, params) if readout else params


def select(config: Config, name: str) -> Config:
    """A copy of ``config`` that selects the optimizer ``name``."""
    chosen = config.copy_and_resolve_references()
    chosen.optimizer.name = name
    return chosen


def check_names(config: Config) -> None:
    """Refuses optimizers that no folder can be called by.

    Raises:
      UserError: naming one of them.
    """
    for name in config.optimizers:
        if not re.fullmatch(r"\w[\w .+=-]{0,99}", name):
            raise UserError(
                f"config.optimizers: {name!r:.110} must be a name of letters, digits, "
                "and some of - + . =, by which a folder can be called"
            )


def settings(config: Config) -> Config:
    """The entry of ``config.optimizers`` that ``config.optimizer.name`` selects.

    Raises:
      UserError: no such entry, or values out of range in it.
    """
    name = config.optimizer.name
    check_names(config)
    if name not in config.optimizers:
        allowed = ", ".join(config.optimizers)
        raise UserError(f"config.optimizer.name={name}: must be one of {allowed}")
    chosen, where = config.optimizers[name], f"config.optimizers.{name}"
    fields.check(config, {f"optimizers.{name}": fields.mapping()})
    fields.check(chosen, tables.OPTIMIZER, where)
    # Here, since optax itself takes any.
    fields.check(chosen.kwargs, tables.KWARGS, f"{where}.kwargs")
    if chosen.transform not in BUILDERS:
        allowed = ", ".join(BUILDERS)
        raise UserError(
            f"{where}.transform={chosen.transform}: must be one of {allowed}"
        )
    try:
        build(chosen)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
    return chosen


def build(
    chosen: Config, monitor_every: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Builds the transform; its learning rate is an array in its state.

    With ``monitor_every`` it is monitored at each such step.
    """
    kwargs = dict(chosen.kwargs)
    if "weight_decay" in chosen:
        kwargs |= {"weight_decay": chosen.weight_decay, "mask": oht.decay_mask}

    def make(learning_rate):
        optimizer = BUILDERS[chosen.transform](learning_rate, **kwargs)
        if "skip_if_unsafe" in chosen:
            optimizer = oht.skip_if_unsafe(optimizer, **chosen.skip_if_unsafe)
        if monitor_every is None:
            return optimizer
        return diagnostics.monitor(optimizer, every=monitor_every)

    make(chosen.learning_rate)  # checks ranges before any array
    inject = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)
    return inject(chosen.learning_rate)


def with_learning_rate(opt_state, learning_rate):
    """Sets the learning rate that the next update uses."""
    hyperparams = {**opt_state.hyperparams, "learning_rate": learning_rate}
    return opt_state._replace(hyperparams=hyperparams)


def is_lost(opt_state, is_finite: jax.Array) -> jax.Array:
    """Whether to give a run up: too many steps skipped, or without that a bad loss."""
    limit_reached = optax.tree.get(opt_state, "limit_reached")
    return ~is_finite if limit_reached is None else limit_reached


def skipped(opt_state) -> dict[str, int]:
    """How many steps were skipped, and why; nothing if the optimizer skips none."""
    counts = {name: optax.tree.get(opt_state, name) for name in SKIPPED}
    return {name: int(count) for name, count in counts.items() if count is not None}


def monitored(opt_state) -> dict[str, float]:
    """What the monitor knows so far; nothing if there is none."""
    if optax.tree.get(opt_state, "gradient_norms") is None:
        return {}
    found = diagnostics.read_monitor(opt_state)
    return {f"{MONITOR}/{k}": v for k, v in found.items() if math.isfinite(v)}
