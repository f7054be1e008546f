"""The reference trajectories in ``golden/``, which README.md there does not repeat:

25 steps in float64 from an independent program (fewer for the two-loop form); the
``.json`` beside each ``.npz`` has the formula and how closely it can be followed.
Errors are relative to the largest entry of a leaf at a step; an all-zero leaf must be
matched exactly.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import as_float64, assert_leaf_close

FOLDER = pathlib.Path(__file__).parent / "golden"
ALL_NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
NAMES = [name for name in ALL_NAMES if not name.startswith("neumann_two_loop")]
TWO_LOOP = [name for name in ALL_NAMES if name.startswith("neumann_two_loop")]
LEAVES = ("kernel", "bias", "zero", "scalar")


def _acclip(hp):
    return oht.acclip(
        hp["lr"], hp["b1"], hp["b2"], hp["alpha"], hp["eps"], hp["weight_decay"]
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
    decay = _decay(hp["decay"], 1.0, hp["T"])
    return decay if callable(decay) else None


def _multiplier(hp):
    return _decay(hp["eta_schedule"], hp["eta"], hp["T"])


def _adamw(hp):
    return oht.adamw_decoupled(
        hp["lr"],
        hp["b1"],
        hp["b2"],
        hp["eps"],
        hp["weight_decay"],
        _multiplier(hp),
        hp["bias_correction"],
    )


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


ALGORITHMS = {
    "acclip": _acclip,
    "gclip": lambda hp: oht.gclip(hp["lr"], _threshold(hp), hp["b1"]),
    "cclip": lambda hp: oht.cclip(hp["lr"], _threshold(hp), hp["b1"]),
    "lambc": _lambc,
    "lamb": _lamb,
    "neumann": _neumann,
    "powersign": lambda hp: oht.powersign(hp["lr"], hp["b"], hp["a"], _agreement(hp)),
    "addsign": lambda hp: oht.addsign(hp["lr"], hp["b"], hp["a"], _agreement(hp)),
    "amsgrad": lambda hp: oht.amsgrad(hp["lr"], hp["b1"], hp["b2"], hp["eps"]),
    "adashift": lambda hp: oht.adashift(
        hp["lr"], hp["b1"], hp["b2"], hp["eps"], hp["n"]
    ),
    "sgdw": lambda hp: oht.sgdw(
        hp["lr"], hp["b1"], hp["weight_decay"], _multiplier(hp)
    ),
    "adamw": _adamw,
    "clipped_gd": lambda hp: oht.clipped_gd(hp["h"], hp["c"]),
    "normalized_gd": lambda hp: oht.normalized_gd(hp["h"], hp["b"]),
}


class Step(NamedTuple):
    number: int
    grads: Any
    before: Any  # parameters
    state_before: Any
    updates: Any
    params: Any
    state: Any


def _norm(tree):
    return np.linalg.norm(
        np.concatenate([as_float64(x).ravel() for x in jax.tree.leaves(tree)])
    )


def _clip_aux(hp, step):
    threshold = _threshold(hp)
    return {"aux/tau": threshold(step.number) if callable(threshold) else threshold}


def _ratio_aux(hp, step):
    aux = {}
    for key, raw in (("trust_ratio", False), ("trust_ratio_raw", True)):
        for leaf, ratio in oht.get_trust_ratio(step.state, raw=raw).items():
            masked = isinstance(ratio, optax.MaskedNode)
            aux[f"{key}/{leaf}"] = 1.0 if masked else ratio
    return aux


def _neumann_aux(hp, step):
    displaced = jax.tree.map(jnp.subtract, step.before, step.state_before.average)
    return {
        "aux/is_reset": float(step.state_before.next_reset == step.number + 1),
        "aux/mu": step.state.mu,
        "aux/dist": _norm(displaced),
        **{f"aux/m/{leaf}": m for leaf, m in step.state.momentum.items()},
        **{f"aux/v/{leaf}": v for leaf, v in step.state.average.items()},
    }


def _schedule_aux(key, schedule, hp, step):
    value = schedule(hp)
    return {key: value(step.number) if callable(value) else value}


# What a transform used in a step, in the layout of the further stored keys.
AUX = {
    "acclip": lambda hp, step: {
        f"aux/tau/{k}": v for k, v in oht.get_threshold(step.state).items()
    },
    "gclip": lambda hp, step: {
        **_clip_aux(hp, step),
        "aux/norm": _norm(oht.get_momentum(step.state)),
    },
    "cclip": _clip_aux,
    "lambc": _ratio_aux,
    "lamb": _ratio_aux,
    "neumann": _neumann_aux,
    "powersign": functools.partial(
        _schedule_aux, "aux/f", lambda hp: _decay(hp["decay"], 1.0, hp["T"])
    ),
    "addsign": functools.partial(
        _schedule_aux, "aux/f", lambda hp: _decay(hp["decay"], 1.0, hp["T"])
    ),
    "sgdw": functools.partial(_schedule_aux, "aux/eta", _multiplier),
    "adamw": functools.partial(_schedule_aux, "aux/eta", _multiplier),
    "clipped_gd": lambda hp, step: {"aux/norm": _norm(step.grads)},
    "normalized_gd": lambda hp, step: {"aux/norm": _norm(step.grads)},
    "amsgrad": lambda hp, step: {},
    "adashift": lambda hp, step: {},
}


def _load(name):
    meta = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(FOLDER / f"{name}.npz") as stored:
        return meta, dict(stored)


def _tree(stored, group, step=...):
    return {leaf: stored[f"{group}/{leaf}"][step] for leaf in LEAVES}


@functools.cache
def _update(algorithm, hyperparameters):
    """The transform and its compiled update, for all gradients of a configuration."""
    tx = ALGORITHMS[algorithm](json.loads(hyperparameters))
    return tx, jax.jit(tx.update)


def _follow(meta, stored, dtype):
    tx, update = _update(meta["algorithm"], json.dumps(meta["hyperparameters"]))
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), _tree(stored, "params0"))
    state = tx.init(params)
    for number in range(meta["steps"]):
        grads = jax.tree.map(
            lambda x: jnp.asarray(x, dtype), _tree(stored, "grads", number)
        )
        before, state_before = params, state
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield Step(number, grads, before, state_before, updates, params, state)


def _aux(meta, stored, step):
    """Pairs of what was used and what is stored: every further key, and no other."""
    got = AUX[meta["algorithm"]](meta["hyperparameters"], step)
    groups = ("grads/", "params/", "params0/", "updates/")
    assert set(got) == {key for key in stored if not key.startswith(groups)}
    return [(key, value, stored[key][step.number]) for key, value in got.items()]


def _check(name, dtype, tolerances):
    meta, stored = _load(name)
    for step in _follow(meta, stored, dtype):
        where = f"{name}, step {step.number}"
        for group in ("updates", "params"):
            for leaf, want in _tree(stored, group, step.number).items():
                got = getattr(step, group)[leaf]
                assert_leaf_close(got, want, tolerances[group], f"{where}, {leaf}")
        for key, got, want in _aux(meta, stored, step):
            assert_leaf_close(got, want, tolerances["aux"], f"{where}, {key}")


def test_every_algorithm_has_trajectories():
    assert {name.split("__")[0] for name in NAMES} == set(ALGORITHMS) == set(AUX)
    assert len(NAMES) == 128
    assert len(TWO_LOOP) == 3


@pytest.mark.parametrize("name", NAMES)
def test_float64(name):
    rtol = _load(name)[0]["rtol_float64"]
    with jax.enable_x64(True):
        _check(name, jnp.float64, {"updates": rtol, "params": rtol, "aux": rtol})


def _follows_in_float32(name):
    return _load(name)[0]["rounding"]["float32_vs_float64"]["updates"] < 1e-3


@pytest.mark.parametrize("name", [name for name in NAMES if _follows_in_float32(name)])
def test_float32(name):
    stored = _load(name)[0]["rounding"]["float32_vs_float64"]
    # The stored figures are those of one order of the operations, and ours is another.
    tolerances = {group: 10 * figure for group, figure in stored.items()}
    # A threshold is at most 25 roundings of 6e-8 away, and a power; a cosine at its end
    # is a small difference, and so may be the only entry of a layer that its ratio
    # divides by. Averages are made of what the updates are.
    tolerances["aux"] = max(1e-4 if "lamb" in name else 1e-5, tolerances["updates"])
    _check(name, jnp.float32, tolerances)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not _follows_in_float32(name)]
)
def test_float32_where_a_naive_form_loses_everything(name):
    """Gradients of 1e-30: squares and |g|^1.5 underflow, and some updates (1e-58).

    Thresholds, ratios and what the parameters do are representable.
    """
    meta, stored = _load(name)
    assert meta["gradients"]["family"] == "tiny"
    for step in _follow(meta, stored, jnp.float32):
        for key, got, want in _aux(meta, stored, step):
            assert_leaf_close(got, want, 1e-5, f"{key}, step {step.number}")
        for group in ("updates", "params"):
            for leaf, want in _tree(stored, group, step.number).items():
                where = f"{group} of {leaf}, step {step.number}"
                got = getattr(step, group)[leaf]
                if np.max(np.abs(want)) > np.finfo(np.float32).tiny:
                    assert_leaf_close(got, want, 1e-5, where)
                else:
                    np.testing.assert_array_equal(got, 0, err_msg=where)


def _quadratic(stored):
    matrix, vector = jnp.asarray(stored["A"]), jnp.asarray(stored["b"])
    return lambda params: {"w": matrix @ params["w"] - vector}


@pytest.mark.parametrize("name", TWO_LOOP)
def test_two_loop_float64(name):
    meta, stored = _load(name)
    hp, rtol = meta["hyperparameters"], meta["rtol_float64"]
    with jax.enable_x64(True):
        grad_fn = _quadratic(stored)

        @jax.jit
        def step(params, num_inner_steps):
            grads = grad_fn(params)
            tx = oht.neumann_two_loop(
                hp["eta_in"], num_inner_steps, outer_learning_rate=hp["eta_out"]
            )
            updates, _ = tx.update(grads, tx.init(params), params, grad_fn=grad_fn)
            return grads, updates

        params = {"w": jnp.asarray(stored["params0/w"])}
        for number in range(meta["steps"]):
            where = f"{name}, step {number}"
            # m_k is what the loop has after k steps.
            for k, want in enumerate(stored["aux/inner_m/w"][number]):
                inner = step(params, k)[1]["w"] / hp["eta_out"]
                assert_leaf_close(inner, want, rtol, f"{where}, m_{k}")
            grads, updates = step(params, hp["K"])
            params = optax.apply_updates(params, updates)
            assert_leaf_close(grads["w"], stored["grads/w"][number], rtol, where)
            assert_leaf_close(updates["w"], stored["updates/w"][number], rtol, where)
            assert_leaf_close(params["w"], stored["params/w"][number], rtol, where)


@pytest.mark.parametrize("name", TWO_LOOP)
@pytest.mark.parametrize("use_hvp", [False, True])
def test_two_loop_table_of_the_error_against_k(name, use_hvp):
    """How far eta m_k is from the Newton step, for every number k of inner steps."""
    meta, stored = _load(name)
    hp = meta["hyperparameters"]
    with jax.enable_x64(True):
        grad_fn = _quadratic(stored)
        params = {"w": jnp.asarray(stored["params0/w"])}
        grads = grad_fn(params)
        newton = np.linalg.solve(stored["A"], grads["w"])

        @jax.jit
        def error(num_inner_steps):
            tx = oht.neumann_inner_loop(hp["eta_in"], num_inner_steps, use_hvp=use_hvp)
            updates, _ = tx.update(grads, tx.init(params), params, grad_fn=grad_fn)
            distance = jnp.linalg.norm(hp["eta_in"] * updates["w"] - newton)
            return distance / jnp.linalg.norm(newton)

        table = [error(k) for k in range(hp["K"] + 1)]
    want = stored["aux/newton_rel_err"]
    assert len(table) == len(want)
    # A difference of numbers of size 1, each to 1e-15 times the condition of A.
    np.testing.assert_allclose(table, want, rtol=meta["rtol_float64"], atol=1e-13)
    assert np.all(np.diff(want) < 0)


@pytest.mark.parametrize("name", TWO_LOOP)
def test_two_loop_float32(name):
    meta, stored = _load(name)
    hp = meta["hyperparameters"]
    grad_fn = _quadratic({k: np.float32(v) for k, v in stored.items()})
    tx = oht.neumann_two_loop(hp["eta_in"], hp["K"], outer_learning_rate=hp["eta_out"])
    update = jax.jit(functools.partial(tx.update, grad_fn=grad_fn))
    params = {"w": jnp.asarray(stored["params0/w"], jnp.float32)}
    state = tx.init(params)
    for number in range(meta["steps"]):
        updates, state = update(grad_fn(params), state, params)
        params = optax.apply_updates(params, updates)
        # The gradient is a difference of numbers of size 1: it cancels near the end.
        np.testing.assert_allclose(
            params["w"], stored["params/w"][number], rtol=1e-5, atol=1e-5
        )
