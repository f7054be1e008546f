"""Bytes per parameter that a step needs, by the dtype of the state.

    python -m experiments.benchmarks.memory \
        --output=experiments/results/bench_memory_cpu

takes them from what the compiler says of the jitted step with parameters and state
donated, and with them the bytes that its kernels read and write: those, not the ones
that the method must move, decide its time. Where the device counts its memory, each
step is run as well, in a process of its own, since that count's peak never falls.
"""

import os

# Before jax is imported: a process that took all memory would leave its child none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
import optax

import optax_heavytail as oht
from experiments.benchmarks import common, step, trees
from experiments.common import markdown

LEARNING_RATE = 1e-3
DTYPES = ("float32", "bfloat16")
HEADINGS = (
    "optimizer",
    "state dtypes",
    "state",
    "temporary",
    "peak",
    "moved",
    "peak on the device",
)
Factory = Callable[..., optax.GradientTransformation]


class Contestant(NamedTuple):
    """An optimizer, and which arguments set the dtypes of its state."""

    make: Factory
    dtype_names: tuple[str, ...] = ()


CONTESTANTS: dict[str, Contestant] = {
    "optax.sgd": Contestant(
        lambda **kwargs: optax.sgd(LEARNING_RATE, momentum=0.9, **kwargs),
        ("accumulator_dtype",),
    ),
    "optax.adamw": Contestant(
        lambda **kwargs: optax.adamw(LEARNING_RATE, **kwargs), ("mu_dtype",)
    ),
    "optax.lamb": Contestant(lambda: optax.lamb(LEARNING_RATE)),
    "optax.lars": Contestant(lambda: optax.lars(LEARNING_RATE)),
    "oht.acclip": Contestant(
        lambda **kwargs: oht.acclip(LEARNING_RATE, **kwargs),
        ("mu_dtype", "threshold_dtype"),
    ),
    "oht.acclip, normalize": Contestant(
        lambda **kwargs: oht.acclip(LEARNING_RATE, normalize=True, **kwargs),
        ("mu_dtype", "threshold_dtype"),
    ),
    "oht.gclip": Contestant(
        lambda **kwargs: oht.gclip(LEARNING_RATE, 1.0, **kwargs), ("mu_dtype",)
    ),
    "oht.cclip": Contestant(
        lambda **kwargs: oht.cclip(LEARNING_RATE, 1e-2, **kwargs), ("mu_dtype",)
    ),
    "oht.lambc": Contestant(
        lambda **kwargs: oht.lambc(LEARNING_RATE, **kwargs), ("mu_dtype", "nu_dtype")
    ),
    "oht.larsc": Contestant(lambda: oht.larsc(LEARNING_RATE)),
    "oht.neumann": Contestant(lambda: oht.neumann(LEARNING_RATE)),
    "oht.compress_state(optax.adamw)": Contestant(
        lambda: oht.compress_state(optax.adamw(LEARNING_RATE))
    ),
    "oht.compress_state(oht.acclip)": Contestant(
        lambda: oht.compress_state(oht.acclip(LEARNING_RATE))
    ),
}


def cases() -> list[tuple[str, dict[str, str]]]:
    """Each contestant with the dtypes of its state: all float32, or all bfloat16."""
    return [
        (name, dict.fromkeys(contestant.dtype_names, dtype))
        for name, contestant in CONTESTANTS.items()
        for dtype in (DTYPES if contestant.dtype_names else DTYPES[:1])
    ]


def measure(name: str, dtypes: dict[str, str], tree: str) -> common.Record:
    """Bytes of the step of one case, those of the device only where it counts them."""
    shapes = trees.TREES[tree]()
    tx = CONTESTANTS[name].make(**dtypes)
    params = {k: jax.ShapeDtypeStruct(s, "float32") for k, s in shapes.items()}
    state = jax.eval_shape(tx.init, params)
    program = step.compile_step(tx, params)
    analysis = program.memory_analysis()
    bytes_by_part = {
        "argument": analysis.argument_size_in_bytes,
        "output": analysis.output_size_in_bytes,
        "alias": analysis.alias_size_in_bytes,
        "temp": analysis.temp_size_in_bytes,
    }
    return {
        "kind": "memory",
        "tree": tree,
        "contestant": name,
        "dtypes": dtypes,
        "parameters": trees.num_params(shapes),
        "state": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        **bytes_by_part,
        # Outputs in the memory of a donated argument are no further bytes.
        "peak": sum(bytes_by_part.values()) - 2 * bytes_by_part["alias"],
        "moved": int(program.cost_analysis()["bytes accessed"]),
        "device_peak": _device_peak(tx, program, shapes),
    }


def counts_memory() -> bool:
    """Whether the device counts its memory."""
    return jax.devices()[0].memory_stats() is not None


def _device_peak(tx: Any, program: Any, shapes: trees.Shapes) -> int | None:
    if not counts_memory():
        return None
    grads = trees.filled(shapes, 0.01, seed=1)
    step.Stepper(tx, program, shapes, grads)()
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def in_own_process(name: str, dtypes: dict[str, str], tree: str) -> common.Record:
    """`measure` in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measure, name, dtypes, tree).result()


def row(record: common.Record) -> list[str]:
    """A row of the table: bytes per parameter."""
    dtypes = ", ".join(f"{k}={v}" for k, v in record["dtypes"].items())

    def per_param(key: str) -> str:
        size = record[key]
        return "-" if size is None else f"{size / record['parameters']:.2f}"

    columns = ("state", "temp", "peak", "moved", "device_peak")
    return [record["contestant"], dtypes or "float32", *map(per_param, columns)]


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__)
    parser.add_tree("bert_base")
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    take = in_own_process if counts_memory() else measure
    records = []
    for name, dtypes in cases():
        records.append(take(name, dtypes, flags.tree))
        contestant, chosen, state, temp, peak, *_ = row(records[-1])
        print(
            f"{contestant} ({chosen}): state {state}, temporary {temp}, peak {peak}",
            flush=True,
        )
    size = f"{records[0]['parameters']:,}"
    explanation = (
        f"Bytes per parameter on {flags.tree} ({size} float32 parameters), by the "
        "compiler's account of the jitted step with parameters and state donated. The "
        "peak is arguments (parameters 4, gradients 4, state), temporaries and outputs "
        "that reuse no argument's memory. Moved is what the kernels read and write, "
        "one after the other: what two of them read counts twice, and of the branches "
        "of a condition the larger one counts. The last column is the device's own "
        "count of a step that was run, a dash where it has none."
    )
    table = markdown.table(HEADINGS, [row(record) for record in records])
    common.write(flags.output, "Memory of a step", [explanation, table], records)


if __name__ == "__main__":
    common.run(main)
