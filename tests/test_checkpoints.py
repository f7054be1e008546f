"""Runs that are interrupted, damaged, starved of room or moved go on as if not."""

import dataclasses
import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from experiments import (
    checkpoint_files,
    checkpoints,
    fingerprints,
    parallel,
    program,
    tasks,
    train,
)
from experiments.errors import UserError
from tests import make_checkpoint_fixture, toy_task

TIMES = ("time", "train_seconds", "compile_seconds", "steps_per_second")
ROOT = Path(__file__).parent.parent


def toy(optimizer="acclip", **changes):
    """Twelve steps: records, evaluations and checkpoints at different ones."""
    settings = {
        "steps": 12,
        "log_every": 5,
        "eval_every": 6,
        "checkpoint": {"every": 4, "keep": 2},
        "batch_size": 16,
        "accumulate": 2,
    }
    return toy_task.config(optimizer, **{**settings, **changes})


def growing(**changes):
    """Twelve steps of a batch that grows from 2 microbatches to 4."""
    return toy(**{"steps": 15, "max_batch_size": 32, **changes})


def go(config, workdir, built=None, source=None, **kwargs):
    return train.run(config, workdir, source or toy_task.source(), built, **kwargs)


def timeless(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


def saved(workdir):
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def about(workdir, step):
    path = workdir / "checkpoints" / str(step) / "about/metadata"
    return json.loads(path.read_text())


def read(folder):
    """Arrays that Orbax has saved."""
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        handler.metadata(epath.Path(folder)).tree,
    )
    return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def arrays_of(workdir, step):
    return read(workdir / "checkpoints" / str(step) / "arrays")


def assert_same(left, right):
    """Bit for bit."""
    assert left.keys() == right.keys()
    for name, array in left.items():
        one, other = np.asarray(array), np.asarray(right[name])
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes(), name


def interrupted_at(built, position, how):
    """``built``, in which ``how`` is called before a microbatch is taken."""

    def train_batches(start):
        batches = built.task.train_batches(start)
        for number, batch in enumerate(batches, start):
            if number == position:
                how()
            yield batch

    task = dataclasses.replace(built.task, train_batches=train_batches)
    return dataclasses.replace(built, task=task)


def interrupt():
    raise KeyboardInterrupt


def cut_short(config, workdir, built, step, how=interrupt):
    """Runs until ``how`` ends it in the step after ``step``."""
    position = built.plan.position(step)
    with pytest.raises((KeyboardInterrupt, UserError)) as caught:
        go(config, workdir, interrupted_at(built, position, how))
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and its program."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    _, built = go(growing(), workdir)
    return workdir, built


def assert_ends_like(workdir, other):
    last = saved(other)[-1]
    assert timeless(workdir) == timeless(other)
    assert about(workdir, last)["fingerprints"] == about(other, last)["fingerprints"]
    assert_same(arrays_of(workdir, last), arrays_of(other, last))
    left, right = (read(folder / "params") for folder in (workdir, other))
    assert_same(left["dense"], right["dense"])


def test_the_batch_of_these_runs_grows(whole):
    counts = whole[1].plan.microbatches
    assert counts[0] == 2
    assert counts[-1] > 2


@pytest.mark.parametrize("steps", [[3], [5], [4, 6, 11]])
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
        ("lambc", {"kwargs": {}, "skip_if_unsafe": {"max_in_a_row": 2}}),
        ("acclip", {"kwargs": {"mu_dtype": "bfloat16"}}),
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


def test_a_fresh_process_traces_the_same(tmp_path, whole):
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
    message = cut_short(
        growing(), tmp_path, built, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert message.startswith("stopped by SIGTERM after step 5, which is saved")
    assert signal.getsignal(signal.SIGTERM) is before
    assert saved(tmp_path) == [4, 5]
    go(growing(), tmp_path, built)
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
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_damage_is_noticed_in_every_file(tmp_path, capsys, with_table, how):
    """What is gone on from is bit for bit what was saved, or the one before it."""
    workdir, arrays, built = with_table
    config = train.resolve(toy("adamw"), toy_task.source())
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
    config = train.resolve(toy("adamw"), toy_task.source())
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
    config = train.resolve(growing(), toy_task.source())
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


def run_in_a_process(**options):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.run_toy", json.dumps(options)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


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


@pytest.mark.parametrize(
    ("kills", "steps"),
    [(3, 100), pytest.param(20, 600, marks=pytest.mark.nightly)],
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
    ("parallel_", "fsdp"), [("jit", 2), ("shard_map", 1), ("pmap", 1)]
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
    built = program.build(train.resolve(four, source), without_dropout())
    resolved = train.resolve(four, source)
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


@pytest.mark.parametrize("name", ["every", "keep"])
def test_bad_counts_are_refused(name):
    with pytest.raises(UserError, match=rf"config.checkpoint.{name}=0: must be 1"):
        train.check(toy(checkpoint={"every": 2, "keep": 1, name: 0}))
