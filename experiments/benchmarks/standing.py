"""Whether steps and compilations cost what they cost when the committed table was made.

    python -m experiments.benchmarks.standing --output=standing

measures a few optimizers against what one would take instead, and sets the ratios and
the bytes that a step's kernels move beside those of
`experiments/results/bench_standing_cpu.jsonl`. What moved by more than a tenth, and out
of the quartiles, is marked: where the bytes have moved too, they are the reason. It
judges nothing: a machine that is busy, or another one, moves ratios as well.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments.benchmarks import common, leaves, step, trees
from experiments.benchmarks.contestants import CONTESTANTS
from experiments.common import fields, inputs, json_files, markdown
from experiments.common.errors import UserError
from experiments.common.json_files import Record

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "results" / "bench_standing_cpu.jsonl"
STEPS = (
    "oht.acclip",
    "oht.gclip",
    "oht.lambc",
    "oht.neumann",
    "oht.clip_by_history + adamw",
    "oht.compress_state(optax.adamw)",
)
COMPILATIONS = (
    "oht.lambc",
    "oht.clip_by_norm + adamw",
    "oht.clip_by_history + adamw",
    "oht.acclip",
)
MOVED = 0.1  # of a ratio
HEADINGS = ("what", "ratio", "was", "moved bytes", "were", "")
POSITIVE = fields.several(fields.number(0, above=True), least=3)
FIELDS = {
    "what": fields.text(),
    "ratio": fields.Field(
        "a low, a middle and a high number above 0",
        lambda value: POSITIVE.accepts(value) and len(value) == 3,
    ),
    "bytes": fields.number(0),
}


def steps(tree: str, repeats: int) -> list[Record]:
    """The ratio of each step to that of its first reference, and what it moves."""
    _, records = step.measure_tree(tree, repeats, 1, STEPS)
    pairs = {(r["contestant"], r["reference"]): r for r in records[1:]}
    shapes = trees.TREES[tree]()
    found = []
    for name in STEPS:
        reference = CONTESTANTS[name].references[0]
        pair = pairs[name, reference]
        ratio = common.paired_ratio(pair["seconds"], pair["reference_seconds"])
        what = f"step on {tree}: {name} / {reference}"
        found.append(_record(what, ratio, _moved(name, shapes)))
    return found


def _moved(name: str, shapes: trees.Shapes) -> float:
    """Bytes for each parameter, by the compiler's account."""
    params = trees.filled(shapes, 0.0, seed=0)
    program = step.compile_step(CONTESTANTS[name].make(), params)
    accessed = program.cost_analysis()["bytes accessed"]
    return round(accessed / trees.num_params(shapes), 2)


def compilations(count: int, builds: int) -> list[Record]:
    """The ratio of each compilation to that of what it is compared with."""
    names = leaves.with_references(COMPILATIONS)
    _, records = leaves.measure_count(count, builds, 1, names)
    seconds = {r["contestant"]: r["total_seconds"] for r in records}
    found = []
    for name in COMPILATIONS:
        reference = leaves.REFERENCES.get(name, leaves.REFERENCE)
        ratio = common.paired_ratio(seconds[name], seconds[reference])
        what = f"compilation at {count} leaves: {name} / {reference}"
        found.append(_record(what, ratio, 0))
    return found


def _record(what: str, ratio: common.Summary, moved: float) -> Record:
    rounded = [round(x, 4) for x in ratio]
    return {"kind": "standing", "what": what, "ratio": rounded, "bytes": moved}


def row(now: Record, before: Record | None) -> list[str]:
    """A row of the table, with a mark where a ratio has moved."""
    ratio, moved = common.Summary(*now["ratio"]), f"{now['bytes']:.4g}"
    if before is None:
        return [now["what"], str(ratio), "-", moved, "-", "new"]
    was = common.Summary(*before["ratio"])
    apart = ratio.low > was.high or ratio.high < was.low
    change = ratio.median / was.median - 1
    mark = f"{change:+.0%}" if apart and abs(change) > MOVED else ""
    were = f"{before['bytes']:.4g}"
    return [now["what"], str(ratio), str(was), moved, were, mark]


def measured_before(path: Path) -> dict[str, Record]:
    """The records of a file by what they are of.

    Raises:
      UserError: there are none, or one is not what it should be.
    """
    records = json_files.read_lines(path).records
    found = [r for r in records if r.get("kind") == "standing"]
    if not found:
        raise UserError(
            f"--against={path}: must be the .jsonl of an earlier run; it is not there, "
            "or has no records of this benchmark"
        )
    for record in found:
        fields.check(ConfigDict(record), FIELDS, str(path))
    return {record["what"]: record for record in found}


def main(argv: Sequence[str]) -> None:
    """Measures and compares as the flags say."""
    parser = common.Parser(__doc__, repeats=9)
    parser.add_tree("resnet50", "Of the steps: one")
    parser.add_argument(
        "--leaves",
        type=common.positive,
        default=100,
        help="Of the compilations (%(default)s).",
    )
    parser.add_argument(
        "--builds",
        type=common.positive,
        default=5,
        help="Rounds of compilation (%(default)s); --repeats are those of the step.",
    )
    parser.add_argument(
        "--against",
        type=functools.partial(inputs.local, "--against"),
        default=COMMITTED,
        help="Records to compare with (the committed ones).",
    )
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    before = measured_before(flags.against)
    found = compilations(flags.leaves, flags.builds)
    found += steps(flags.tree, flags.repeats)
    table = markdown.table(HEADINGS, [row(r, before.get(r["what"])) for r in found])
    explanation = (
        "Ratios of one interleaved run, medians and quartiles, beside those of "
        f"`{flags.against.name}`. Bytes are those that the kernels of a step read and "
        "write for each parameter. The last column has what moved by more than a tenth "
        "and out of the quartiles."
    )
    common.write(flags.output, "Standing still", [explanation, table], found)


if __name__ == "__main__":
    common.run(main)
