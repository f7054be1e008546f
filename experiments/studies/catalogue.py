"""The studies by name, and how one is measured and shown."""

from collections.abc import Sequence
from pathlib import Path

from experiments.common import files, markdown, progress
from experiments.studies import (
    bert,
    first_figure,
    guards,
    lambc,
    learned,
    neumann,
    robustness,
    rule_search,
    spikes,
    squad,
    states,
    study,
    survey,
    theory,
)
from experiments.studies.heavy_tails import suite

STUDIES = {
    "theory": theory.STUDY,
    "bert": bert.STUDY,
    "lambc": lambc.STUDY,
    "neumann": neumann.STUDY,
    "survey": survey.STUDY,
    "robustness": robustness.STUDY,
    "guards": guards.STUDY,
    "spikes": spikes.STUDY,
    "rule_search": rule_search.STUDY,
    "heavy_tails": suite.STUDY,
    "first_figure": first_figure.STUDY,
    "states": states.STUDY,
    "learned": learned.STUDY,
    "squad": squad.STUDY,
}


def reproduce(name: str, scale: str, data: Path, results: Path, pages: Path) -> Path:
    """Measures what is missing of a study, and renders its pages.

    Returns:
      The study's own page.

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
    for target, made in blocks(name, scale, records, pages).items():
        filled = markdown.fill(target.read_text(encoding="utf-8"), made)
        files.write_atomically(target, filled)
    return page


def blocks(
    name: str, scale: str, records: Sequence[study.Record], pages: Path
) -> dict[Path, dict[str, str]]:
    """Every block of the pages of a study: of its own, and of others."""
    chosen = STUDIES[name]
    own = {**chosen.tables(records), "origin": study.origin(records, name, scale)}
    others = {
        pages.parent / page: tables(records)
        for page, tables in chosen.elsewhere.items()
    }
    return {pages / f"{name}.md": own, **others}
