"""The trainer's option that watches the optimizer."""

import math

import numpy as np
import pytest

from tests import toy_task
from tests.in_time import only
from tests.test_checkpoints import cut_short, go, timeless, toy

LEAVES = ("dense/bias", "dense/kernel")


def under_lambc(**changes):
    config = toy("adamw", **changes)
    rate = {"learning_rate": 0.1, "kwargs": {}}
    config.optimizers.adamw = {"transform": "lambc", **rate}
    return config


def numbers(record):
    return {k: v for k, v in record.items() if k.startswith("monitor/")}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run under LAMBC with the monitor, and its program."""
    workdir = tmp_path_factory.mktemp("watched") / "run"
    _, built = go(under_lambc(monitor=True), workdir)
    return workdir, built


def test_records_have_the_numbers_of_the_optimizer_and_each_leaf(watched):
    trained = [r for r in timeless(watched[0]) if r["kind"] == "train"]
    assert [record["step"] for record in trained] == [5, 6, 10, 12]
    for record in trained:
        found = numbers(record)
        assert all(math.isfinite(value) for value in found.values())
        norms = [found[f"monitor/gradient_norm/{leaf}"] for leaf in LEAVES]
        np.testing.assert_allclose(
            found["monitor/gradient_norm"], np.linalg.norm(norms), rtol=1e-6
        )
        for leaf in LEAVES:
            assert 0 < found[f"monitor/trust_ratio/{leaf}"] <= 1  # within the bounds
            assert found[f"monitor/update_ratio/{leaf}"] < 0.1
    ratios = [r["monitor/trust_ratio/dense/kernel"] for r in trained]
    assert len(set(ratios)) > 1  # over time
    assert not any(numbers(r) for r in timeless(watched[0]) if r["kind"] != "train")


def test_tensorboard_has_them_in_a_group_of_their_own(watched):
    (events,) = watched[0].glob("events.*")
    content = events.read_bytes()
    assert b"monitor/gradient_norm/dense/kernel" in content
    assert b"train/loss" in content
    assert b"train/monitor" not in content


def test_training_is_the_same_without(watched, tmp_path):
    go(under_lambc(), tmp_path / "run")
    without = timeless(tmp_path / "run")
    assert not any(numbers(record) for record in without)
    for record, other in zip(timeless(watched[0]), without, strict=True):
        # XLA fuses the update with its norms.
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.nightly
def test_an_interrupted_run_goes_on_with_all_it_has_seen(watched, tmp_path):
    workdir, built = watched
    config = under_lambc(monitor=True)
    cut_short(config, tmp_path / "run", built, step=9)
    go(config, tmp_path / "run", built)
    assert timeless(tmp_path / "run") == timeless(workdir)


@pytest.mark.parametrize("mode", only({"shard_map"}, ["pmap", "shard_map"]))
def test_devices_that_step_by_themselves_see_the_same(watched, tmp_path, mode):
    go(under_lambc(monitor=True, parallel=mode, num_devices=2), tmp_path / "run")
    for record, other in zip(
        timeless(tmp_path / "run"), timeless(watched[0]), strict=True
    ):
        assert numbers(record).keys() == numbers(other).keys()
        if record["step"] == 5:  # the noise is another one on each device
            assert all(math.isfinite(value) for value in numbers(record).values())


def test_a_bad_gradient_is_counted_and_what_is_not_finite_left_out(tmp_path):
    config = toy("adamw", monitor=True, log_every=1, accumulate=1)
    config.optimizers.adamw.skip_if_unsafe = {}
    go(config, tmp_path / "run", source=toy_task.source(poisoned_step=5))
    trained = [r for r in timeless(tmp_path / "run") if r["kind"] == "train"]
    assert len(trained) == 11  # without the one that was skipped
    counts = [record["monitor/nonfinite_gradients"] for record in trained]
    assert counts == [float(record["step"] >= 5) for record in trained]
    assert all(math.isfinite(v) for r in trained for v in numbers(r).values())
    assert "monitor/gradient_norm_q50" in trained[-1]
