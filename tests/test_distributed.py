"""Two processes of four devices each train as one process of eight does."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import tasks, train
from experiments.common import distributed
from experiments.common.errors import UserError
from experiments.configs import digits_zoo
from experiments.runs import folders
from tests.commands import ROOT, environment, refused
from tests.in_time import in_time
from tests.toy_runs import run_job

ZOO = "experiments/configs/digits_zoo.py"

# ml_collections loads config files in a way that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(workdir, num_devices, *argv, second=()):
    """The trainer as two processes on this machine."""
    port = free_port()
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "experiments.train",
                f"--config={ZOO}:smoke",
                f"--workdir={workdir}",
                f"--coordinator=127.0.0.1:{port}",
                "--num_processes=2",
                f"--process_id={index}",
                *argv,
                *(second if index else ()),
            ],
            cwd=ROOT,
            env=environment(num_devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def finish(processes):
    return [process.communicate(timeout=300) for process in processes]


WAYS = {
    "fsdp": {
        "checkpoint.every": 2,
        "fsdp": 8,
        "sharding_rules": (("kernel$", ("fsdp",)),),
        "max_batch_size": 128,
        "accumulate": 2,
    },
    "pmap": {"parallel": "pmap", "accumulate": 2},
}


@pytest.mark.parametrize("way", in_time(WAYS, "fsdp".__eq__))
def test_two_processes_train_as_one(tmp_path, way):
    config = digits_zoo.get_config("smoke")
    changes = {"steps": 4, **way}
    config.update({k: v for k, v in changes.items() if "." not in k})
    argv = [f"--config.{name}={value}" for name, value in changes.items()]
    processes = start(tmp_path / "two", 4, *argv)
    run_job(config, tmp_path / "one", tasks.load(config))
    outputs = finish(processes)
    assert [p.returncode for p in processes] == [0, 0], outputs
    # One process alone speaks and writes.
    assert "validation loss" in outputs[0][0]
    assert "validation loss" not in outputs[1][0]
    assert "8 of 2 process(es)" in outputs[0][0]
    check_equal(tmp_path)
    if "checkpoint.every" in changes:
        go_on_alone(tmp_path / "two", config)
        check_equal(tmp_path)


def go_on_alone(workdir, config):
    """Takes the last steps of the run back, and makes them in one process."""
    kept = {int(path.name): path for path in (workdir / "checkpoints").iterdir()}
    last = max(kept)
    assert len(kept) >= 2
    shutil.rmtree(kept[last])
    shutil.rmtree(workdir / "params")
    metrics = workdir / "metrics.jsonl"
    *lines, _ = metrics.read_text().splitlines(keepends=True)  # but the final one
    metrics.write_text("".join(lines))
    run_job(config, workdir, tasks.load(config))
    assert not list(workdir.glob("interrupted-*"))


def check_equal(tmp_path):
    """The records and the parameters of the two folders are those of one run."""
    records = [read(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert [r["kind"] for r in records[0]] == [r["kind"] for r in records[1]]
    for one, two in zip(*records, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    with ocp.StandardCheckpointer() as checkpointer:
        one, two = (
            jax.tree.leaves(checkpointer.restore(tmp_path / name / "params"))
            for name in ("one", "two")
        )
    for left, right in zip(one, two, strict=True):
        # Sums over the processes in another order.
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def start_endless(workdir):
    """Two processes that have made their first steps."""
    endless = ("--config.steps=1000000", "--heartbeat_seconds=10")
    processes = start(workdir, 2, *endless)
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.2)
    return processes


@pytest.mark.nightly  # it waits for three heartbeats
def test_the_others_stop_when_a_process_dies(tmp_path):
    processes = start_endless(tmp_path)
    processes[1].kill()
    # Three heartbeats: one to miss, and the others' time to hear of it.
    assert processes[0].wait(timeout=30) != 0
    finish(processes)


@pytest.mark.nightly
def test_sigterm_to_one_process_stops_all_after_the_same_step(tmp_path):
    processes = start_endless(tmp_path)
    processes[1].terminate()
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [1, 1], outputs
    lines = {errors.strip().splitlines()[-1] for _, errors in outputs}
    (line,) = lines
    found = re.fullmatch(r"error: stopped by SIGTERM after step (\d+), .*", line)
    assert found, line
    steps = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert found[1] in steps


@pytest.mark.nightly
def test_what_the_main_process_refuses_ends_all(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}")
    processes = start(tmp_path, 1, "--config.parallel=shard_map")
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [1, 1]
    for _, errors in outputs:
        assert "metrics.jsonl without config.json" in errors


def test_what_one_process_refuses_ends_all(tmp_path):
    processes = start(tmp_path / "run", 1, second=("--config.data.path=no/such",))
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [1, 1]
    errors = [errors.strip().splitlines()[-1] for _, errors in outputs]
    assert errors[1].startswith("error: config.data.path=no/such: No such file")
    assert errors[0] == errors[1].replace("error: ", "error: process 1: ")
    assert not (tmp_path / "run").exists()


def test_processes_with_other_configs_are_refused(monkeypatch):
    configs = [digits_zoo.get_config("smoke") for _ in range(3)]
    values = [json.loads(config.to_json()) for config in configs]
    monkeypatch.setattr(distributed, "gather", lambda value: values)
    folders.check_agreement(configs[0])
    values[2]["data"]["sha256"] = "ab"
    with pytest.raises(
        UserError, match=r"process 2 .*: config.data.sha256 was , now ab"
    ):
        folders.check_agreement(configs[0])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--coordinator=a:1",), "--num_processes, --process_id: needed too"),
        (
            ("--coordinator=a:1", "--num_processes=2", "--process_id=2"),
            "--process_id=2: must be below --num_processes=2",
        ),
        (("--heartbeat_seconds=1",), "heartbeat_seconds"),
        (("--num_processes=0",), "num_processes"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, argv, message):
    config = (f"--config={ZOO}:smoke", f"--workdir={tmp_path}")
    assert message in refused(train.main, *config, *argv)


def test_one_that_ends_early_does_not_wait_long_for_the_others(monkeypatch, tmp_path):
    seen = {}

    def initialize(*args, **kwargs):
        seen.update(kwargs)
        raise RuntimeError("seen")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    config = (f"--config={ZOO}:smoke", f"--workdir={tmp_path}")
    argv = ("--coordinator=a:1", "--num_processes=2", "--process_id=1")
    assert "--distributed: seen" in refused(train.main, *config, *argv)
    assert seen["shutdown_timeout_seconds"] == seen["heartbeat_timeout_seconds"] == 100


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, "Slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
    ],
)
def test_tasks_of_a_launcher_must_say_that_they_are_one_run(
    monkeypatch, tmp_path, variables, launcher
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = (f"--config={ZOO}:smoke", f"--workdir={tmp_path}")
    message = refused(train.main, *config)
    assert f"{launcher} started 4 tasks: add --distributed" in message


def test_an_allocation_without_a_step_is_one_process(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    distributed.refuse_launchers()


def test_one_process_does_for_itself_what_the_main_one_does_for_all():
    assert distributed.by_main(lambda: {"a": [1, None]}) == {"a": [1, None]}
    with pytest.raises(UserError, match="no"):
        distributed.by_main(raising)
    assert distributed.is_main()


def raising():
    raise UserError("no")
