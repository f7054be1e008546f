"""The study of one bad gradient: its measures, its rows, and what it promises."""

from pathlib import Path

import numpy as np
import pytest

import optax_heavytail as oht
from experiments.studies import spike_runs, spikes, study
from experiments.studies.spike_runs import AFTER
from experiments.studies.spike_subjects import SUBJECTS, WITHOUT_ROW
from tests.in_time import in_time
from tests.registry import CASES

CELLS = spikes.cells("cpu", Path())
RECORDED = {
    record["settings"]["optimizer"]: record["result"]
    for record in study.wanted(study.raw_file("spikes", "cpu"), CELLS)
}
QUICK = ("optax.sgd, momentum", "biclip")


def effect(changes):
    """Of a run that makes steps of 1 along x, but for these of both seeds."""
    usual = np.zeros((2, AFTER, 2))
    usual[..., 0] = 1.0
    found = usual.copy()
    for step, value in changes.items():
        found[:, step] = value
    return spike_runs.effect(found, usual)


def test_a_step_that_is_left_out_is_lost_and_no_drift():
    got = effect({0: [0.0, 0.0]})
    assert (got.drift, got.stalled, got.lost, got.recovery) == (0.0, 1, 1.0, 1)


def test_a_step_aside_or_ahead_is_drift():
    aside = effect({0: [1.0, 7.0], 1: [1.0, -3.0], 9: [0.4, -0.1]})
    assert aside.drift == 7.0
    assert (aside.stalled, aside.recovery) == (1, 10)
    ahead = effect({2: [5.0, 0.0], 3: [0.6, 0.0]})
    assert (ahead.drift, ahead.lost, ahead.recovery) == (4.0, -3.6, 3)


def test_what_is_not_over_at_the_end_never_is():
    got = effect({step: [0.1, 0.0] for step in range(AFTER)})
    assert (got.stalled, got.recovery) == (AFTER, None)
    assert got.lost == pytest.approx(0.9 * AFTER)


def test_updates_that_are_not_finite_are_counted_and_not_applied():
    got = effect({0: [np.nan, 1.0], 1: [np.inf, 0.0]})
    assert (got.nonfinite, got.recovery, got.lost) == (2, 2, 2.0)


def test_gradients_are_steady():
    grads = spike_runs.gradients().astype(np.float64)
    lengths = np.linalg.norm(grads, axis=-1)
    assert np.sqrt(np.mean(lengths**2)) == pytest.approx(1.0, rel=0.05)
    # All move alike along the mean, and pairs have no noise.
    mean = np.ones(spike_runs.SIZE) / np.sqrt(spike_runs.SIZE)
    np.testing.assert_allclose(grads @ mean, 10**-0.5, rtol=1e-5)
    pairs = grads[::2] + grads[1::2]
    np.testing.assert_allclose(pairs, pairs[0, 0, 0], atol=1e-6)
    noise = grads - grads.mean(axis=-1, keepdims=True)
    assert noise.std() / grads.mean() == pytest.approx(spike_runs.NOISE, rel=0.05)


@pytest.mark.parametrize(
    "name", in_time({n: n for n in SUBJECTS}, lambda n: n in QUICK)
)
def test_rows_are_what_comes_out_again(name):
    """Other code for the same sums moves the last digits, and a step at the border."""
    got = spike_runs.measure(SUBJECTS[name].make)
    for factor, want in RECORDED[name].items():
        for field in ("drift", "lost"):
            assert got[factor][field] == pytest.approx(want[field], 0.02, 0.02)
        for field in ("stalled", "nonfinite"):
            assert abs(got[factor][field] - want[field]) <= 2 + 0.02 * want[field]
        assert (got[factor]["recovery"] is None) == (want["recovery"] is None)


def test_every_transform_has_a_row_or_a_reason():
    shown = {subject.shows for subject in SUBJECTS.values()} - {None}
    names = {case.factory.__name__: case.factory for case in CASES.values()}
    public = {name for name, f in names.items() if getattr(oht, name, None) is f}
    assert public - shown - set(WITHOUT_ROW) == set()
    assert (shown | set(WITHOUT_ROW)) <= public
    assert shown.isdisjoint(WITHOUT_ROW)


@pytest.mark.parametrize("name", ["clip_by_history, adamw", "guarded(adamw)"])
def test_guards_neither_drift_nor_stall(name):
    effects = RECORDED[name]
    for factor in spikes.FINITE:
        assert effects[factor]["drift"] <= 9
        assert effects[factor]["stalled"] == 0
        assert effects[factor]["lost"] < 1
    for factor in spikes.BAD:
        assert effects[factor]["nonfinite"] == 0
        assert effects[factor]["lost"] < 1.1
        assert effects[factor]["stalled"] <= 1
        assert effects[factor]["recovery"] <= 1
    # As it is not with AdamW alone.
    assert RECORDED["optax.adamw"]["1e4"]["drift"] > 90
    assert RECORDED["optax.adamw"]["1e4"]["recovery"] is None
