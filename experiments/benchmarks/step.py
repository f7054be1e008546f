"""The time of one optimizer step on trees of the size of known models.

    python -m experiments.benchmarks.step --output=experiments/results/bench_step_cpu

times the jitted update and `apply_updates`, with parameters and state donated, next to
a reference: both in one interleaved run, with one ratio per round. A pair of the same
optimizer twice shows how far from 1 such a ratio is by chance.

Each optimizer has the bytes that it must move for each float32 parameter. A copy
(x + 1, in place) moves 8; that is measured too, on as much memory as AdamW's step
touches.
"""

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import common, trees
from experiments.benchmarks.contestants import (
    ADAMW,
    CONTESTANTS,
    LEARNING_RATE,
    WEIGHT_DECAY,
)
from experiments.common import markdown, memory

COPY_BYTES = 8
WARM_UPS = 3  # in the first two the programs' temporaries still find their places
TORCH_ADAMW_BYTES = 28
HEADINGS = (
    "optimizer",
    "ms",
    "against",
    "ms of that",
    "ratio",
    "bytes per parameter",
    "GB/s",
    "of copy",
)


def step_function(
    tx: optax.GradientTransformation, steps: int = 1
) -> Callable[..., tuple[Any, Any]]:
    """``steps`` updates with the same gradients: parameters, state -> both, new."""

    def one(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def several(params, state, grads):
        # The barrier keeps a norm of the gradients from being taken only once.
        def body(_, carry):
            params, state, grads = carry
            return jax.lax.optimization_barrier((*one(params, state, grads), grads))

        return jax.lax.fori_loop(0, steps, body, (params, state, grads))[:2]

    return one if steps == 1 else several


def compile_step(tx: optax.GradientTransformation, params: Any, steps: int = 1) -> Any:
    """The compiled step, with parameters and state donated; needs but shapes."""
    state = jax.eval_shape(tx.init, params)
    jitted = jax.jit(step_function(tx, steps), donate_argnums=(0, 1))
    return jitted.lower(params, state, params).compile()


class Stepper:
    """An optimizer on parameters of its own; a call makes steps and times them."""

    def __init__(self, tx: Any, program: Any, shapes: trees.Shapes, grads: Any):
        self.params = trees.filled(shapes, 0.02, seed=0)
        self.state = tx.init(self.params)
        self._program, self._grads = program, grads

    def __call__(self) -> float:
        """Seconds of one call of the program."""
        return common.seconds(self._advance)

    def _advance(self) -> Any:
        self.params, self.state = self._program(self.params, self.state, self._grads)
        return self.params, self.state


class TorchStepper:
    """`torch.optim.AdamW` on the same shapes."""

    def __init__(self, shapes: trees.Shapes, steps: int, **kwargs: Any):
        import torch  # pyright: ignore[reportMissingImports]

        on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        self._wait = torch.cuda.synchronize if on_gpu else lambda: None
        params = [torch.full(s, 0.02, device=device) for s in shapes.values()]
        for param in params:
            param.requires_grad_()
            param.grad = torch.full_like(param, 0.01)
        self._steps = steps
        self._optimizer = torch.optim.AdamW(
            params, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, **kwargs
        )

    def __call__(self) -> float:
        """Seconds of as many steps as a call of the others makes."""
        self._wait()
        started = time.perf_counter()
        for _ in range(self._steps):
            self._optimizer.step()
        self._wait()
        return time.perf_counter() - started


TORCH = {
    "torch AdamW, fused": {"fused": True},
    "torch AdamW, foreach": {"foreach": True},
}


def has_torch() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def copy_seconds(shapes: trees.Shapes, repeats: int) -> list[float]:
    """Times of x + 1 in place, on four arrays as large as all parameters."""
    size = trees.num_params(shapes)
    arrays = [jnp.zeros(size) for _ in range(4)]
    copy = jax.jit(lambda xs: [x + 1 for x in xs], donate_argnums=0)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        arrays = jax.block_until_ready(copy(arrays))
        times.append(time.perf_counter() - started)
    return times[1:]


def measure_tree(
    name: str, repeats: int, steps: int, chosen: Sequence[str] = tuple(CONTESTANTS)
) -> tuple[str, list[common.Record]]:
    """The table of one tree, and its timings."""
    shapes = trees.TREES[name]()
    size = trees.num_params(shapes)
    copies = copy_seconds(shapes, repeats)
    copy_rate = 4 * size * COPY_BYTES / float(np.median(copies))
    records: list[common.Record] = [{"kind": "copy", "tree": name, "seconds": copies}]
    rows = []
    grads = trees.filled(shapes, 0.01, seed=1)

    @functools.cache
    def transform(contestant: str):
        tx = CONTESTANTS[contestant].make()
        return tx, compile_step(tx, grads, steps)

    def stepper(contestant: str):
        if contestant in TORCH:
            return TorchStepper(shapes, steps, **TORCH[contestant])
        return Stepper(*transform(contestant), shapes, grads)

    for contestant, reference, bytes_per_param in pairs(chosen):
        timers = {"contestant": stepper(contestant), "reference": stepper(reference)}
        times = common.interleave(timers, repeats, warm_ups=WARM_UPS)
        del timers  # the next pair needs the memory
        memory.return_freed()
        own, other = ([t / steps for t in times[k]] for k in times)
        records.append(
            {
                "kind": "pair",
                "tree": name,
                "contestant": contestant,
                "reference": reference,
                "bytes_per_param": bytes_per_param,
                "seconds": own,
                "reference_seconds": other,
            }
        )
        rows.append(row(records[-1], size, copy_rate))
        print(f"{name}: {contestant} / {reference}: {rows[-1][4]}", flush=True)
    title = (
        f"## {name}\n\n{size:,} parameters in {len(shapes)} leaves; a copy moves "
        f"{copy_rate / 1e9:,.1f} GB/s.\n\n"
    )
    return title + markdown.table(HEADINGS, rows), records


def pairs(chosen: Sequence[str] = tuple(CONTESTANTS)) -> list[tuple[str, str, int]]:
    """Each contestant with each of its references, and the bytes it must move."""
    ours = [
        (name, reference, CONTESTANTS[name].bytes_per_param)
        for name in chosen
        for reference in CONTESTANTS[name].references
    ]
    torch = TORCH if has_torch() else ()
    return ours + [(name, ADAMW, TORCH_ADAMW_BYTES) for name in torch]


def row(record: common.Record, size: int, copy_rate: float) -> list[str]:
    """A row of the table, from one pair's timings of a step."""
    own = common.summarize(record["seconds"])
    other = common.summarize(record["reference_seconds"])
    ratio = common.paired_ratio(record["seconds"], record["reference_seconds"])
    rate = size * record["bytes_per_param"] / own.median
    return [
        record["contestant"],
        f"{own.median * 1e3:.4g}",
        record["reference"],
        f"{other.median * 1e3:.4g}",
        str(ratio),
        str(record["bytes_per_param"]),
        f"{rate / 1e9:,.3g}",
        f"{rate / copy_rate:.0%}",
    ]


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__, repeats=7)
    known = common.one_of(list(trees.TREES))
    parser.add_argument(
        "--trees",
        type=lambda text: common.several(text, known),
        default=["resnet50", "bert_base", "bert_large"],
        help=f"Some of {', '.join(trees.TREES)}; default: all but tiny.",
    )
    parser.add_argument(
        "--steps",
        type=common.positive,
        help="Steps in one call, as a loop: 1 on a CPU, by default, and 20 elsewhere, "
        "where giving the call its arguments takes longer than a step.",
    )
    parser.add_contestants(
        CONTESTANTS, "Some of those in the table, each with its references; all."
    )
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    steps = flags.steps or (1 if jax.default_backend() == "cpu" else 20)
    parts, records = [_explanation(flags.repeats, steps)], []
    for name in flags.trees:
        part, measured = measure_tree(name, flags.repeats, steps, flags.contestants)
        parts.append(part)
        records += measured
    common.write(flags.output, "Optimizer step", parts, records)


def _explanation(repeats: int, steps: int) -> str:
    text = (
        f"Jitted update and `apply_updates`, parameters and state donated, {steps} in "
        f"one call, {repeats} rounds. The time is the median of a step; the ratio is "
        "the median, with quartiles, of the ratios of two times of the same round. "
        "Bytes are those that a float32 parameter's step must move, if nothing stays "
        "in a cache; GB/s follow from these and the time, so a leaf that does stay "
        "there can exceed the copy."
    )
    return text if has_torch() else f"{text} torch is not installed: no rows for it."


if __name__ == "__main__":
    common.run(main)
