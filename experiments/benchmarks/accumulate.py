r"""Memory of a step of 32,768 images, by the number of microbatches.

    python -m experiments.benchmarks.accumulate \
        --output=experiments/results/bench_accumulate_cpu

runs one step of the small residual network of resnet_digits.py, with its statistics of
each microbatch, on scikit-learn's digits repeated to the size of the batch; each number
of microbatches in a process of its own, whose peak memory is read before and after.
It also compares the gradient of a perceptron, which has no such statistics, in
microbatches and at once. Unlike the other benchmarks it needs the extra `experiments`.
"""

import multiprocessing
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import common
from experiments.common import markdown
from experiments.configs import digits_zoo, resnet_digits
from experiments.data import digits
from experiments.tasks import Task, images, without_data
from experiments.training import aggregate, optimizers, steps

HEADINGS = (
    "microbatches",
    "rows of each",
    "temporary",
    "one microbatch alone, and a gradient",
    "resident, measured",
    "gradient of a perceptron against one batch",
)
OPTIMIZER = "lambc"


def stacked(batch_size: int, microbatches: int) -> dict[str, np.ndarray]:
    """Digits, one after the other and again, as (microbatches, rows, ...)."""
    pixels, labels, _ = digits.load()
    index = np.arange(batch_size) % len(labels)
    batch = {
        "images": pixels[index],
        "labels": labels[index],
        "weights": np.ones(batch_size, np.float32),
    }
    return {
        name: array.reshape(microbatches, -1, *array.shape[1:])
        for name, array in batch.items()
    }


def task(config: Any) -> Task:
    """The functions of a task on digits, without its data."""
    functions = images.model_functions(
        config, digits.NUM_CLASSES, channels=1, largest_pixel=digits.LARGEST_PIXEL
    )
    return without_data(functions)


def compile_step(microbatches: int, rows: int) -> tuple[Any, Any]:
    """The compiled training step, and its first state."""
    config = resnet_digits.get_config()
    optimizer = optimizers.build(config.optimizers[OPTIMIZER])
    of_digits = task(config)
    step = steps.make_train_step(
        of_digits, optimizer, lambda count: 1.0, jax.random.key(0)
    )
    state = steps.new_state(of_digits, optimizer, jax.random.key(0))
    batch = jax.eval_shape(lambda: stacked(microbatches * rows, microbatches))
    jitted = jax.jit(step, donate_argnums=(0, 1))
    lowered = jitted.lower(state, steps.new_window(), batch, jnp.float32(0))
    return lowered.compile(), state


def measure(batch_size: int, microbatches: int) -> common.Record:
    """One step, and what it needs beyond its inputs."""
    rows = batch_size // microbatches
    alone, state = compile_step(1, rows)
    gradient = sum(4 * x.size for x in jax.tree.leaves(state.params))
    program, state = compile_step(microbatches, rows)
    batch = jax.device_put(stacked(batch_size, microbatches))
    window, rate = steps.new_window(), jnp.float32(1e-3)
    before = peak_bytes()
    state, window = jax.block_until_ready(program(state, window, batch, rate))
    return {
        "kind": "accumulate",
        "batch": batch_size,
        "microbatches": microbatches,
        "rows": rows,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "batch_bytes": sum(x.nbytes for x in batch.values()),
        "temporary": program.memory_analysis().temp_size_in_bytes,
        "alone_and_gradient": alone.memory_analysis().temp_size_in_bytes + gradient,
        "measured": peak_bytes() - before,
        "loss": float(window.loss_sum),
        "difference": difference(batch_size, microbatches),
    }


def peak_bytes() -> int:
    """The most memory so far: of the device where it counts, else of this process."""
    counted = jax.devices()[0].memory_stats()
    if counted is not None:
        return counted["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def difference(batch_size: int, microbatches: int) -> float:
    """How far a perceptron's gradient in microbatches is from that of one batch.

    The largest difference to the largest entry, of the worst leaf.
    """
    of_digits = task(digits_zoo.get_config())
    params, model_state = of_digits.init(jax.random.key(0))
    gradient = jax.jit(steps.make_gradient(of_digits, None, aggregate.MEAN))

    def leaves(number: int) -> list[jax.Array]:
        batch = stacked(batch_size, number)
        summed = gradient(params, model_state, batch, jax.random.key(0))
        return jax.tree.leaves(summed.grads)

    return max(
        float(jnp.max(jnp.abs(one - many)) / jnp.max(jnp.abs(one)))
        for one, many in zip(leaves(1), leaves(microbatches), strict=True)
    )


def in_own_process(batch_size: int, microbatches: int) -> common.Record:
    """`measure` in a new process, whose peak is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measure, batch_size, microbatches).result()


def row(record: common.Record) -> list[str]:
    """A row of the table, in MB."""
    sizes = (record[k] for k in ("temporary", "alone_and_gradient", "measured"))
    return [
        f"{record['microbatches']:,}",
        f"{record['rows']:,}",
        *(f"{size / 1e6:,.1f}" for size in sizes),
        f"{record['difference']:.1e}",
    ]


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__)
    parser.add_argument(
        "--batch", type=common.positive, default=32_768, help="Rows (%(default)s)."
    )
    parser.add_argument(
        "--microbatches",
        type=lambda text: common.several(text, common.positive),
        default=[1, 16, 64, 256],
        help="Numbers of microbatches, between commas (1,16,64,256).",
    )
    flags = parser.parse_args(argv)
    for number in flags.microbatches:
        if flags.batch % number:
            parser.error(f"--microbatches={number}: must divide --batch={flags.batch}")
    common.check_writable(flags.output)
    records = []
    for number in flags.microbatches:
        records.append(in_own_process(flags.batch, number))
        print("  ".join(row(records[-1])), flush=True)
    common.write(
        flags.output,
        "Memory of a large batch",
        [explanation(records[0]), markdown.table(HEADINGS, list(map(row, records)))],
        records,
    )


def explanation(record: common.Record) -> str:
    """What the table shows."""
    return (
        f"MB of one step of {record['batch']:,} images with "
        f"`experiments/configs/resnet_digits.py` ({record['parameters']:,} parameters, "
        f"{OPTIMIZER}), beyond parameters, state and the batch itself "
        f"({record['batch_bytes'] / 1e6:.1f} MB). Temporary is the compiler's account; "
        "beside it the same of a step of one such microbatch, plus a float32 gradient. "
        "Measured is by how much the step raised the peak memory of a process of its "
        "own. The last column compares gradients in microbatches and at once: the "
        "largest difference to the largest entry, of the worst leaf."
    )


if __name__ == "__main__":
    common.run(main)
