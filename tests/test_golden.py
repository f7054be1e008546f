"""The reference trajectories in ``golden/``, which README.md there does not repeat:

25 steps in float64 from an independent program (fewer for the two-loop form); the
``.json`` beside each ``.npz`` has the formula and how closely it can be followed.
Errors are relative to the largest entry of a leaf at a step; an all-zero leaf must be
matched exactly.
"""

import collections
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_leaf_close
from tests.in_time import in_time
from tests.registry import CASES
from tests.trajectories import Step

FOLDER = pathlib.Path(__file__).parent / "golden"
ALL_NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
NAMES = [name for name in ALL_NAMES if not name.startswith("neumann_two_loop")]
TWO_LOOP = [name for name in ALL_NAMES if name.startswith("neumann_two_loop")]
LEAVES = ("kernel", "bias", "zero", "scalar")


ALGORITHMS = {
    name: golden for case in CASES.values() for name, golden in case.golden.items()
}


@functools.cache
def _meta(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def _load(name):
    with np.load(FOLDER / f"{name}.npz") as stored:
        return _meta(name), dict(stored)


def _tree(stored, group, step=...):
    return {leaf: stored[f"{group}/{leaf}"][step] for leaf in LEAVES}


@functools.cache
def _update(algorithm, hyperparameters):
    """The transform and its compiled update, for all gradients of a configuration."""
    tx = ALGORITHMS[algorithm].make(json.loads(hyperparameters))
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
    got = ALGORITHMS[meta["algorithm"]].aux(meta["hyperparameters"], step)
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
    found = collections.Counter(name.split("__")[0] for name in NAMES)
    assert found == {name: golden.count for name, golden in ALGORITHMS.items()}
    assert len(TWO_LOOP) == 3


@pytest.mark.parametrize("name", NAMES)
def test_float64(name):
    rtol = _meta(name)["rtol_float64"]
    with jax.enable_x64(True):
        _check(name, jnp.float64, {"updates": rtol, "params": rtol, "aux": rtol})


def _follows_in_float32(name):
    return _meta(name)["rounding"]["float32_vs_float64"]["updates"] < 1e-3


def _is_of_the_first_arguments(name):
    """Among the trajectories of its algorithm: other arguments are other programs."""
    first = next(n for n in NAMES if _meta(n)["algorithm"] == _meta(name)["algorithm"])
    return _meta(name)["hyperparameters"] == _meta(first)["hyperparameters"]


FLOAT32 = {name: name for name in NAMES if _follows_in_float32(name)}


@pytest.mark.parametrize("name", in_time(FLOAT32, _is_of_the_first_arguments))
def test_float32(name):
    stored = _meta(name)["rounding"]["float32_vs_float64"]
    # The stored figures are those of one order of the operations, with or without fused
    # multiplications and additions, and ours is another.
    tolerances = {group: 20 * figure for group, figure in stored.items()}
    # A threshold is some 25 roundings of 6e-8 away, and a power; a cosine at its end
    # is a small difference, and so may be the only entry of a layer that its ratio
    # divides by. Averages are made of what the updates are.
    tolerances["aux"] = max(1e-4 if "lamb" in name else 2e-5, tolerances["updates"])
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
