"""The studies by name, and how one is measured and shown."""

from collections.abc import Sequence
from pathlib import Path

from experiments.common import files, markdown, progress
from experiments.studies import (
    bert,
    guards,
    lambc,
    neumann,
    robustness,
    study,
    survey,
    theory,
)

STUDIES = {
    "theory": theory.STUDY,
    "bert": bert.STUDY,
    "lambc": lambc.STUDY,
    "neumann": neumann.STUDY,
    "survey": survey.STUDY,
    "robustness": robustness.STUDY,
    "guards": guards.STUDY,
}


def reproduce(name: str, scale: str, data: Path, results: Path, pages: Path) -> Path:
    """Measures what is missing of a study, and renders its page.

    Returns:
      The page.

    Raises:
      UserError: a folder is not writable, or the page has other blocks.
    """
    chosen = STUDIES[name]
    cells, path = chosen.cells(scale, data), study.raw_file(name, scale, results)
    page = pages / f"{name}.md"
    files.check_target(page)
    with progress.run_bar(name, len(cells)) as bar:
        for number, cell in enumerate(study.run(cells, path), 1):
            bar.update(number, note=", ".join(map(str, cell.settings.values())))
    records = study.wanted(path, cells)
    for file, picture in chosen.pictures(records).items():
        files.write_atomically(pages / file, picture)
    text = page.read_text(encoding="utf-8")
    filled = markdown.fill(text, blocks(name, scale, records))
    files.write_atomically(page, filled)
    return page


def blocks(name: str, scale: str, records: Sequence[study.Record]) -> dict[str, str]:
    """Every block of the page of a study."""
    tables = STUDIES[name].tables(records)
    return {**tables, "origin": study.origin(records, name, scale)}
