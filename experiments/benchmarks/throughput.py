r"""Training steps of whole models, and how much of each the optimizer takes.

    python -m experiments.benchmarks.throughput \
        --output=experiments/results/bench_throughput_gpu --dtype=bfloat16

times the training step of configs on made-up data, with one optimizer after the other,
and the same step without an optimizer, which leaves the gradient alone: all in one
interleaved run. Parameters and state are donated. It needs the extra `experiments`.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import common
from experiments.common import markdown
from experiments.common.types import Config
from experiments.data import text
from experiments.models import bert
from experiments.tasks import Batch, Task, images, mlm, without_data
from experiments.training import aggregate, optimizers, steps

CONFIGS = ("bert_tiny", "bert_base", "resnet_digits", "resnet50_imagenet")
ROWS = {"bert_tiny": 64, "bert_base": 64, "resnet_digits": 64, "resnet50_imagenet": 128}
HEADINGS = ("model", "optimizer", "ms a step", "rows/s", "share of the optimizer")
GRADIENT = "gradient alone"


def build(name: str, rows: int, dtype: str) -> tuple[Config, Task, Batch]:
    """A config, the functions of its task, and a batch of random rows."""
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    config.batch_size, config.model.dtype = rows, dtype
    functions, batch = MAKERS[config.task](config, np.random.default_rng(0))
    return config, without_data(functions), batch


def _mlm(config: Config, rng: np.random.Generator) -> tuple[dict[str, Any], Batch]:
    vocab_size, length = config.data.vocab_size, config.data.sequence_length
    tokens = rng.integers(
        len(text.SPECIAL_TOKENS), vocab_size, (config.batch_size, length), np.int32
    )
    model = bert.BertConfig(vocab_size, length, **config.model)
    return mlm.model_functions(model), text.mask_tokens(tokens, rng, vocab_size)


def _images(config: Config, rng: np.random.Generator) -> tuple[dict[str, Any], Batch]:
    channels = 1 if len(config.data.mean) == 1 else 3
    shape = (config.batch_size, *2 * (config.data.image_size,), channels)
    batch = {
        "images": rng.integers(0, 256, shape, np.uint8),
        "labels": rng.integers(0, 1000, config.batch_size, np.int32),
        "weights": np.ones(config.batch_size, np.float32),
    }
    return images.model_functions(config, 1000, channels, 255), batch


MAKERS = {"mlm": _mlm, "images": _images}


class Trainer:
    """A step on a state of its own; a call makes one and times it."""

    def __init__(self, task: Task, optimizer: Any, batch: Batch):
        step = steps.make_train_step(
            task, optimizer, lambda count: 1.0, jax.random.key(0)
        )
        init = functools.partial(steps.new_state, task, optimizer)
        self.state = jax.jit(init)(jax.random.key(0))
        self._window = steps.new_window()
        self._batch = jax.device_put({k: v[None] for k, v in batch.items()})
        jitted = jax.jit(step, donate_argnums=(0, 1))
        self._rate = jnp.float32(1e-6)
        self._program = jitted.lower(
            self.state, self._window, self._batch, self._rate
        ).compile()

    def __call__(self) -> float:
        """Seconds of one step."""
        return common.seconds(self._advance)

    def _advance(self) -> Any:
        self.state, self._window = self._program(
            self.state, self._window, self._batch, self._rate
        )
        return self.state


class Gradient:
    """The gradient of the same step, added up so that all of it is needed."""

    def __init__(self, task: Task, batch: Batch):
        gradient = steps.make_gradient(task, None, aggregate.MEAN)

        def add(total: Any, params: Any, model_state: Any, batch: Batch):
            summed = gradient(params, model_state, batch, jax.random.key(0))
            return optax.tree.add(total, summed.grads)

        self._params, self._model_state = jax.jit(task.init)(jax.random.key(0))
        self._total = optax.tree.zeros_like(self._params)
        self._batch = jax.device_put({k: v[None] for k, v in batch.items()})
        self._program = jax.jit(add, donate_argnums=0)

    def __call__(self) -> float:
        """Seconds of one gradient."""
        return common.seconds(self._advance)

    def _advance(self) -> Any:
        self._total = self._program(
            self._total, self._params, self._model_state, self._batch
        )
        return self._total


def measure(name: str, rows: int, dtype: str, repeats: int) -> list[common.Record]:
    """A record for the gradient and for each optimizer of the config."""
    config, task, batch = build(name, rows, dtype)
    timers: dict[str, Callable[[], float]] = {GRADIENT: Gradient(task, batch)}
    for optimizer in config.compare.optimizers:
        chosen = optimizers.settings(optimizers.select(config, optimizer))
        timers[optimizer] = Trainer(task, optimizers.build(chosen), batch)
    times = common.interleave(timers, repeats, warm_ups=2)
    return [
        {
            "kind": "throughput",
            "model": name,
            "dtype": dtype,
            "rows": rows,
            "optimizer": optimizer,
            "seconds": seconds,
            "gradient_seconds": times[GRADIENT],
        }
        for optimizer, seconds in times.items()
    ]


def row(record: common.Record) -> list[str]:
    """A row of the table."""
    milliseconds = common.summarize([1e3 * t for t in record["seconds"]])
    ratio = common.paired_ratio(record["gradient_seconds"], record["seconds"])
    share = common.Summary(1 - ratio.high, 1 - ratio.median, 1 - ratio.low)
    is_gradient = record["optimizer"] == GRADIENT
    return [
        f"{record['model']}, {record['dtype']}, {record['rows']} rows",
        record["optimizer"],
        str(milliseconds),
        f"{1e3 * record['rows'] / milliseconds.median:,.0f}",
        "-" if is_gradient else str(share),
    ]


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__, repeats=10)
    parser.add_argument(
        "--configs",
        type=lambda text: common.several(text, common.one_of(CONFIGS)),
        default=["bert_base", "resnet50_imagenet"],
        help=f"Some of {', '.join(CONFIGS)} (bert_base,resnet50_imagenet).",
    )
    parser.add_argument(
        "--rows", type=common.positive, help="Of a batch; the default fits 40 GB."
    )
    parser.add_argument(
        "--dtype",
        type=common.one_of(("float32", "bfloat16")),
        default="bfloat16",
        help="Of the computation; parameters are float32 (%(default)s).",
    )
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    records = []
    for name in flags.configs:
        rows = flags.rows or ROWS[name]
        records += measure(name, rows, flags.dtype, flags.repeats)
    explanation = (
        "Medians with quartiles of an interleaved run. The share of the optimizer is "
        "1 minus the time of the gradient alone over that of the step, of the same "
        "round; the gradient's own program also writes the sum of all gradients so far."
    )
    table = markdown.table(HEADINGS, [row(record) for record in records])
    print(table)
    common.write(flags.output, "Training steps", [explanation, table], records)


if __name__ == "__main__":
    common.run(main)
