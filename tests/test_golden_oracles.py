"""The package's transforms against the trajectories in ``golden/oracles/``.

A file's ``factory`` and ``kwargs`` say which transform it is about. Those whose
factories are public and take these arguments are run, with no list to keep.
``tests/oracles`` makes them.
"""

import functools
import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import as_float64
from tests.in_time import in_time, in_turn

FOLDER = pathlib.Path(__file__).parent / "golden" / "oracles"


def _is_spec(value):
    return isinstance(value, dict) and "factory" in value


def _find(factory):
    """The function of that dotted name, or None where it is not public yet."""
    home = optax if factory.startswith("optax.") else oht
    names = factory.removeprefix("optax.").split(".")
    return functools.reduce(lambda x, name: getattr(x, name, None), names, home)


def _is_public(spec):
    factory, kwargs = _find(spec["factory"]), spec.get("kwargs", {})
    inner = [*spec.get("args", ()), *filter(_is_spec, kwargs.values())]
    return (
        factory is not None
        and set(kwargs) <= set(inspect.signature(factory).parameters)
        and all(map(_is_public, inner))
    )


def _argument(name, value):
    if _is_spec(value):
        return _build(value)
    if name == "key":
        return jax.random.key(value)
    if name == "weights":
        return jnp.asarray(value)
    if name == "vocabulary":
        return getattr(oht.rules, value)
    if isinstance(value, list):
        return tuple(_argument("", x) for x in value)
    return value


def _arguments(spec):
    kwargs = spec.get("kwargs", {})
    return {name: _argument(name, value) for name, value in kwargs.items()}


def _build(spec):
    inner = map(_build, spec.get("args", ()))
    return _find(spec["factory"])(*inner, **_arguments(spec))


METAS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("*.json"))
}
NAMES = [name for name, meta in METAS.items() if _is_public(meta)]


def _groups(stored, dtype):
    """Trees of arrays over all steps, by the first part of their keys."""
    groups = {}
    for key, x in stored.items():
        group, *path, last = key.split("/")
        tree = groups.setdefault(group, {})
        for part in path:
            tree = tree.setdefault(part, {})
        keeps = x.dtype.kind != "f" or group in ("updates", "params", "aux")
        tree[last] = x if keeps else jnp.asarray(x, dtype)
    return groups


def _as_transform(function, kwargs):
    """Of a function of the gradients and further arguments."""

    def update(updates, state, params=None, **extra_args):
        del params
        return function(updates, **kwargs, **extra_args), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _read(state, name):
    """Its own field of this name, or the only one within."""
    name = {"ema": "mu"}.get(name, name)  # one name for all first moments
    own = getattr(state, name, None)
    found = optax.tree.get(state, name) if own is None else own
    return jax.tree.map(_limit, found) if name == "threshold" else found


def _limit(x):
    """A limit that is none: the oracles' inf, and the largest number in a state."""
    return jnp.where(x == jnp.finfo(x.dtype).max, jnp.inf, x)


@functools.cache
def _run(spec, fields, x64):
    """The compiled loop over all steps, for all gradients of a configuration."""
    del x64  # another compilation
    spec = json.loads(spec)
    if spec["kind"] == "function":
        tx = _as_transform(_find(spec["factory"]), _arguments(spec))
    else:
        tx = optax.with_extra_args_support(_build(spec))

    def step(carry, now):
        params, state = carry
        updates, state = tx.update(now["grads"], state, params, **now.get("extra", {}))
        params = optax.apply_updates(params, updates)
        read = {name: _read(state, name) for name in fields}
        return (params, state), {"updates": updates, "params": params, "aux": read}

    return jax.jit(lambda p, inputs: jax.lax.scan(step, (p, tx.init(p)), inputs)[1])


def _check(name, dtype, tolerances):
    meta = METAS[name]
    with np.load(FOLDER / f"{name}.npz") as stored:
        groups = _groups(dict(stored), dtype)
    spec = json.dumps({key: meta[key] for key in ("kind", "factory", "kwargs")})
    fields = tuple(meta["state_fields"])
    loop = _run(spec, fields, dtype == jnp.float64)
    inputs = {key: groups[key] for key in ("grads", "extra") if key in groups}
    got = loop(groups["params0"], inputs)
    want = {group: groups[group] for group in ("updates", "params")}
    want["aux"] = {key: groups["aux"][key] for key in fields}
    for path, stored in jax.tree_util.tree_leaves_with_path(want):
        found = got
        for key in path:
            found = found[key.key]
        # What accumulates keeps the rounding of when it was larger.
        keeps = dtype == jnp.float32 and path[0].key != "updates"
        where = f"{name}, {jax.tree_util.keystr(path)}"
        _assert_close(found, stored, tolerances[path[0].key], keeps, where)


def _assert_close(got, want, rtol, keeps, where):
    """At each step within the largest entry of it, or of all until then.

    NaN, inf and -inf are equal to themselves and to nothing else.
    """
    assert got.shape == want.shape, where
    got, want = (as_float64(x).reshape(len(want), -1) for x in (got, want))
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=where)
    largest = np.max(np.abs(want), axis=1, initial=0, where=finite)
    largest = np.maximum.accumulate(largest) if keeps else largest
    error = np.subtract(got, want, where=finite, out=np.zeros_like(want))
    far = ~(np.abs(error) <= rtol * largest[:, None])
    step = np.argmax(far.any(axis=1))
    message = f"{where}, step {step}: {got[step]} is not {want[step]}"
    assert not far.any(), message


def _float32_error(name):
    return max(METAS[name]["rounding"]["float32_vs_float64"].values())


@pytest.mark.parametrize("name", NAMES)
def test_float64(name):
    rtol = METAS[name]["rtol_float64"]
    with jax.enable_x64(True):
        _check(name, jnp.float64, dict.fromkeys(("updates", "params", "aux"), rtol))


# Where more is lost, a plain evaluation of the formula underflows.
FLOAT32 = {name: name for name in NAMES if _float32_error(name) < 1e-3}


def _is_of_the_first_arguments(name):
    """Among the trajectories of its factory: other arguments are other programs."""
    factory, kwargs = METAS[name]["factory"], METAS[name]["kwargs"]
    first = next(meta for meta in METAS.values() if meta["factory"] == factory)
    return kwargs == first["kwargs"]


IN_TURN = in_turn(dict.fromkeys(METAS[name]["factory"] for name in FLOAT32), 0)


@pytest.mark.parametrize(
    "name",
    in_time(
        FLOAT32,
        lambda name: (
            METAS[name]["factory"] in IN_TURN and _is_of_the_first_arguments(name)
        ),
    ),
)
def test_float32(name):
    """Ten times what a plain float32 evaluation loses: the order is another."""
    stored = METAS[name]["rounding"]["float32_vs_float64"]
    tolerances = {group: max(10 * error, 1e-6) for group, error in stored.items()}
    tolerances["aux"] = max(1e-5, tolerances["updates"])
    _check(name, jnp.float32, tolerances)
