"""Intervals of few runs hold what they say, and a table of many says how much holds."""

import math
import re

import numpy as np
import pytest
import scipy.stats

from experiments.studies import comparison, intervals, study, training
from experiments.studies.intervals import Difference

# Pages whose sentences are about other pages.
ABOUT_OTHERS = (study.PAGES / "index.md", study.PAGES / "which.md")
INTERVAL = re.compile(r"[+-]?\d[\d.]* \[[+-]?\d[\d.]*, [+-]?\d[\d.]*\]")


@pytest.mark.parametrize("number", [3, 5, 10])
def test_intervals_cover_the_mean_in_19_of_20(number):
    draws = np.random.default_rng(number).normal(3.0, 2.0, (2000, number))
    ends = np.array([intervals.mean_interval(values)[1:] for values in draws])
    covered = np.mean((ends[:, 0] < 3.0) & (ends[:, 1] > 3.0))
    assert 0.93 < covered < 0.97


def test_an_interval_and_its_p_value_are_scipys():
    values = np.array([0.3, -0.1, 0.4, 0.25])
    theirs = scipy.stats.ttest_1samp(values, 0.0)
    ends = theirs.confidence_interval(0.9)
    found = intervals.mean_interval(values, 0.9)
    assert found == pytest.approx((values.mean(), ends.low, ends.high))
    assert intervals.p_value(values) == pytest.approx(theirs.pvalue)


def test_one_run_and_runs_that_are_the_same():
    for values in (np.array([0.3]), np.full(3, 0.3)):
        mean, low, high = intervals.mean_interval(values)
        assert mean == pytest.approx(0.3)
        assert math.isnan(low)
        assert math.isnan(high)
        assert math.isnan(intervals.p_value(values))
        table = intervals.table(["x"], [[Difference(values, "+.2f")]])
        assert "| +0.30 (no interval) |" in table
    assert intervals.mean_interval(np.zeros(3)) == (0.0, 0.0, 0.0)
    assert intervals.p_value(np.zeros(3)) == 1.0


def test_holm_by_hand():
    """0.01 times 4, 0.02 times 3, 0.03 times 2 but no less than 0.06, and 0.5."""
    nan = float("nan")
    adjusted = intervals.holm([0.03, 0.5, nan, 0.01, 0.02])
    np.testing.assert_allclose(adjusted, [0.06, 0.5, nan, 0.04, 0.06])
    np.testing.assert_array_equal(intervals.holm([0.7, 0.9]), [1.0, 1.0])
    assert intervals.holm([]).size == 0


def test_a_table_marks_what_holds_among_all_of_it():
    """With deviation d and mean m of three, t = m / (d / sqrt(3)) and 2 freedoms."""
    # p = 1 - t / sqrt(2 + t^2): 0.0048, 0.013 and 0.074, for t of 14.4, 8.66 and 3.46.
    spread = np.array([-1.0, 0.0, 1.0])
    far, near, level = (Difference(mean + spread, ".2f") for mean in (8.33, 5.0, 2.0))
    for cell, p in ((far, 0.0048), (near, 0.0131), (level, 0.0742)):
        assert intervals.p_value(cell.values) == pytest.approx(p, abs=1e-4)

    def lines(*rows):
        return intervals.table(["a", "b"], rows).splitlines()[2:]

    # 0.0048 * 4 and 0.0131 * 3 are below 0.05; of five 0.0131 * 4 is not.
    two = lines([far, near], [level, level])
    assert two[0] == "| 8.33 [5.85, 10.81]* | 5.00 [2.52, 7.48]* |"
    assert two[1] == "| 2.00 [-0.48, 4.48] | 2.00 [-0.48, 4.48] |"
    three = lines([far, near], [level, level], ["no test", level])
    assert three[0] == "| 8.33 [5.85, 10.81]* | 5.00 [2.52, 7.48] |"
    shown = lines([Difference(spread + 5.0, ".1f", math.exp), ""])
    assert shown == ["| 148.4 [12.4, 1779.6]* |  |"]


def test_lost_runs_are_counted_and_not_averaged():
    kept = np.array([0.1, 0.2, 0.4])
    lost = np.array([0.1, training.LOST, 0.2])
    assert comparison.spread(lost) == "1 of 3 lost"
    assert comparison.spread(kept) == "0.233 ± 0.153"
    assert comparison.difference(kept, lost) == "1 of 3 lost"
    assert comparison.difference(lost, np.roll(lost, 1)) == "2 of 3 lost"
    found = comparison.difference(kept, kept + 1)
    assert isinstance(found, Difference)
    np.testing.assert_allclose(found.values, -1.0)


def test_intervals_are_written_beside_their_number():
    assert intervals.with_interval((-0.5, -0.625, 0.25), ".2f") == "-0.50 [-0.62, 0.25]"


def test_an_exponent_is_fitted_to_the_mean():
    sizes = np.array([10, 100, 1000])
    spread = np.array([0.5, 1.0, 1.5])[:, None]
    value, low, high = intervals.fitted_exponent(sizes, spread * 7 * sizes**-0.75)
    assert [value, low, high] == pytest.approx([-0.75] * 3)
    errors = np.random.default_rng(0).exponential(sizes**-0.5, (200, 3))
    value, low, high = intervals.fitted_exponent(sizes, errors)
    assert low < -0.5 < high
    assert low < value < high
    # Each mean has an error of 1 / sqrt(200); the ends of two decades make the slope.
    assert 0.5 < (high - low) / (4 * np.sqrt(2 / 200) / np.log(100)) < 2


@pytest.mark.parametrize("page", ABOUT_OTHERS, ids=lambda page: page.stem)
def test_intervals_of_an_overview_are_those_of_a_table(page):
    tables = "".join(
        line
        for other in study.PAGES.glob("*.md")
        for line in other.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.startswith("| ") and other not in ABOUT_OTHERS
    )
    known = {found.replace("+", "") for found in INTERVAL.findall(tables)}
    text = page.read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    said = INTERVAL.findall(text)
    assert said
    strange = [each for each in said if each.replace("+", "") not in known]
    assert not strange
