"""Runs that are interrupted, damaged or starved of room go on as if not."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import tasks
from experiments.common import distributed
from experiments.common.errors import UserError
from experiments.training import (
    checkpoint_files,
    checkpoints,
    fingerprints,
    parallel,
)
from experiments.training.job import Job
from tests import toy_task
from tests.commands import environment
from tests.in_time import only
from tests.toy_runs import (
    ROOT,
    arrays_of,
    assert_ends_like,
    assert_same,
    cut_short,
    go,
    growing,
    interrupt,
    interrupted_at,
    saved,
    timeless,
    toy,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and its program."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    _, built = go(growing(), workdir)
    return workdir, built


def test_the_batch_of_these_runs_grows(whole):
    counts = whole[1].plan.microbatches
    assert counts[0] == 2
    assert counts[-1] > 2


@pytest.mark.parametrize("steps", only([[3], [4, 6, 11]], [[3], [5], [4, 6, 11]]))
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, steps):
    other, built = whole
    for step in steps:
        cut_short(growing(), tmp_path, built, step)
    go(growing(), tmp_path, built)
    assert_ends_like(tmp_path, other)
    assert (tmp_path / "interrupted-1").exists() == (steps == [3])


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("neumann", {"kwargs": {"burn_in_steps": 2}}),
        pytest.param(
            "lambc",
            {"kwargs": {}, "skip_if_unsafe": {"max_in_a_row": 2}},
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "acclip",
            {"kwargs": {"mu_dtype": "bfloat16"}},
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_states_of_optimizers_go_on(tmp_path, name, entry):
    """Read-outs, counters of skipped steps, and the key of stochastic rounding."""
    config = toy("adamw")
    config.optimizers.adamw = {"transform": name, "learning_rate": 0.05, **entry}
    _, built = go(config, tmp_path / "whole")
    cut_short(config, tmp_path / "run", built, 7)
    go(config, tmp_path / "run", built)
    assert_ends_like(tmp_path / "run", tmp_path / "whole")


@pytest.mark.nightly
def test_a_program_that_is_built_anew_does_the_same(tmp_path, whole):
    other, built = whole
    cut_short(growing(), tmp_path, built, 9)
    go(growing(), tmp_path)
    assert_ends_like(tmp_path, other)


def test_what_is_killed_after_its_last_step_is_finished(tmp_path, whole):
    other, built = whole
    shutil.copytree(other, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:-1]))
    go(growing(), tmp_path / "run", interrupted_at(built, 0, interrupt))
    assert_ends_like(tmp_path / "run", other)


def test_the_last_and_the_best_are_kept(tmp_path):
    changes = {"steps": 24, "eval_every": 2, "checkpoint": {"every": 2, "keep": 2}}
    config = toy("momentum", **changes)
    config.optimizers.momentum.learning_rate = 0.05  # too high: it gets worse again
    _, built = go(config, tmp_path / "whole")
    losses = {
        record["step"]: record["loss"]
        for record in timeless(tmp_path / "whole")
        if record["kind"] == "eval"
    }
    best = min(losses, key=losses.__getitem__)
    assert best < 20
    assert saved(tmp_path / "whole") == [best, 22, 24]
    cut_short(config, tmp_path / "run", built, 21)
    go(config, tmp_path / "run", built)
    assert saved(tmp_path / "run") == [best, 22, 24]


def test_sigterm_saves_the_step_and_stops(tmp_path, whole):
    other, built = whole
    before = signal.getsignal(signal.SIGTERM)
    message = cut_short(growing(), tmp_path, built, 4, sigterm)
    assert message.startswith("stopped by SIGTERM after step 5, which is saved")
    assert signal.getsignal(signal.SIGTERM) is before
    assert saved(tmp_path) == [4, 5]
    go(growing(), tmp_path, built)
    assert_ends_like(tmp_path, other)


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_does_not_wait_for_an_evaluation(tmp_path, whole):
    other, built = whole
    message = cut_short(growing(), tmp_path, built, 5, sigterm)
    assert message.startswith("stopped by SIGTERM after step 6, which is saved")
    assert [(r["kind"], r["step"]) for r in timeless(tmp_path)] == [
        ("train", 5),
        ("train", 6),
    ]
    go(growing(), tmp_path, built)
    assert_ends_like(tmp_path, other)


def test_sigterm_in_the_last_step_ends_the_command(tmp_path, whole):
    """The next run of a comparison must not start."""
    other, built = whole
    message = cut_short(growing(), tmp_path, built, 11, sigterm)
    assert message.startswith(f"stopped by SIGTERM; {tmp_path} is complete, and ")
    assert_ends_like(tmp_path, other)


def test_a_lost_model_is_not_saved(tmp_path):
    config = toy(log_every=100, eval_every=100)
    final, _ = go(config, tmp_path, source=toy_task.source(poisoned_step=12))
    assert (final["status"], final["step"]) == ("diverged", 6)
    assert saved(tmp_path) == [4]


def damage(path, rng, how):
    """Changes one bit of a file, or cuts it, or takes it away."""
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


def with_a_table(workdir):
    """The task with an array too large for the index of a checkpoint's files."""

    def init(key):
        table = jax.random.normal(key, (64, 64))
        return {"table": table, **toy_task.make().init(key)[0]}, {}

    return dataclasses.replace(toy_task.make(), init=init)


@pytest.fixture(scope="module")
def with_table(tmp_path_factory):
    """A run with checkpoints of steps 8 and 12, their arrays, and its program."""
    workdir = tmp_path_factory.mktemp("table") / "run"
    _, built = go(toy("adamw"), workdir, source=tasks.Source("0" * 64, with_a_table))
    return workdir, {step: arrays_of(workdir, step) for step in (8, 12)}, built


# Threads of Orbax that failed too may say so at any later time.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", only({"flip"}, ["flip", "gone", "cut"]))
def test_damage_is_noticed_in_every_file(tmp_path, capsys, with_table, how):
    """What is gone on from is bit for bit what was saved, or the one before it."""
    workdir, arrays, built = with_table
    config = Job.of(toy("adamw")).on(toy_task.source()).config
    rng, noticed = random.Random(0), 0
    files = sorted(p for p in (workdir / "checkpoints/12").rglob("*") if p.is_file())
    for number, path in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(workdir / "checkpoints", folder / "checkpoints")
        damage(folder / path.relative_to(workdir), rng, how)
        resumed = checkpoints.Keeper(built, config, folder).resume(False)
        step = resumed.progress.step
        assert int(resumed.state.step) == step
        found = checkpoint_files.by_path((resumed.state, resumed.window))
        assert_same(found, arrays[step])
        lines = capsys.readouterr().err.splitlines()
        if step == 8:
            noticed += 1
            assert len(lines) == 1
            assert f"checkpoint {folder / 'checkpoints/12'} is damaged (" in lines[0]
            assert (folder / "damaged-1").is_dir()
        else:  # nothing that is needed was in that file
            assert lines == []
    assert noticed >= 3


def test_a_bit_that_the_storage_does_not_notice_is_noticed(
    tmp_path, monkeypatch, capsys, with_table
):
    workdir, _, built = with_table
    config = Job.of(toy("adamw")).on(toy_task.source()).config
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    restore = ocp.StandardCheckpointHandler.restore

    def restore_with_a_flip(self, directory, *args, **kwargs):
        arrays = restore(self, directory, *args, **kwargs)
        if "/12/" in str(directory):
            table = np.array(arrays["state/params/table"])
            table.view(np.uint8)[17, 5] ^= 1
            arrays["state/params/table"] = jax.device_put(
                table, arrays["state/params/table"].sharding
            )
        return arrays

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", restore_with_a_flip)
    resumed = checkpoints.Keeper(built, config, tmp_path).resume(False)
    assert resumed.progress.step == 8
    assert "state/params/table not as saved" in capsys.readouterr().err


def test_a_number_changed_in_the_description_is_noticed(tmp_path, whole, capsys):
    other, built = whole
    shutil.copytree(other / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / "checkpoints/12/about/metadata"
    path.write_text(path.read_text().replace('"recorded": 12', '"recorded": 13'))
    config = Job.of(growing()).on(toy_task.source()).config
    resumed = checkpoints.Keeper(built, config, tmp_path).resume(False)
    assert resumed.progress.step == 8
    assert "about is not what was saved" in capsys.readouterr().err


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    tmp_path, whole, capsys
):
    other, built = whole
    cut_short(growing(), tmp_path, built, 9)
    assert saved(tmp_path) == [4, 8]
    (tmp_path / "checkpoints/8/about/metadata").write_bytes(b"{")
    go(growing(), tmp_path, built)
    assert "is damaged" in capsys.readouterr().err
    assert_ends_like(tmp_path, other)


def test_without_a_whole_checkpoint_a_run_starts_anew(tmp_path, whole, capsys):
    other, built = whole
    cut_short(growing(), tmp_path, built, 9)
    for step in (4, 8):
        shutil.rmtree(tmp_path / f"checkpoints/{step}/arrays")
    go(growing(), tmp_path, built)
    assert capsys.readouterr().err.count("is damaged") == 2
    assert (tmp_path / "interrupted-1/metrics.jsonl").exists()
    assert_ends_like(tmp_path, other)


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (ocp.JsonCheckpointHandler, OSError(errno.EIO, os.strerror(errno.EIO))),
        (
            ocp.StandardCheckpointHandler,
            ValueError("a/b [OS error 24: Too many open files]"),
        ),
        (ocp.StandardCheckpointHandler, MemoryError()),
    ],
)
def test_what_cannot_be_read_now_is_no_damage(
    tmp_path, whole, monkeypatch, handler, error
):
    other, built = whole
    shutil.copytree(other / "checkpoints", tmp_path / "checkpoints")
    config = Job.of(growing()).on(toy_task.source()).config

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(handler, "restore", fail)
    with pytest.raises(UserError, match=r"checkpoints/12: cannot be read now \("):
        checkpoints.Keeper(built, config, tmp_path).resume(False)
    assert saved(tmp_path) == saved(other)


def test_damage_that_another_process_finds_is_damage(tmp_path, whole, monkeypatch):
    other, built = whole
    where = other / "checkpoints/12"
    monkeypatch.setattr(
        distributed, "gather", lambda own: [own, ["state/step"] if own == [] else own]
    )
    with pytest.raises(checkpoint_files.DamagedError, match="state/step not as saved"):
        checkpoint_files.read(
            where,
            checkpoint_files.read_about(where),
            checkpoint_files.shapes(built),
            built.layout,
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_fingerprints_tell_arrays_apart(dtype):
    layout = parallel.layout(toy_task.config())
    rng = np.random.default_rng(0)
    array = jax.numpy.asarray(rng.integers(0, 2, (3, 4, 2)), dtype)
    changed = np.asarray(array).copy()
    changed[2, 1, 0] = changed[2, 1, 0] == 0
    swapped = np.asarray(array).copy()
    swapped[0, 0] = swapped[0, 0, ::-1] = [0, 1]
    kinds = {
        "it": array,
        "again": array + 0 if dtype != "bool" else array,
        "changed": jax.numpy.asarray(changed),
        "reversed": array[::-1],
        "negative": -array if "float" in dtype else ~array,
        "swapped": jax.numpy.asarray(swapped),
        "swapped back": jax.numpy.asarray(swapped)[:, :, ::-1],
        "shorter": array[:2],
    }
    found = fingerprints.take(kinds, layout)
    assert found.pop("again") == found["it"]
    assert len(set(found.values())) == len(found)


def test_every_single_bit_changes_a_fingerprint():
    layout = parallel.layout(toy_task.config())
    array = np.random.default_rng(0).standard_normal(6).astype(np.float32)
    flipped = {"it": array}
    for bit in range(array.nbytes * 8):
        changed = array.copy()
        changed.view(np.uint8)[bit // 8] ^= 1 << bit % 8
        flipped[f"{bit}"] = changed
    found = fingerprints.take(
        {n: jax.device_put(x) for n, x in flipped.items()}, layout
    )
    assert len(set(found.values())) == len(flipped)


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def full_disk_in_a_thread(*args, **kwargs):
    full_disk()


@pytest.mark.parametrize(
    ("owner", "name", "fails"),
    [
        (ocp.JsonCheckpointHandler, "_save_fn", full_disk_in_a_thread),
        (os, "fsync", full_disk),
    ],
)
def test_a_full_disk_stops_the_run(tmp_path, whole, owner, name, fails, capfd):
    other, built = whole
    with pytest.MonkeyPatch.context() as patch:
        message = cut_short(
            growing(), tmp_path, built, 5, lambda: patch.setattr(owner, name, fails)
        )
    assert "No space left on device" in message
    assert "\n" not in message
    assert "Traceback" not in capfd.readouterr().err
    assert saved(tmp_path) == [4]
    # Not in the same folder: the threads of the save that failed may be at work yet.
    partial = shutil.ignore_patterns("*tmp*")
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=partial)
    go(growing(), tmp_path / "copy", built)
    assert_ends_like(tmp_path / "copy", other)


def test_a_failed_save_is_noticed_before_the_next(tmp_path, whole, monkeypatch):
    built = whole[1]
    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", full_disk_in_a_thread)
    # Step 4 is saved; the thread that fails of it has a second before step 6 ends.
    slow = interrupted_at(built, built.plan.position(5), lambda: time.sleep(1))
    message = cut_short(growing(), tmp_path, slow, 7)
    assert "the checkpoint of step 4 cannot be written" in message


@pytest.mark.parametrize("fails_within", [False, True])
def test_a_save_that_fails_at_the_end_is_said_unless_something_else_was(
    tmp_path, whole, monkeypatch, fails_within
):
    keeper = checkpoints.Keeper(
        whole[1], Job.of(growing()).on(toy_task.source()).config, tmp_path
    )
    close = ocp.CheckpointManager.close

    def close_and_fail(self):
        close(self)
        full_disk()

    monkeypatch.setattr(ocp.CheckpointManager, "close", close_and_fail)
    error, words = (
        (ZeroDivisionError, "zero") if fails_within else (UserError, "No space left")
    )
    with pytest.raises(error, match=words), keeper.opened():
        _ = 1 // (not fails_within)


def run_in_a_process(**options):
    # Killed or starved, it would leave torn entries in the cache of all tests.
    uncached = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.run_toy", json.dumps(options)],
        cwd=ROOT,
        env=environment() | uncached,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.nightly
def test_a_file_that_may_not_grow_stops_the_run(tmp_path):
    options = {"workdir": str(tmp_path), "steps": 6, "runs": ["run"]}
    process = run_in_a_process(**options, max_file_bytes=4000)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    last = error.splitlines()[-1]
    assert last.startswith("error: ")
    assert "File too large" in last
    assert saved(tmp_path / "run") == []


def newest(workdir):
    return max(saved(workdir), default=0) if (workdir / "checkpoints").exists() else 0


def kill_at_a_random_moment(process, workdir, rng):
    """After a new checkpoint; every other time while the next is being written."""
    start, deadline = newest(workdir), time.monotonic() + 120
    mid_save = rng.random() < 0.5
    delay = rng.uniform(0, 0.5)
    while newest(workdir) <= start and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    time.sleep(delay)
    folder = workdir / "checkpoints"
    while mid_save and process.poll() is None:
        if any("tmp" in path.name for path in folder.iterdir()):
            break
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kills", "steps"),
    [(1, 40), pytest.param(20, 600, marks=pytest.mark.nightly)],
)
def test_killed_at_random_moments_a_run_ends_the_same(tmp_path, kills, steps):
    rng, workdir = random.Random(kills), tmp_path / "run"
    options = {"workdir": str(tmp_path), "steps": steps}
    for _ in range(kills):
        process = run_in_a_process(**options, runs=["run"])
        kill_at_a_random_moment(process, workdir, rng)
    process = run_in_a_process(**options, runs=["run", "whole"])
    _, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (0, "")
    assert not list(workdir.glob("damaged-*"))
    assert_ends_like(workdir, tmp_path / "whole")


@pytest.mark.parametrize("name", ["every", "keep"])
def test_bad_counts_are_refused(name):
    with pytest.raises(UserError, match=rf"{name}=0: must be an integer"):
        Job.of(toy(checkpoint={"every": 2, "keep": 1, name: 0}))
