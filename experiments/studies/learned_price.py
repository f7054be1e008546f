"""What a step of a learned optimizer costs, beside AdamW's in the same rounds."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies import study
from optax_heavytail import learned

ROUNDS, WARM_UPS = 21, 3
SIZES = {"mlp": ((1024, 1024),) * 8, "lstm": ((128, 128),) * 4}


def _transform(model: str) -> Any:
    key = jax.random.key(0)
    if model == "mlp":
        return learned.scale_by_mlp(learned.init_mlp(key))
    return learned.scale_by_lstm(learned.init_lstm(key))


def _stepper(tx: Any, shapes: Any) -> Callable[[], float]:
    """Makes a step of its own parameters, and says how long it took."""
    params = [jnp.full(shape, 0.02) for shape in shapes]
    grads = [jnp.full(shape, 0.01) for shape in shapes]
    held = [params, tx.init(params)]

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def timed() -> float:
        started = time.perf_counter()
        held[:] = jax.block_until_ready(step(*held))
        return time.perf_counter() - started

    return timed


def measure(model: str) -> dict[str, Any]:
    """Seconds of both in turn; every other round goes backwards."""
    shapes = SIZES[model]
    ours = optax.chain(_transform(model), optax.scale(-1e-3))
    timers = {
        "seconds": _stepper(ours, shapes),
        "adamw_seconds": _stepper(optax.adamw(1e-3), shapes),
    }
    for timer in list(timers.values()) * WARM_UPS:
        timer()
    times: dict[str, list[float]] = {name: [] for name in timers}
    for place in range(ROUNDS):
        for name in list(timers) if place % 2 else list(timers)[::-1]:
            times[name].append(timers[name]())
    state = jax.eval_shape(
        _transform(model).init, [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    )
    number = sum(int(np.prod(shape)) for shape in shapes)
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)
    return {
        "parameters": number,
        "bytes_per_parameter": held // number,
        **{name: study.rounded(found) for name, found in times.items()},
    }
