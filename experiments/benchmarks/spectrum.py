r"""Spectra of whole models: the time and the memory of a Lanczos search.

    python -m experiments.benchmarks.spectrum \
        --output=experiments/results/bench_spectrum_gpu

times, on configs with made-up data, a gradient, a Hessian-vector product and a search,
all in one interleaved run. The memory is what XLA plans for the search. It needs the
extra `experiments`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import common, throughput
from experiments.common import markdown
from experiments.tasks import Batch, Task
from optax_heavytail import diagnostics

HEADINGS = (
    "model",
    "parameters",
    "steps",
    "gradient, s",
    "product, in gradients",
    "search, s",
    "search, in products of its steps",
    "memory, GB",
    "of these the vectors, GB",
)


class Programs:
    """A gradient, a product and a search on one model, compiled."""

    def __init__(self, task: Task, batch: Batch, steps: int):
        params, model_state = jax.jit(task.init)(jax.random.key(0))
        self._inputs = (params, model_state, jax.device_put(batch))
        key = jax.random.key(1)

        def loss(params: Any, model_state: Any, batch: Batch) -> jax.Array:
            total, _ = task.loss_sum(params, model_state, batch, key)
            return total / task.weight(batch)

        def product(params: Any, vector: Any, *rest: Any) -> Any:
            return diagnostics.hvp(lambda params: loss(params, *rest), params, vector)

        def search(params: Any, *rest: Any) -> diagnostics.ExtremeEigenvalues:
            return diagnostics.extreme_eigenvalues(
                lambda vector: product(params, vector, *rest), params, key, steps
            )

        def compiled(function: Any) -> Any:
            return jax.jit(function).lower(*self._inputs).compile()

        self._gradient = compiled(jax.grad(loss))
        self._product = compiled(lambda params, *rest: product(params, params, *rest))
        self._search = compiled(search)
        self.timers = {
            "gradient": lambda: common.seconds(lambda: self._gradient(*self._inputs)),
            "product": lambda: common.seconds(lambda: self._product(*self._inputs)),
            "search": lambda: common.seconds(lambda: self._search(*self._inputs)),
        }

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(x.size for x in jax.tree.leaves(self._inputs[0]))

    @property
    def num_bytes(self) -> int:
        """The memory of the search, beside its inputs."""
        return self._search.memory_analysis().temp_size_in_bytes

    def found(self) -> dict[str, float]:
        """What the search finds."""
        ends = self._search(*self._inputs)._asdict()
        return {name: float(jnp.asarray(value)) for name, value in ends.items()}


def measure(
    name: str, rows: int, dtype: str, steps: int, repeats: int
) -> common.Record:
    """The record of one model."""
    _, task, batch = throughput.build(name, rows, dtype)
    programs = Programs(task, batch, steps)
    return {
        "kind": "spectrum",
        "model": name,
        "dtype": dtype,
        "rows": rows,
        "parameters": programs.parameters,
        "steps": steps,
        "bytes": programs.num_bytes,
        **programs.found(),
        "seconds": common.interleave(programs.timers, repeats, warm_ups=0),
    }


def row(record: common.Record) -> list[str]:
    """A row of the table."""
    seconds, steps = record["seconds"], record["steps"]
    products = [steps * t for t in seconds["product"]]
    return [
        f"{record['model']}, {record['dtype']}, {record['rows']} rows",
        f"{record['parameters']:,}",
        str(steps),
        str(common.summarize(seconds["gradient"])),
        str(common.paired_ratio(seconds["product"], seconds["gradient"])),
        str(common.summarize(seconds["search"])),
        str(common.paired_ratio(seconds["search"], products)),
        f"{record['bytes'] / 1e9:.3g}",
        f"{4 * steps * record['parameters'] / 1e9:.3g}",
    ]


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__, repeats=5)
    parser.add_argument(
        "--configs",
        type=lambda text: common.several(text, common.one_of(throughput.CONFIGS)),
        default=["bert_tiny", "bert_base"],
        help=f"Some of {', '.join(throughput.CONFIGS)} (bert_tiny,bert_base).",
    )
    parser.add_argument(
        "--rows", type=common.positive, default=8, help="Of a batch (%(default)s)."
    )
    parser.add_argument(
        "--steps", type=common.positive, default=50, help="Of a search (%(default)s)."
    )
    parser.add_argument(
        "--dtype",
        type=common.one_of(("float32", "bfloat16")),
        default="float32",
        help="Of the computation; parameters are float32 (%(default)s).",
    )
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    records = [
        measure(name, flags.rows, flags.dtype, flags.steps, flags.repeats)
        for name in flags.configs
    ]
    explanation = (
        "Medians with quartiles of an interleaved run, ratios of the same round. A "
        "search is as many products as it has steps, and the reorthogonalisation."
    )
    table = markdown.table(HEADINGS, [row(record) for record in records])
    common.write(flags.output, "Spectra", [explanation, table], records)


if __name__ == "__main__":
    common.run(main)
