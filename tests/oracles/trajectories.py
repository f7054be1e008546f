"""Gradients, runs and files of the reference trajectories."""

import json
import pathlib
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "oracles"
STEPS = 25
SHAPES = {"kernel": (5, 3), "bias": (4,), "zero": (3,), "scalar": (1,)}
SCALES = {"kernel": 0.5, "bias": 0.125, "zero": 1.0, "scalar": 2.0}
FAMILIES = {
    "normal": "leaf scale * (0.25 * fixed direction + noise), leaf scales kernel 0.5, "
    "bias 0.125, zero 1, scalar 2; the noise has variance 1 (a sum of 12 uniforms, "
    "rounded to 1/1024: all gradients are numbers of float32)",
    "calm": "leaf scale * (fixed direction + noise / 8), scales as in normal",
    "heavy": "0.5 * noise * 2^k, k = 0, 1, ... with probabilities that fall by "
    "2^-1.5 (tail order 1.5), and six planted outliers of 1e4 to 1e6",
    "zeros": "all zero",
    "tiny": "2^-100 * noise",
    "sparse": "noise, half of the entries exactly zero; bias all zero in steps 1, 2 "
    "and 11 to 15, everything zero in step 20",
    "spikes": "calm, but one entry of kernel is 1e4 in step 13, and the one of scalar "
    "-1e6 in step 19",
    "nonfinite": "calm, but NaN in scalar in step 1, in kernel in step 9, inf in bias "
    "in steps 15 and 16 (then -inf), NaN everywhere in step 21",
}


class Case(NamedTuple):
    """One configuration of one method, and the gradients it is run on."""

    algorithm: str  # the first part of the file's name
    configuration: str
    families: str  # separated by spaces
    formula: str
    spec: dict[str, Any]  # factory and kwargs: see `methods.build`
    extra_keys: dict[str, str]  # what the further keys of the npz mean
    state_fields: tuple[str, ...]  # those of aux/ that the state has by that name
    extra: Callable[[], dict[str, np.ndarray]] | None  # inputs beside the gradients
    workers: int | None  # the gradients have a leading axis of these
    kind: str  # "transform", or "function" of the gradients and of extra
    loose: tuple[float, float]  # least tolerances in float64 and float32


def cases(
    factory,
    formula,
    settings,
    extra_keys=None,
    state_fields=(),
    extra=None,
    *,
    workers=None,
    kind="transform",
    loose=(1e-10, 0.0),
):
    """One `Case` for each ``configuration: (kwargs, families)``."""
    return [
        Case(
            factory.removeprefix("aggregation."),
            configuration,
            families,
            formula,
            {"factory": factory, "kwargs": kwargs},
            extra_keys or {},
            state_fields,
            extra,
            workers,
            kind,
            loose,
        )
        for configuration, (kwargs, families) in settings.items()
    ]


def initial_params():
    """The parameters before the first step."""
    noise = Noise("params")
    params = {leaf: noise(shape) for leaf, shape in SHAPES.items()}
    params["zero"][:] = 0
    return params


def gradients(family, workers=None):
    """For each leaf an array of all steps; only the first worker is of the family."""
    if workers is not None:
        trees = [_gradients(family, Noise(family))]
        trees += [_gradients("normal", Noise(f"worker {i}")) for i in range(1, workers)]
        return {leaf: np.stack([x[leaf] for x in trees], axis=1) for leaf in SHAPES}
    return _gradients(family, Noise(family))


def _gradients(family, noise):
    if family == "zeros":
        return {leaf: np.zeros((STEPS, *shape)) for leaf, shape in SHAPES.items()}
    if family == "tiny":
        return {leaf: 2.0**-100 * noise((STEPS, *s)) for leaf, s in SHAPES.items()}
    if family == "heavy":
        return _heavy(noise)
    if family == "sparse":
        return _sparse(noise)
    calm = family != "normal"
    grads = {}
    for leaf, shape in SHAPES.items():
        direction, wobble = noise(shape), noise((STEPS, *shape))
        mixed = direction + wobble / 8 if calm else direction / 4 + wobble
        grads[leaf] = SCALES[leaf] * mixed
    if family == "spikes":
        grads["kernel"][12, 3, 1], grads["scalar"][18, 0] = 1e4, -1e6
    if family == "nonfinite":
        grads["scalar"][0], grads["kernel"][8, 2, 0] = np.nan, np.nan
        grads["bias"][14, 1], grads["bias"][15, 2] = np.inf, -np.inf
        for x in grads.values():
            x[20] = np.nan
    return grads


def _heavy(noise):
    grads = {leaf: 0.5 * noise((STEPS, *s)) for leaf, s in SHAPES.items()}
    for x in grads.values():
        for i in np.ndindex(x.shape):
            while noise.random.random() < 2.0**-1.5:
                x[i] *= 2
    grads["kernel"][4, 1, 2], grads["kernel"][17, 0, 0] = 1e4, -3e4
    grads["bias"][7, 2], grads["zero"][11, 1] = -1e5, 2e5
    grads["scalar"][9, 0], grads["scalar"][21, 0] = -1e6, 4e5
    return grads


def _sparse(noise):
    grads = {}
    for leaf, shape in SHAPES.items():
        x = noise((STEPS, *shape))
        for i in np.ndindex(x.shape):
            x[i] = 0 if noise.random.random() < 0.5 else x[i]
        grads[leaf] = x
    for step in (0, 1, *range(10, 15)):
        grads["bias"][step] = 0
    for x in grads.values():
        x[19] = 0
    return grads


class Noise:
    """Of mean 0 and variance 1, the same bits on every machine.

    Only `random.Random.random` is promised to stay as it is, and only sums and products
    are the same everywhere: hence the sum of 12 uniforms, within [-6, 6]. Rounded, it
    is the same number in float32, and files are smaller.
    """

    def __init__(self, name):
        self.random = random.Random(name)

    def __call__(self, shape):
        values = [self._next() for _ in range(int(np.prod(shape)))]
        return np.array(values).reshape(shape)

    def _next(self):
        total = sum(self.random.random() for _ in range(12)) - 6
        return round(total * 1024) / 1024


def run(step, params0, grads, extra=None, dtype=np.float64):
    """All arrays of one run, in ``dtype``: updates, params, and aux keys."""
    w = {leaf: x.astype(dtype) for leaf, x in params0.items()}
    history = []
    with np.errstate(all="ignore"):
        for t in range(len(next(iter(grads.values())))):
            g = {leaf: x[t].astype(dtype) for leaf, x in grads.items()}
            more = _nested({key: x[t] for key, x in (extra or {}).items()}, dtype)
            u, aux = step(g, w, **more)
            w = {leaf: w[leaf] + u[leaf] for leaf in w}
            for x in (*u.values(), *w.values()):
                assert x.dtype == dtype
            history.append(
                {f"updates/{leaf}": x for leaf, x in u.items()}
                | {f"params/{leaf}": x for leaf, x in w.items()}
                | {f"aux/{key}": x for key, x in aux.items()}
            )
    return {key: np.stack([now[key] for now in history]) for key in history[0]}


def _nested(extra, dtype):
    """Arguments of ``update`` from keys ``extra/name`` and ``extra/name/leaf``."""
    arguments = {}
    for key, x in extra.items():
        x = x.astype(dtype) if x.dtype.kind == "f" else x
        _, name, *leaf = key.split("/")
        if leaf:
            arguments.setdefault(name, {})[leaf[0]] = x
        else:
            arguments[name] = x
    return arguments


def trajectory(case, family, build):
    """The arrays of a file and its description."""
    params0, grads = initial_params(), gradients(family, case.workers)
    extra = case.extra() if case.extra else {}
    stored, extended, single = (
        run(build(case.spec), params0, grads, extra, dtype)
        for dtype in (np.float64, np.longdouble, np.float32)
    )
    rounding = {
        "float64_vs_extended": _errors(stored, extended),
        "float32_vs_float64": _errors(single, stored),
    }
    arrays = (
        {f"params0/{leaf}": x for leaf, x in params0.items()}
        | {f"grads/{leaf}": x for leaf, x in grads.items()}
        | extra
        | {key: x.astype(np.float64) for key, x in stored.items()}
    )
    worst = max(rounding["float64_vs_extended"].values())
    rtol, single_rtol = case.loose
    for group, figure in rounding["float32_vs_float64"].items():
        rounding["float32_vs_float64"][group] = max(figure, single_rtol / 10)
    meta = {
        "name": f"{case.algorithm}__{case.configuration}__{family}",
        "algorithm": case.algorithm,
        "formula": " ".join(case.formula.split()),
        "kind": case.kind,
        **case.spec,
        "gradients": {
            "family": family,
            "description": FAMILIES[family],
            "depend_on_params": False,
        },
        "steps": STEPS,
        "dtype": "float64",
        "leaves": {leaf: list(shape) for leaf, shape in SHAPES.items()},
        "extra_keys": case.extra_keys,
        "state_fields": list(case.state_fields),
        "source": "tests/oracles, from the formula alone",
        "rtol_float64": max(rtol, 1000 * worst),
        "rounding": rounding,
    }
    return arrays, meta


def _errors(got, want):
    """As the files' README says: relative to a leaf's largest entry at a step."""
    worst = {}
    for group in ("updates", "params"):
        errors = [0.0]
        for key in want:
            if key.startswith(group):
                errors += [
                    error(a, b) for a, b in zip(got[key], want[key], strict=True)
                ]
        worst[group] = float(f"{max(errors):.3g}")
    return worst


def error(got, want):
    """How far ``got`` is from ``want``, relative to its largest entry; at most 1."""
    finite = np.isfinite(want)
    if np.any(finite != np.isfinite(got)):
        return 1.0
    got, want = (np.where(finite, x, 0).astype(np.longdouble) for x in (got, want))
    off, largest = np.max(np.abs(got - want)), np.max(np.abs(want))
    return 0.0 if off == 0 else float(min(off / largest, 1)) if largest else 1.0


def write(arrays, meta):
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FOLDER / f"{meta['name']}.npz", **arrays)
    path = FOLDER / f"{meta['name']}.json"
    path.write_text(as_text(meta), encoding="utf-8")


def as_text(meta):
    return json.dumps(meta, indent=1, sort_keys=True, allow_nan=False) + "\n"
