"""What the monitor costs in a training step.

    python -m experiments.benchmarks.monitor \
        --output=experiments/results/bench_monitor_cpu

times training steps of bert_tiny.py on made-up data, with one optimizer alone and with
`optax_heavytail.diagnostics.monitor` around it, measuring at each step or at every
tenth, and how long `read_monitor` takes: all in one interleaved run, ten steps and one
ratio per round. The optimizer alone is there twice: the second ratio shows how far from
1 one is by chance. Parameters and state are donated. It needs the extra `experiments`.
"""

from collections.abc import Callable, Sequence

import jax

from experiments.benchmarks import common, throughput
from experiments.common import markdown
from experiments.training import optimizers
from optax_heavytail import diagnostics

CONFIG = "bert_tiny"
OPTIMIZERS = ("adamw", "acclip")
ALONE, AGAIN, READ = "alone", "alone, again", "read_monitor"
EVERY = (1, 10)  # steps
STEPS_PER_TIME = 10  # so that each time has as many that measure
MONITORED = {every: f"monitored, every={every}" for every in EVERY}
HEADINGS = ("optimizer", "what", "ms", "ratio to it alone")


def measure(optimizer: str, rows: int, repeats: int) -> common.Record:
    """Timings of an optimizer alone and monitored."""
    config, task, batch = throughput.build(CONFIG, rows, "float32")
    chosen = optimizers.settings(optimizers.select(config, optimizer))
    alone, again, *monitored = (
        throughput.Trainer(task, optimizers.build(chosen, every), batch)
        for every in (None, None, *EVERY)
    )

    def read() -> float:
        state = monitored[0].state.opt_state
        return common.seconds(lambda: diagnostics.read_monitor(state))

    trainers = dict(
        zip(
            (ALONE, AGAIN, *MONITORED.values()), (alone, again, *monitored), strict=True
        )
    )
    timers = {name: _of_steps(trainer) for name, trainer in trainers.items()}
    timers[READ] = read
    return {
        "kind": "monitor",
        "model": CONFIG,
        "rows": rows,
        "optimizer": optimizer,
        "leaves": len(jax.tree.leaves(alone.state.params)),
        "parameters": _size(alone),
        "monitor_bytes": _bytes(monitored[0]) - _bytes(alone),
        "seconds": common.interleave(timers, repeats, warm_ups=3),
    }


def _of_steps(trainer: throughput.Trainer) -> Callable[[], float]:
    return lambda: sum(trainer() for _ in range(STEPS_PER_TIME)) / STEPS_PER_TIME


def _size(trainer: throughput.Trainer) -> int:
    return sum(x.size for x in jax.tree.leaves(trainer.state.params))


def _bytes(trainer: throughput.Trainer) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(trainer.state.opt_state))


def rows_of(record: common.Record) -> list[list[str]]:
    """The rows of one optimizer."""
    rows = []
    for name, seconds in record["seconds"].items():
        milliseconds = common.summarize([1e3 * t for t in seconds])
        ratio = common.paired_ratio(seconds, record["seconds"][ALONE])
        is_step = name in (AGAIN, *MONITORED.values())
        rows.append(
            [
                record["optimizer"],
                name,
                str(milliseconds),
                str(ratio) if is_step else "-",
            ]
        )
    return rows


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__, repeats=20)
    parser.add_argument(
        "--rows", type=common.positive, default=64, help="Of a batch (%(default)s)."
    )
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    records = [measure(name, flags.rows, flags.repeats) for name in OPTIMIZERS]
    first = records[0]
    explanation = (
        f"Training steps of `experiments/configs/{CONFIG}.py` with {flags.rows} rows: "
        f"{first['parameters']:,} parameters in {first['leaves']} leaves, all of which "
        f"are monitored; the monitor's state has {first['monitor_bytes']:,} bytes. "
        f"Medians with quartiles of {flags.repeats} rounds of an interleaved run, each "
        f"of {STEPS_PER_TIME} steps."
    )
    rows = [row for record in records for row in rows_of(record)]
    table = markdown.table(HEADINGS, rows)
    common.write(
        flags.output, "The monitor in a training step", [explanation, table], records
    )


if __name__ == "__main__":
    common.run(main)
