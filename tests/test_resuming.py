"""What a run may go on with: another config, another state, other devices."""

import dataclasses
import json
import math
import os
import shutil
import tarfile

import numpy as np
import pytest

from experiments import tasks
from experiments.common.errors import UserError
from experiments.runs import folders
from experiments.training import checkpoint_files, checkpoints, programs
from experiments.training.job import Job
from tests import make_checkpoint_fixture, toy_task
from tests.toy_runs import (
    ROOT,
    arrays_of,
    assert_ends_like,
    assert_same,
    cut_short,
    go,
    growing,
    timeless,
    toy,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and its program."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    _, built = go(growing(), workdir)
    return workdir, built


def test_another_config_is_refused_by_field_or_gone_on_with(tmp_path, whole):
    built = whole[1]
    cut_short(growing(), tmp_path, built, 9)
    changed = growing(seed=3)
    changed.optimizers.acclip.learning_rate = 0.5
    with pytest.raises(UserError) as caught:
        go(changed, tmp_path)
    message = str(caught.value)
    assert message.endswith(
        "config.optimizer.learning_rate was 0.004, now 0.5; config.seed was 0, now 3"
    )
    assert "--resume_with_changes" in message
    final, _ = go(changed, tmp_path, with_changes=True)
    assert final["learning_rate"] == 0.5
    assert [record["step"] for record in timeless(tmp_path)] == [
        5,
        6,
        6,
        10,
        12,
        12,
        12,
    ]
    assert go(changed, tmp_path)[0] == final


def test_a_finished_run_can_be_made_longer(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "run")
    final, _ = go(growing(steps=20), tmp_path / "run", with_changes=True)
    assert (final["status"], final["step"]) == ("complete", 16)
    assert [r["step"] for r in timeless(tmp_path / "run") if r["kind"] == "final"] == [
        16
    ]
    with pytest.raises(UserError, match=r"ends at step 14, .* step 16"):
        go(growing(steps=18), tmp_path / "run", with_changes=True)


def test_the_checkpoint_of_another_config_is_refused_by_field(tmp_path, whole):
    other, built = whole
    shutil.copytree(other / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"12: .*config.seed was 0, now 1"):
        go(growing(seed=1), tmp_path, built)


def test_another_state_is_refused_by_leaf(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(UserError) as caught:
        go(growing(optimizer="momentum"), tmp_path / "run", with_changes=True)
    message = str(caught.value)
    assert "\n" not in message
    assert "threshold/dense/bias is not expected" in message
    assert "trace/dense/kernel is missing" in message
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["optimizer"]["name"] == "acclip"


def rewrite(path, **changes):
    content = {**json.loads(path.read_text()), **changes}
    del content["sha256"]
    content["sha256"] = checkpoint_files.sha256(content)
    path.write_text(json.dumps(content))


def test_another_format_is_refused_by_number(tmp_path, whole):
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    rewrite(tmp_path / "checkpoints/12/about/metadata", format=99)
    with pytest.raises(UserError, match=r"has format 99, this version reads 1; optax"):
        go(growing(), tmp_path, whole[1])


def test_changes_need_a_step_that_is_left(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "run")
    before = timeless(tmp_path / "run")
    with pytest.raises(UserError, match=r"all its 12 steps; none .*seed was 0, now 1$"):
        go(growing(seed=1), tmp_path / "run", with_changes=True)
    assert timeless(tmp_path / "run") == before


def test_changes_need_a_checkpoint(tmp_path, whole):
    cut_short(growing(), tmp_path, whole[1], 3)
    with pytest.raises(UserError, match=r"has no checkpoint .*seed was 0, now 1$"):
        go(growing(seed=1), tmp_path, with_changes=True)
    go(growing(), tmp_path, whole[1])
    assert_ends_like(tmp_path, whole[0])


@pytest.mark.parametrize("start_at", [8, None])
def test_changes_that_are_interrupted_leave_no_finished_run(
    tmp_path, whole, monkeypatch, start_at
):
    """Whatever file operation is the last, no old result passes for the new config."""
    changed = Job.of(growing(seed=1)).on(toy_task.source()).config
    for last in range(20):
        workdir, calls = tmp_path / str(last), []
        shutil.copytree(whole[0], workdir)

        def counted(function, calls=calls, last=last):
            def call(*args, **kwargs):
                if len(calls) == last:
                    raise KeyboardInterrupt
                calls.append(function)
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((os, "replace"), (os, "rename"), (shutil, "rmtree")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                folders.start(workdir, changed, start_at)
            except KeyboardInterrupt:
                assert folders.changes(workdir, changed, with_changes=True)
            else:
                break
    assert last >= 3
    assert folders.finished(workdir, changed) is None


def test_how_many_gradients_an_aggregation_has_is_part_of_the_config():
    """A median of eight gradients is not that of four."""

    def resolved(devices, **changes):
        config = toy(parallel="shard_map", num_devices=devices, accumulate=4, **changes)
        return folders.plain(Job.of(config).on(toy_task.source()).config)

    median = {"aggregation": {"name": "coordinate_median", "kwargs": {}}}
    with pytest.raises(UserError, match=r"num_gradients was \[4\], now \[8\]$"):
        folders.check_same("run", resolved(1, **median), resolved(2, **median), False)
    assert folders.check_same("run", resolved(1), resolved(2), False) == []


@pytest.mark.parametrize("name", make_checkpoint_fixture.OPTIMIZERS)
def test_a_state_of_version_0_1_0_goes_on(tmp_path, name):
    archive = ROOT / "tests/fixtures/checkpoints_0.1.0.tar.gz"
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    config = make_checkpoint_fixture.config(name)
    # A later version may have fields that this one had not.
    final, _ = go(config, tmp_path / name, with_changes=True)
    assert final["status"] == "complete"
    assert [(r["kind"], r["step"]) for r in timeless(tmp_path / name)] == [
        ("train", 4),
        ("train", 6),
        ("eval", 6),
        ("final", 6),
    ]


def without_dropout():
    """The task, in which each device has no randomness of its own."""
    task = toy_task.make()

    def loss_sum(params, model_state, batch, key):
        return task.eval_sums(params, model_state, batch)["loss"], model_state

    return dataclasses.replace(task, loss_sum=loss_sum)


@pytest.mark.parametrize(
    ("parallel_", "fsdp"),
    [
        ("jit", 2),
        pytest.param("shard_map", 1, marks=pytest.mark.nightly),
        pytest.param("pmap", 1, marks=pytest.mark.nightly),
    ],
)
def test_a_run_moves_to_other_devices(tmp_path, parallel_, fsdp):
    """From eight to four and to one; sums over devices are rounded differently."""
    rules = (("kernel", (None, "fsdp")),)

    def laid_out(devices):
        return toy(
            parallel=parallel_,
            num_devices=devices,
            fsdp=min(fsdp, devices),
            sharding_rules=rules if parallel_ == "jit" else (),
        )

    source = tasks.Source("0" * 64, lambda workdir: without_dropout())
    _, built = go(laid_out(8), tmp_path / "whole", source=source)
    cut_short(laid_out(8), tmp_path / "run", built, 5)
    before = arrays_of(tmp_path / "run", 4)
    four = laid_out(4)
    built = programs.build(Job.of(four).on(source), without_dropout())
    resolved = Job.of(four).on(source).config
    resumed = checkpoints.Keeper(built, resolved, tmp_path / "run").resume(False)
    found = checkpoint_files.by_path((resumed.state, resumed.window))
    assert_same(found, before)
    kernel = resumed.state.params["dense"]["kernel"]
    assert len(kernel.sharding.device_set) == 4
    assert kernel.addressable_shards[0].data.shape == (3, 2 // fsdp)
    cut_short(four, tmp_path / "run", built, 9)
    go(laid_out(1), tmp_path / "run", source=source)
    want = arrays_of(tmp_path / "whole", 12)
    for name, array in arrays_of(tmp_path / "run", 12).items():
        # Twelve steps of float32 sums in another order.
        np.testing.assert_allclose(array, want[name], rtol=2e-5, atol=1e-6)
    assert [r["step"] for r in timeless(tmp_path / "run")] == [
        r["step"] for r in timeless(tmp_path / "whole")
    ]
    assert math.isfinite(timeless(tmp_path / "run")[-1]["loss"])
