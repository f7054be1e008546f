"""What the kernels of a step read and write, one kind of them after the other.

    python -m experiments.benchmarks.kernels \
        --output=experiments/results/bench_kernels_cpu

reads it from the program that XLA makes of the jitted step, with parameters and state
donated. It says why a step takes longer than another one, where memory is what it waits
for: a method's own account says what must be moved, this one what is. Of many small
leaves it counts what has to be compiled.
"""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from experiments.benchmarks import common, step, trees
from experiments.benchmarks.contestants import CONTESTANTS
from experiments.common import markdown

CHOSEN = (
    "optax.adamw",
    "oht.acclip",
    "optax.lamb",
    "oht.lambc",
    "neumann in plain jnp",
    "oht.neumann",
    "oht.guarded(optax.adamw)",
    "oht.compress_state(optax.adamw)",
)
SMALL_LEAVES = 100
COMPILED = ("optax.adamw", "oht.acclip", "optax.lamb", "oht.lambc, as LAMB")
HEADINGS = ("optimizer", "kernels", "each reads", "and writes", "bytes per parameter")
PROGRAM_HEADINGS = ("optimizer", "operations", "kernels", "different", "of operations")
FEWEST_BYTES = 0.05  # for each parameter: what is less is shown as one row
WHOLE = 8  # an array counts as large if it has an eighth of its kernel's largest
# What moves nothing, or is counted where it runs.
NO_KERNELS = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("conditional", "while"),
}
INSTRUCTION = re.compile(r" +(?:ROOT )?%(\S+) = (.*?) ([\w-]+)\((.*?)\)")
COMPUTATION = re.compile(r"^(%\S+) .*?\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
NAMES = re.compile(r", metadata=\{[^}]*\}|%[\w.-]+")
ARRAY = re.compile(r"\b([a-z]+)(\d*)\[([\d,]*)\]")
Array = tuple[str, int]  # a dtype by its name, and entries


class Kernel(NamedTuple):
    """What a kernel reads and writes."""

    reads: tuple[Array, ...]
    writes: tuple[Array, ...]

    @property
    def moved(self) -> int:
        """Bytes."""
        return sum(width(name) * size for name, size in self.reads + self.writes)

    @property
    def kind(self) -> tuple[str, str]:
        """Its large arrays: those that are read, and those that are written."""
        least = max(size for _, size in self.reads + self.writes) / WHOLE
        return _large(self.reads, least), _large(self.writes, least)


def _large(arrays: Sequence[Array], least: float) -> str:
    counts = collections.Counter(name for name, size in arrays if size >= least)
    shown = (f"{n} {name}" if n > 1 else name for name, n in sorted(counts.items()))
    return ", ".join(shown) or "-"


def width(dtype: str) -> int:
    """Bytes of an entry, by the name that XLA has for its dtype."""
    bits = "".join(c for c in dtype if c.isdigit())
    return max(int(bits) // 8, 1) if bits else 1


def kernels(text: str) -> Iterator[Kernel]:
    """Those of a compiled program that always run: no branches of conditions."""
    entry = text[text.index("\nENTRY ") :]
    arrays: dict[str, tuple[Array, ...]] = {}
    for line in entry[: entry.index("\n}")].splitlines():
        found = INSTRUCTION.match(line)
        if not found:
            continue
        name, shape, operation, operands = found.groups()
        arrays[name] = tuple(
            (kind + bits, math.prod(map(int, filter(None, sizes.split(",")))))
            for kind, bits, sizes in ARRAY.findall(shape)
        )
        if operation not in NO_KERNELS:
            names = re.findall(r"%([^\s,]+)", operands)
            reads = tuple(x for name in names for x in arrays.get(name, ()))
            yield Kernel(reads, arrays[name])


def programs(text: str) -> collections.Counter[str]:
    """What the parts of a compiled program do, without names, and how many do it."""
    found = COMPUTATION.findall(text)
    return collections.Counter(NAMES.sub("", body) for _, body in found)


def compiled(name: str) -> common.Record:
    """How much there is to compile for many small leaves: equal programs once."""
    shapes = trees.equal_leaves(SMALL_LEAVES)
    params = {k: jax.ShapeDtypeStruct(s, "float32") for k, s in shapes.items()}
    text = step.compile_step(CONTESTANTS[name].make(), params).as_text()
    different = programs(text)
    return {
        "kind": "compiled",
        "leaves": SMALL_LEAVES,
        "contestant": name,
        "operations": len(re.findall(r"^ +(?:ROOT )?%\S+ = ", text, re.MULTILINE)),
        "kernels": sum(1 for _ in kernels(text)),
        "different": len(different),
        "different_operations": sum(body.count("\n") for body in different),
    }


def program_row(record: common.Record) -> list[str]:
    """A row of what is compiled."""
    keys = ("operations", "kernels", "different", "different_operations")
    return [record["contestant"], *(f"{record[key]:,}" for key in keys)]


def measure(name: str, tree: str) -> common.Record:
    """The kernels of one optimizer's step, by kind."""
    shapes = trees.TREES[tree]()
    params = {k: jax.ShapeDtypeStruct(s, "float32") for k, s in shapes.items()}
    program = step.compile_step(CONTESTANTS[name].make(), params)
    kinds: dict[tuple[str, str], list[int]] = {}
    for kernel in kernels(program.as_text()):
        kinds.setdefault(kernel.kind, []).append(kernel.moved)
    return {
        "kind": "kernels",
        "tree": tree,
        "contestant": name,
        "parameters": trees.num_params(shapes),
        "kinds": [
            {
                "reads": reads,
                "writes": writes,
                "kernels": len(moved),
                "bytes": sum(moved),
            }
            for (reads, writes), moved in kinds.items()
        ],
        "moved": int(program.cost_analysis()["bytes accessed"]),
    }


def rows(record: common.Record) -> list[list[str]]:
    """The rows of one optimizer: large kinds, the rest, all, and the compiler's sum."""
    size, name = record["parameters"], record["contestant"]
    kinds = sorted(record["kinds"], key=lambda kind: -kind["bytes"])
    large = [k for k in kinds if k["bytes"] >= FEWEST_BYTES * size]

    def row(kernels: int, reads: str, writes: str, moved: int) -> list[str]:
        return [name, f"{kernels:,}", reads, writes, f"{moved / size:.2f}"]

    def total(chosen: Sequence[common.Record], title: str) -> list[str]:
        kernels = sum(k["kernels"] for k in chosen)
        return row(kernels, title, "", sum(k["bytes"] for k in chosen))

    return [
        *(row(k["kernels"], k["reads"], k["writes"], k["bytes"]) for k in large),
        total(kinds[len(large) :], "smaller ones"),
        total(kinds, "**all**"),
        [name, "", "with the branches", "", f"{record['moved'] / size:.2f}"],
    ]


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__)
    parser.add_tree("bert_base")
    several = f"Some of {', '.join(CONTESTANTS)}; default: {', '.join(CHOSEN)}."
    parser.add_contestants(CONTESTANTS, several, CHOSEN)
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    records = []
    for name in flags.contestants:
        records.append(measure(name, flags.tree))
        print(f"{name}: {rows(records[-1])[-2][-1]} bytes per parameter", flush=True)
    small = [compiled(name) for name in COMPILED]
    explanation = (
        f"Kernels of a jitted step on {flags.tree} "
        f"({records[0]['parameters']:,} float32 parameters), parameters and state "
        "donated, as XLA's program has them, by the large arrays that each reads and "
        "writes: a norm writes none. Not counted are the branches of conditions, such "
        "as second looks at numbers that are too large or not finite, which hardly "
        "ever run; the compiler's sum, in the last row of each, has the largest branch "
        "of each condition."
    )
    table = markdown.table(
        HEADINGS, [row for record in records for row in rows(record)]
    )
    of_small = (
        f"Of {SMALL_LEAVES} leaves of 16 x 16: the operations of the program, its "
        "kernels, and how many of its parts are different: equal ones are compiled "
        "once, those of branches too, and the operations of these."
    )
    program_table = markdown.table(PROGRAM_HEADINGS, [program_row(r) for r in small])
    parts = [explanation, table, of_small, program_table]
    common.write(flags.output, "Kernels of a step", parts, records + small)


if __name__ == "__main__":
    common.run(main)
