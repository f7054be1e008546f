"""What many small leaves cost: tracing, lowering, compiling, and the step itself.

    python -m experiments.benchmarks.leaves \
        --output=experiments/results/bench_leaves_cpu

Leaves are 16 x 16. Each round makes every optimizer and its step anew, with JAX's
caches cleared, so that it pays for all that a first call pays for. The persistent
compilation cache is off.
"""

import functools
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import jax
import optax

import optax_heavytail as oht
from experiments.benchmarks import common, step, trees
from experiments.common import markdown

LEARNING_RATE = 1e-3
MAX_NORM = 1.0
ADAMW, REFERENCE = "optax.adamw", "optax: clip + lamb"
CLIP, LEAF_CLIP = "optax: clip + adamw", "optax: adaptive_grad_clip + adamw"
CALLS_PER_TIME = 5
STAGES = ("trace", "lower", "compile")
_AS_LAMB: dict[str, Any] = {
    "max_grad_norm": MAX_NORM,
    "bias_correction": True,
    "trust_ratio_bounds": None,
}


def _before_adamw(clip: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: optax.chain(clip(), optax.adamw(LEARNING_RATE))


# To add one, add a line, and one below unless its ratios are to REFERENCE.
CONTESTANTS: dict[str, Callable[[], optax.GradientTransformation]] = {
    ADAMW: lambda: optax.adamw(LEARNING_RATE),
    REFERENCE: lambda: optax.chain(
        optax.clip_by_global_norm(MAX_NORM), optax.lamb(LEARNING_RATE)
    ),
    "oht.lambc": lambda: oht.lambc(LEARNING_RATE, **_AS_LAMB),
    "oht.stack_leaves(oht.lambc)": lambda: oht.stack_leaves(
        functools.partial(oht.lambc, LEARNING_RATE, **_AS_LAMB)
    ),
    CLIP: _before_adamw(lambda: optax.clip_by_global_norm(MAX_NORM)),
    "oht.clip_by_norm + adamw": _before_adamw(lambda: oht.clip_by_norm(MAX_NORM)),
    "oht.clip_by_history + adamw": _before_adamw(oht.clip_by_history),
    LEAF_CLIP: _before_adamw(lambda: optax.adaptive_grad_clip(MAX_NORM)),
    "oht.clip_by_history (leaf) + adamw": _before_adamw(
        lambda: oht.clip_by_history(scope="leaf")
    ),
    "oht.clip_by_moment (leaf) + adamw": _before_adamw(
        lambda: oht.clip_by_moment(scope="leaf")
    ),
    "oht.acclip": lambda: oht.acclip(LEARNING_RATE),
}
REFERENCES = {
    CLIP: CLIP,
    "oht.clip_by_norm + adamw": CLIP,
    "oht.clip_by_history + adamw": CLIP,
    LEAF_CLIP: LEAF_CLIP,
    "oht.clip_by_history (leaf) + adamw": LEAF_CLIP,
    "oht.clip_by_moment (leaf) + adamw": LEAF_CLIP,
    "oht.acclip": ADAMW,
}
HEADINGS = (
    "leaves",
    "optimizer",
    *(f"{stage} s" for stage in STAGES),
    "all three s",
    "against",
    "ratio",
    "step ms",
    "ratio of steps",
)


def build(name: str, shapes: trees.Shapes) -> tuple[Any, dict[str, float]]:
    """Compiles a step from nothing; returns it with the seconds of each stage."""
    jax.clear_caches()
    tx = CONTESTANTS[name]()
    params = {k: jax.ShapeDtypeStruct(s, "float32") for k, s in shapes.items()}
    state = jax.eval_shape(tx.init, params)
    jitted = jax.jit(step.step_function(tx), donate_argnums=(0, 1))
    started = perf_counter()
    traced = jitted.trace(params, state, params)
    traced_at = perf_counter()
    lowered = traced.lower()
    lowered_at = perf_counter()
    compiled = lowered.compile()
    times = (traced_at - started, lowered_at - traced_at, perf_counter() - lowered_at)
    return (tx, compiled), dict(zip(STAGES, times, strict=True))


def measure_count(
    count: int, builds: int, repeats: int, names: Sequence[str] = tuple(CONTESTANTS)
) -> tuple[list[list[str]], list[common.Record]]:
    """The rows for one number of leaves, and all timings."""
    shapes = trees.equal_leaves(count)
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    programs = {}

    def builder(name: str) -> Callable[[], float]:
        def timed() -> float:
            programs[name], times = build(name, shapes)
            stages[name].append(times)
            total = sum(times.values())
            print(f"{count} leaves: {name}: compiled in {total:.2f} s", flush=True)
            return total

        return timed

    # A round to warm up would leave nothing: each clears the caches.
    builders = {name: builder(name) for name in names}
    totals = common.interleave(builders, builds, warm_ups=0)
    grads = trees.filled(shapes, 0.01, seed=1)

    def stepper(name: str) -> Callable[[], float]:
        tx, program = programs[name]
        one = step.Stepper(tx, program, shapes, grads)
        return lambda: sum(one() for _ in range(CALLS_PER_TIME)) / CALLS_PER_TIME

    steps = common.interleave({name: stepper(name) for name in names}, repeats)
    records = [
        {
            "kind": "leaves",
            "leaves": count,
            "contestant": name,
            "stages": stages[name],
            "total_seconds": totals[name],
            "step_seconds": steps[name],
        }
        for name in names
    ]
    return rows(records), records


def rows(records: Sequence[common.Record]) -> list[list[str]]:
    """The rows of one number of leaves."""
    by_name = {record["contestant"]: record for record in records}
    cells = []
    for name, record in by_name.items():
        against = REFERENCES.get(name, REFERENCE)
        reference = by_name[against]
        medians = [
            common.summarize([times[stage] for times in record["stages"]]).median
            for stage in STAGES
        ]
        cells.append(
            [
                str(record["leaves"]),
                name,
                *(f"{median:.3g}" for median in medians),
                f"{common.summarize(record['total_seconds']).median:.3g}",
                against,
                str(
                    common.paired_ratio(
                        record["total_seconds"], reference["total_seconds"]
                    )
                ),
                f"{common.summarize(record['step_seconds']).median * 1e3:.3g}",
                str(
                    common.paired_ratio(
                        record["step_seconds"], reference["step_seconds"]
                    )
                ),
            ]
        )
    return cells


def with_references(chosen: Sequence[str]) -> list[str]:
    """The contestants with what they are compared with, and so on, in their order."""
    wanted = set(chosen)
    while more := {REFERENCES.get(name, REFERENCE) for name in wanted} - wanted:
        wanted |= more
    return [name for name in CONTESTANTS if name in wanted]


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__, repeats=15)
    parser.add_argument(
        "--counts",
        type=lambda text: common.several(text, common.positive),
        default=[100, 300, 1000],
        help="Numbers of leaves (100,300,1000); 3000 takes ten minutes a round.",
    )
    parser.add_argument(
        "--builds",
        type=common.positive,
        default=2,
        help="Rounds of compilation (%(default)s); --repeats are those of the step.",
    )
    parser.add_contestants(
        CONTESTANTS,
        "Some of those in the table, and what they are compared with; all.",
    )
    flags = parser.parse_args(argv)
    names = with_references(flags.contestants)
    common.check_writable(flags.output)
    jax.config.update("jax_enable_compilation_cache", False)
    for name in names:  # the first compilation of a process starts the compiler
        build(name, trees.equal_leaves(2))
    rows, records = [], []
    for count in flags.counts:
        new_rows, new_records = measure_count(count, flags.builds, flags.repeats, names)
        rows += new_rows
        records += new_records
    explanation = (
        f"Leaves of 16 x 16; medians of {flags.builds} compilations, each from "
        f"cleared caches, and of {flags.repeats} rounds of "
        f"{CALLS_PER_TIME} steps. Ratios are to the optimizer named before them, one "
        "per round: the median with quartiles."
    )
    table = markdown.table(HEADINGS, rows)
    common.write(flags.output, "Many small leaves", [explanation, table], records)


if __name__ == "__main__":
    common.run(main)
