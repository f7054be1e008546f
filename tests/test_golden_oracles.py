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
from tests.compare import assert_leaf_close

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


def _build(spec):
    kwargs = {
        name: _build(value) if _is_spec(value) else value
        for name, value in spec.get("kwargs", {}).items()
    }
    return _find(spec["factory"])(*map(_build, spec.get("args", ())), **kwargs)


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


@functools.cache
def _update(spec):
    tx = optax.with_extra_args_support(_build(json.loads(spec)))
    return tx, jax.jit(tx.update)


def _follow(name, dtype, tolerances):
    meta = METAS[name]
    with np.load(FOLDER / f"{name}.npz") as stored:
        groups = _groups(dict(stored), dtype)
    aux = {
        key: x
        for key, x in groups.get("aux", {}).items()
        if key in meta["state_fields"]
    }
    spec = {key: meta[key] for key in ("factory", "kwargs")}
    tx, update = _update(json.dumps(spec))
    params = groups["params0"]
    state = tx.init(params)
    for t in range(meta["steps"]):
        now = jax.tree.map(lambda x, t=t: x[t], groups)
        updates, state = update(now["grads"], state, params, **now.get("extra", {}))
        params = optax.apply_updates(params, updates)
        fields = {key: optax.tree.get(state, key) for key in aux}
        for group, got in (("updates", updates), ("params", params), ("aux", fields)):
            want = (
                {key: now["aux"][key] for key in aux} if group == "aux" else now[group]
            )
            _compare(got, want, tolerances[group], f"{name}, step {t}, {group}")


def _compare(got, want, rtol, where):
    for path, leaf in jax.tree_util.tree_leaves_with_path(want):
        found = got
        for key in path:
            found = found[key.key]
        assert_leaf_close(found, leaf, rtol, where + jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", NAMES)
def test_float64(name):
    rtol = METAS[name]["rtol_float64"]
    with jax.enable_x64(True):
        _follow(name, jnp.float64, dict.fromkeys(("updates", "params", "aux"), rtol))


@pytest.mark.parametrize("name", NAMES)
def test_float32(name):
    """Ten times what a plain float32 evaluation loses: the order is another."""
    stored = METAS[name]["rounding"]["float32_vs_float64"]
    if max(stored.values()) > 1e-3:
        pytest.skip("a plain float32 evaluation of the formula loses everything here")
    tolerances = {group: max(10 * error, 1e-6) for group, error in stored.items()}
    tolerances["aux"] = max(1e-5, tolerances["updates"])
    _follow(name, jnp.float32, tolerances)
