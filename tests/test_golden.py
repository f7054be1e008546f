"""The reference trajectories in ``golden/``, which README.md there does not repeat:

25 steps in float64 from an independent program; the ``.json`` beside each ``.npz`` has
the formula and how closely it can be followed. Errors are relative to the largest entry
of a leaf at a step; an all-zero leaf must be matched exactly.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import as_float64, assert_leaf_close

FOLDER = pathlib.Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
LEAVES = ("kernel", "bias", "zero", "scalar")


def _acclip(hp):
    return oht.acclip(
        hp["lr"], hp["b1"], hp["b2"], hp["alpha"], hp["eps"], hp["weight_decay"]
    )


def _threshold(hp):
    if hp["tau_schedule"] == "constant":
        return hp["tau"]
    return oht.clipping_threshold(hp["G"], hp["alpha"])


ALGORITHMS = {
    "acclip": _acclip,
    "gclip": lambda hp: oht.gclip(hp["lr"], _threshold(hp), hp["b1"]),
    "cclip": lambda hp: oht.cclip(hp["lr"], _threshold(hp), hp["b1"]),
}


def _load(name):
    meta = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(FOLDER / f"{name}.npz") as stored:
        return meta, dict(stored)


def _tree(stored, group, step=...):
    return {leaf: stored[f"{group}/{leaf}"][step] for leaf in LEAVES}


def _follow(name, dtype):
    """Each step's number, updates, parameters and state."""
    meta, stored = _load(name)
    tx = ALGORITHMS[meta["algorithm"]](meta["hyperparameters"])
    update = jax.jit(tx.update)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), _tree(stored, "params0"))
    state = tx.init(params)
    for step in range(meta["steps"]):
        grads = jax.tree.map(
            lambda x: jnp.asarray(x, dtype), _tree(stored, "grads", step)
        )
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield step, updates, params, state


def _thresholds(meta, state, step):
    """What the transform used, in the layout of the stored ``aux/tau``."""
    if meta["algorithm"] == "acclip":
        return {f"aux/tau/{k}": v for k, v in oht.get_threshold(state).items()}
    threshold = _threshold(meta["hyperparameters"])
    return {"aux/tau": threshold(step) if callable(threshold) else threshold}


def _check(name, dtype, tolerances):
    meta, stored = _load(name)
    for step, updates, params, state in _follow(name, dtype):
        where = f"{name}, step {step}"
        for group, got in (("updates", updates), ("params", params)):
            for leaf, want in _tree(stored, group, step).items():
                assert_leaf_close(
                    got[leaf], want, tolerances[group], f"{where}, {leaf}"
                )
        for key, tau in _thresholds(meta, state, step).items():
            assert_leaf_close(tau, stored[key][step], tolerances["tau"], where)
        if "aux/norm" in stored:
            moment = jax.tree.leaves(oht.get_momentum(state))
            norm = np.linalg.norm(
                np.concatenate([as_float64(m).ravel() for m in moment])
            )
            assert_leaf_close(norm, stored["aux/norm"][step], tolerances["tau"], where)


def test_every_algorithm_has_trajectories():
    assert {name.split("__")[0] for name in NAMES} == set(ALGORITHMS)
    assert len(NAMES) == 36


@pytest.mark.parametrize("name", NAMES)
def test_float64(name):
    rtol = _load(name)[0]["rtol_float64"]
    with jax.enable_x64(True):
        _check(name, jnp.float64, {"updates": rtol, "params": rtol, "tau": rtol})


def _follows_in_float32(name):
    return _load(name)[0]["rounding"]["float32_vs_float64"]["updates"] < 1e-3


@pytest.mark.parametrize("name", [name for name in NAMES if _follows_in_float32(name)])
def test_float32(name):
    stored = _load(name)[0]["rounding"]["float32_vs_float64"]
    # The stored figures are those of one order of the operations, and ours is another.
    tolerances = {group: 10 * figure for group, figure in stored.items()}
    # The threshold is at most 25 roundings of 6e-8 away, and a power.
    _check(name, jnp.float32, {**tolerances, "tau": 2e-6})


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not _follows_in_float32(name)]
)
def test_float32_where_a_naive_form_loses_everything(name):
    """Gradients of 1e-30: |g|^1.5 underflows, and the true updates (1e-58) as well.

    The thresholds do not, and what the parameters do is representable.
    """
    meta, stored = _load(name)
    assert meta["gradients"]["family"] == "tiny"
    for step, updates, params, state in _follow(name, jnp.float32):
        for key, tau in _thresholds(meta, state, step).items():
            assert_leaf_close(tau, stored[key][step], 1e-5, f"{key}, step {step}")
        for group, got in (("updates", updates), ("params", params)):
            for leaf, want in _tree(stored, group, step).items():
                where = f"{group} of {leaf}, step {step}"
                if np.max(np.abs(want)) > np.finfo(np.float32).tiny:
                    assert_leaf_close(got[leaf], want, 1e-5, where)
                else:
                    np.testing.assert_array_equal(got[leaf], 0, err_msg=where)
