"""Does a state of one byte, or of two, for each number change how far a training comes?

On the digits: the same seeds, rates and batches with the state in float32, in bfloat16
and behind `compress_state`, on test images. On texts the small BERT of `states_bert`.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from experiments.common import markdown
from experiments.studies import (
    comparison,
    guards,
    intervals,
    states_bert,
    study,
    training,
)
from experiments.studies.study import Cell, Record, Study
from experiments.studies.training import Contestant, Point

RATES = (0.004, 0.008, 0.016)  # around the best of AdamW and ACClip, see guards.md
SEEDS = tuple(range(400, 450))
PLAIN, HALF, BYTE = "float32", "bfloat16", "one byte"


def _adamw(rate: Any, dtype: Any = None) -> optax.GradientTransformation:
    return optax.chain(
        oht.scale_by_adam(mu_dtype=dtype, nu_dtype=dtype),
        oht.add_decayed_weights(1e-4),
        oht.scale_by_learning_rate(rate),
    )


def _acclip(rate: Any, dtype: Any = None) -> optax.GradientTransformation:
    return oht.acclip(
        rate, normalize=True, eps=1e-8, mu_dtype=dtype, threshold_dtype=dtype
    )


METHODS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "AdamW": _adamw,
    "ACClip, normalize=True": _acclip,
}
STATES: dict[str, Callable[..., Callable[..., Any]]] = {
    PLAIN: lambda make: make,
    HALF: lambda make: functools.partial(make, dtype=jnp.bfloat16),
    BYTE: lambda make: lambda rate: oht.compress_state(make(rate)),
}


def measure(method: str, state: str) -> dict[str, Any]:
    """The test loss of every rate and seed, and the bytes of the state."""
    make = STATES[state](METHODS[method])
    problem = guards.problem(guards.Condition(), "test")
    run = training.runner(Contestant(make, 0.0), problem)
    curves = run([Point(rate, None) for rate in RATES], SEEDS)
    return {
        "losses": [study.rounded(losses) for losses in curves.losses[..., -1]],
        "bytes": _bytes_of_weights(make(RATES[0])),
    }


def _bytes_of_weights(tx: Any) -> float:
    """For each entry of the network's largest kernel."""
    kernel = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    state = jax.eval_shape(tx.init, {"kernel": kernel})
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return round(size / kernel.size, 3)


def cells(scale: str, data: Path) -> list[Cell]:
    """Both methods with all states, on both networks; the same at each scale."""
    del scale, data
    on_digits = [
        Cell(
            {"method": method, "state": state, "seeds": len(SEEDS)},
            functools.partial(measure, method, state),
        )
        for method in METHODS
        for state in STATES
    ]
    return on_digits + states_bert.cells()


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    of_bert = [r for r in records if "network" in r["settings"]]
    results = {
        (r["settings"]["method"], r["settings"]["state"]): r["result"]
        for r in records
        if r not in of_bert
    }
    rows: list[list[Any]] = []
    for method in METHODS:
        base = np.array(results[method, PLAIN]["losses"])
        for state in STATES:
            result = results[method, state]
            losses = np.array(result["losses"])
            differences = [
                "" if state == PLAIN else comparison.difference(mine, other, "+.4f")
                for mine, other in zip(losses, base, strict=True)
            ]
            means = ", ".join(f"{mean:.4f}" for mean in losses.mean(axis=1))
            rows.append([method, state, f"{result['bytes']:.2f}", means, *differences])
    header = ["optimizer", "state", "bytes", "loss at the three rates"]
    header += [f"- float32's, rate {rate:.3g}" for rate in RATES]
    spreads = [
        [method, *(f"{x:.4f}" for x in _spread(results[method, PLAIN]["losses"]))]
        for method in METHODS
    ]
    rates = [f"rate {rate:.3g}" for rate in RATES]
    return {
        "losses": intervals.table(header, rows),
        "spreads": markdown.table(["optimizer", *rates], spreads),
        "bert": states_bert.table(of_bert),
    }


def _spread(losses: list[list[float]]) -> np.ndarray:
    return np.std(np.array(losses), axis=1, ddof=1)


STUDY = Study(cells, tables, lambda records: {})
