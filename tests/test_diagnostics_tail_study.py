"""The study of bias and coverage: its laws, its cells, and what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from experiments import estimators
from experiments.benchmarks import common, known_laws
from experiments.benchmarks import tail_estimators as tails
from optax_heavytail import diagnostics

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results" / "estimators.jsonl"
FEW = [
    tails.Cell(known_laws.Law("Pareto", 1.5), "coordinates", 200, "hill"),
    tails.Cell(known_laws.GAUSSIAN, "coordinates", 200, "hill"),
    tails.Cell(known_laws.GAUSSIAN, "coordinates", 200, "pickands"),
]


@pytest.mark.parametrize("phi", [0.0, 0.8])
@pytest.mark.parametrize("law", tails.ALL_LAWS, ids=str)
def test_the_laws_are_what_they_are_called(law, phi):
    rows = law.samples((40, 1000), phi, 0)
    frozen = {
        "Pareto": lambda: scipy.stats.pareto(law.index),
        "Student-t": lambda: scipy.stats.t(law.index),
        "Gaussian": scipy.stats.norm,
        "stable": lambda: scipy.stats.levy_stable(
            # A sum of independent stable numbers is stable: of phi^i times the noise.
            law.index,
            0,
            scale=(1 - phi**law.index) ** (-1 / law.index),
        ),
    }[law.family]()
    some = rows[:, ::40].ravel()  # 0.8^40 is nothing
    if law.family == "stable":  # whose distribution function takes minutes
        t = np.array([0.1, 0.3, 0.5])
        want = np.exp(-((t * frozen.kwds["scale"]) ** law.index))
        np.testing.assert_allclose(
            np.cos(t[:, None] * some).mean(axis=1), want, atol=0.08
        )
    else:
        assert scipy.stats.kstest(some, frozen.cdf).pvalue > 0.01
        tau = scipy.stats.kendalltau(rows[:, :-1:9].ravel(), rows[:, 1::9].ravel())
        np.testing.assert_allclose(tau.statistic, 2 / np.pi * np.arcsin(phi), atol=0.03)


def test_the_study_writes_tables_and_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tails, "cells", lambda: FEW)
    output = tmp_path / "folder" / "study"
    estimators.main([f"--output={output}", "--repeats=25"])
    assert {p.name for p in output.parent.iterdir()} == {"study.md", "study.jsonl"}
    header, *records = map(
        json.loads, output.with_name("study.jsonl").read_text().splitlines()
    )
    assert header["kind"] == "header"
    assert [record["law"] for record in records] == [
        "Pareto 1.5",
        "Gaussian",
        "Gaussian",
    ]
    page = output.with_name("study.md").read_text()
    share = tails.coverage(records[0])
    assert f"| Pareto 1.5 | {share:.2f} |" in page.replace("**", "")
    assert 0.6 < share <= 1
    assert records[1]["truth"] == "inf"
    assert "3/3 Gaussian, coordinates, 200, pickands" in capsys.readouterr().out


def test_a_stopped_study_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tails, "cells", lambda: FEW)
    measured = []

    def measure(cell, repeats):
        measured.append(cell)
        if len(measured) == 3:
            raise KeyboardInterrupt
        names = ("below", "above", "rejected", "heavier", "median", "width")
        shares = dict.fromkeys(names, 0.1)
        return {"repeats": repeats} | shares

    monkeypatch.setattr(tails, "measure", measure)
    partial = tmp_path / "study.partial.jsonl"
    with pytest.raises(KeyboardInterrupt):
        tails.run(FEW, 7, partial)
    with partial.open("a") as file:
        file.write('{"kind": "cell", "la')  # killed while it wrote
    found = tails.run(FEW, 7, partial)
    assert measured == [*FEW, FEW[2]]
    assert [cell for cell, _ in found] == FEW
    assert "commit" not in found[0][1]
    tails.run(FEW, 7, partial)
    assert len(measured) == 4
    tails.run(FEW, 8, partial)  # another number of repeats
    assert len(measured) == 7


def test_a_bad_flag_is_one_line():
    with pytest.raises(common.UserError, match="repeats"):
        estimators.main(["--output=x", "--repeats=0"])


# What is in the documentation


def recorded():
    _, *records = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
    names = ("law", "setting", "n", "method")
    by_key = {tuple(record[name] for name in names): record for record in records}
    return [
        (cell, by_key.pop(tuple(cell.key().values()))) for cell in tails.cells()
    ], by_key


def test_the_tables_of_the_page_are_those_of_the_results():
    page = (ROOT / "docs" / "estimators.md").read_text(encoding="utf-8")
    found, left = recorded()
    assert not left
    parts = tails.tables(found)
    results = RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    assert all(part in results for part in parts)
    assert page.count("| law |") == 12
    titles = [i for i, part in enumerate(parts) if part.startswith("## ")]
    assert parts[titles[0]] == "## Coverage"
    shown = [*parts[titles[0] : titles[2]], *parts[titles[3] + 2 : titles[3] + 6]]
    assert all(part in page for part in shown if part.startswith("| law"))


def test_the_intervals_cover_where_they_are_meant_to():
    """As the page says: all within 0.02 of 0.85 to 0.95, which is chance."""
    found, _ = recorded()
    meant = [tails.coverage(r) for cell, r in found if tails.is_meant(cell)]
    assert len(meant) == 87
    assert 0.83 <= min(meant) <= max(meant) <= 0.97
    assert sum(0.845 <= share < 0.955 for share in meant) >= 82


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("law", "held"),
    [
        (known_laws.Law("Student-t", 2), 0.42),
        (known_laws.Law("Student-t", 3), 0.24),
        (known_laws.Law("stable", 1.5), 0.38),
    ],
    ids=str,
)
def test_at_the_k_of_choose_k_intervals_cover_as_seldom_as_the_page_says(law, held):
    rows = law.samples((400, 1000), 0.0, 0)
    ks = np.asarray(diagnostics.choose_k(rows)).tolist()
    found = [
        diagnostics.estimate_tail(row, over="coordinates", k=k, num_null=20)
        for row, k in zip(rows, ks, strict=True)
    ]
    share = np.mean([e.low <= law.index <= e.high for e in found])
    # The samples are the same; a k may be another by rounding.
    assert share == pytest.approx(held, abs=0.02)
