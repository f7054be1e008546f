"""What a study consists of, its raw results, and the pages that are made of them."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

import optax_heavytail as oht
from experiments.common import fields, provenance
from experiments.common.errors import UserError
from experiments.common.json_files import Record
from experiments.common.measurements import Measurements

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "experiments" / "results"
PAGES = ROOT / "docs" / "evidence"
PACKAGES = ("jax", "jaxlib", "optax", "numpy")
SCALES = ("cpu", "gpu")
# What the raw results have of every study.
RECORD = {
    "settings": fields.mapping(),
    "result": fields.mapping(),
    "seconds": fields.number(0),
    "time": fields.integer(0, 2**63),
    "commit": fields.text(),
    "hardware": fields.text(),
    "versions": fields.mapping(),
}


class Cell(NamedTuple):
    """One measurement: what it is of, as JSON, and how it is made."""

    settings: dict[str, Any]
    measure: Callable[[], dict[str, Any]]


Tables = Callable[[Sequence[Record]], dict[str, str]]  # blocks of a page, Markdown


class Study(NamedTuple):
    """A question, as measurements and what is shown of them."""

    # (scale, folder of data sets) -> all of them
    cells: Callable[[str, Path], list[Cell]]
    tables: Tables
    pictures: Callable[[Sequence[Record]], dict[str, bytes]]  # PNG, by file name
    # Blocks of further pages, which lie beside the folder of the studies' own.
    elsewhere: Mapping[str, Tables] = MappingProxyType({})


def raw_file(name: str, scale: str, results: Path = RESULTS) -> Path:
    """Where the raw results are."""
    return results / f"evidence_{name}_{scale}.jsonl"


def results(path: Path) -> Measurements:
    """The raw results in a file, by their settings."""
    return Measurements(
        path,
        lambda record: _key(record["settings"]),
        lambda record, where: fields.check(record, RECORD, where),
    )


def run(cells: Sequence[Cell], path: Path) -> Iterator[Cell]:
    """Measures what is not there yet; each result is on the disk when it is yielded.

    Args:
      cells: what is wanted.
      path: raw results, which are added to.

    Yields:
      Every cell.

    Raises:
      UserError: not writable, or not raw results.
    """
    known = results(path)
    about = {
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(PACKAGES)
        | {"optax_heavytail": oht.__version__},
        "command": provenance.command(),
    }
    for cell in cells:
        if _key(cell.settings) not in known:
            started = time.perf_counter()
            measured = {"settings": cell.settings, "result": cell.measure()}
            seconds = round(time.perf_counter() - started, 2)
            known.add(
                {**measured, "seconds": seconds, "time": int(time.time()), **about}
            )
        yield cell


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def wanted(path: Path, cells: Sequence[Cell]) -> list[Record]:
    """The raw results of ``cells``, in their order; other settings are left out.

    Raises:
      UserError: one is missing.
    """
    known = results(path)
    keys = [_key(cell.settings) for cell in cells]
    missing = known.missing(keys)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(keys)} results are missing, such as {missing[0]}"
        )
    return [known[key] for key in keys]


def origin(records: Sequence[Record], name: str, scale: str) -> str:
    """Where numbers come from, as a sentence."""
    commits = sorted({record["commit"] for record in records})
    hardware = sorted({record["hardware"] for record in records})
    days = sorted(time.strftime("%Y-%m-%d", time.gmtime(r["time"])) for r in records)
    versions = ", ".join(f"{k} {v}" for k, v in records[-1]["versions"].items())
    seconds = sum(record["seconds"] for record in records)
    return (
        f"`python -m experiments.reproduce {name} --scale={scale}`, {days[-1]}, commit "
        f"{', '.join(commits)}, {'; '.join(hardware)}, {versions}; {len(records)} "
        f"cells in {seconds / 60:.0f} minutes; raw results in "
        f"`experiments/results/{raw_file(name, scale).name}`."
    )


def rounded(values: Any) -> list[float]:
    """Five digits, of which a file is not too long."""
    return [float(f"{value:.5g}") for value in np.ravel(values)]
