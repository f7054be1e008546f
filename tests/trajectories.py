"""How transforms follow the reference trajectories: the algorithms of ``golden/``."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from tests.compare import as_float64


class Step(NamedTuple):
    number: int
    grads: Any
    before: Any  # parameters
    state_before: Any
    updates: Any
    params: Any
    state: Any


class Golden(NamedTuple):
    make: Callable[[dict[str, Any]], Any]  # the transform, from stored hyperparameters
    count: int  # of trajectories
    # What the transform used in a step, in the layout of the further stored keys.
    aux: Callable[[dict[str, Any], Step], dict[str, Any]] = lambda hp, step: {}


def norm(tree):
    return np.linalg.norm(
        np.concatenate([as_float64(x).ravel() for x in jax.tree.leaves(tree)])
    )


def _threshold(hp):
    if hp["tau_schedule"] == "constant":
        return hp["tau"]
    return oht.clipping_threshold(hp["G"], hp["alpha"])


def _decay(kind, start, steps):
    """The number or schedule that the word ``kind`` stands for."""
    if kind == "constant":
        return start
    if kind == "linear":
        return optax.linear_schedule(start, 0.0, steps)
    assert kind == "cosine"
    return oht.warm_restarts(start, t_0=steps)  # no restart within the steps


def _agreement(hp):
    return _decay(hp["decay"], 1.0, hp["T"])


def _agreement_or_none(hp):
    decay = _agreement(hp)
    return decay if callable(decay) else None


def _multiplier(hp):
    return _decay(hp["eta_schedule"], hp["eta"], hp["T"])


def _value_of(key, schedule):
    """The number or value of a schedule that was used."""

    def aux(hp, step):
        value = schedule(hp)
        return {key: value(step.number) if callable(value) else value}

    return aux


_tau = _value_of("aux/tau", _threshold)


def _gradient_norm(hp, step):
    return {"aux/norm": norm(step.grads)}


ACCLIP = Golden(
    lambda hp: oht.acclip(
        hp["lr"], hp["b1"], hp["b2"], hp["alpha"], hp["eps"], hp["weight_decay"]
    ),
    18,
    lambda hp, step: {
        f"aux/tau/{k}": v for k, v in oht.get_threshold(step.state).items()
    },
)
GCLIP = Golden(
    lambda hp: oht.gclip(hp["lr"], _threshold(hp), hp["b1"]),
    9,
    lambda hp, step: _tau(hp, step) | {"aux/norm": norm(oht.get_momentum(step.state))},
)
CCLIP = Golden(lambda hp: oht.cclip(hp["lr"], _threshold(hp), hp["b1"]), 9, _tau)


def _lambc(hp):
    return oht.lambc(
        hp["lr"],
        hp["b1"],
        hp["b2"],
        hp["eps"],
        hp["weight_decay"],
        trust_ratio_bounds=(0.0, hp["clip_bound"]) if hp["clip"] else None,
    )


def _no_leaf(params):
    return jax.tree.map(lambda _: False, params)


def _lamb(hp):
    adapts = hp["weight_decay"] != 0 or hp["always_adapt"]
    return oht.lambc(
        hp["lr"],
        hp["b1"],
        hp["b2"],
        hp["eps"],
        hp["weight_decay"],
        trust_ratio_bounds=(0.0, 1.0) if hp["trust_clip"] else None,
        bias_correction=hp["bias_correction"],
        max_grad_norm=hp["max_grad_norm"],
        trust_ratio_mask=None if adapts else _no_leaf,
    )


def _ratios(hp, step):
    aux = {}
    for key, raw in (("trust_ratio", False), ("trust_ratio_raw", True)):
        for leaf, ratio in oht.get_trust_ratio(step.state, raw=raw).items():
            masked = isinstance(ratio, optax.MaskedNode)
            aux[f"{key}/{leaf}"] = 1.0 if masked else ratio
    return aux


LAMBC = Golden(_lambc, 10, _ratios)
LAMB = Golden(_lamb, 20, _ratios)


def _neumann(hp):
    return oht.neumann(
        hp["eta"],
        cubic=hp["alpha"],
        repulsive=hp["beta"],
        repulsive_scale=1.0,
        ema_decay=hp["gamma"],
        momentum=oht.neumann_momentum(hp["mu_min"], hp["mu_max"]),
        reset_interval=hp["K"],
    )


def _neumann_aux(hp, step):
    displaced = jax.tree.map(jnp.subtract, step.before, step.state_before.average)
    return {
        "aux/is_reset": float(step.state_before.next_reset == step.number + 1),
        "aux/mu": step.state.momentum_coefficient,
        "aux/dist": norm(displaced),
        **{f"aux/m/{leaf}": m for leaf, m in step.state.mu.items()},
        **{f"aux/v/{leaf}": v for leaf, v in step.state.average.items()},
    }


NEUMANN = Golden(_neumann, 9, _neumann_aux)
POWERSIGN = Golden(
    lambda hp: oht.powersign(
        hp["lr"], hp["b"], hp["a"], sign_decay=_agreement_or_none(hp)
    ),
    9,
    _value_of("aux/f", _agreement),
)
ADDSIGN = Golden(
    lambda hp: oht.addsign(
        hp["lr"], hp["b"], hp["a"], sign_decay=_agreement_or_none(hp)
    ),
    9,
    _value_of("aux/f", _agreement),
)
AMSGRAD = Golden(
    lambda hp: oht.amsgrad(
        hp["lr"], hp["b1"], hp["b2"], hp["eps"], bias_correction=False
    ),
    6,
)
ADASHIFT = Golden(
    lambda hp: oht.adashift(hp["lr"], hp["b1"], hp["b2"], hp["eps"], n=hp["n"]), 5
)
SGDW = Golden(
    lambda hp: oht.sgdw(
        hp["lr"], hp["b1"], hp["weight_decay"], multiplier=_multiplier(hp)
    ),
    6,
    _value_of("aux/eta", _multiplier),
)
ADAMW = Golden(
    lambda hp: oht.adamw_decoupled(
        hp["lr"],
        hp["b1"],
        hp["b2"],
        hp["eps"],
        hp["weight_decay"],
        multiplier=_multiplier(hp),
        bias_correction=hp["bias_correction"],
    ),
    8,
    _value_of("aux/eta", _multiplier),
)
CLIPPED_GD = Golden(lambda hp: oht.clipped_gd(hp["h"], hp["c"]), 5, _gradient_norm)
NORMALIZED_GD = Golden(
    lambda hp: oht.normalized_gd(hp["h"], hp["b"]), 5, _gradient_norm
)
