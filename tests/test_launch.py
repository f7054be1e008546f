"""The launchers: what they would run is what they run, and the trainer takes it."""

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from absl import flags

from experiments import train  # noqa: F401  (defines the flags)
from tests.commands import ROOT, environment, fresh_flags
from tests.test_distributed import free_port, read
from tests.test_docs import blocks

# ml_collections loads config files in a way that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")

FOLDER = "experiments/launch"
# All that shells and YAML dislike.
RULES = r"""--config.sharding_rules=(("kernel\\b$", ('fsdp',)),)"""
TRAIN = (
    "experiments.train",
    "--config=experiments/configs/digits_zoo.py:smoke",
    "--workdir=/shared/a run",
    RULES,
)
TPU = {"PROJECT": "my-project", "ZONE": "europe-west4-b", "TPU_NAME": "slice"}
CREATE = {"ACCELERATOR_TYPE": "v5litepod-32", "RUNTIME_VERSION": "v2-alpha-tpuv5-lite"}
INSTALL = {"REPOSITORY": "https://example.com/a.git", "REVISION": "v1"}
GKE = {
    "NAME": "my-run",
    "IMAGE": "registry/image:1",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x8",
    "CHIPS_PER_HOST": "4",
    "CLAIM": "shared",
}
# Records its arguments and its input, in a line of JSON.
RECORDER = f"""#!{sys.executable}
import json, os, sys
text = "" if sys.stdin.isatty() else sys.stdin.read()
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps({{"argv": sys.argv, "stdin": text}}) + "\\n")
"""
# Starts its command twice on this machine, as Slurm starts the tasks of a step.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!
"""


def launch(script, *argv, **variables):
    return subprocess.run(
        ["bash", f"{FOLDER}/{script}", *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment(), **variables},
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


def dry(script, *argv, **variables):
    """What a launcher would run."""
    done = launch(script, *argv, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def no_cluster(tmp_path, monkeypatch):
    """A launcher with a fault must not find the programs of a real cluster."""
    folder = tmp_path / "refusing"
    folder.mkdir()
    for name in ("gcloud", "kubectl", "sbatch", "srun"):
        (folder / name).write_text("#!/bin/sh\necho refused: $0 >&2\nexit 9\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def fake(tmp_path):
    """Puts programs on the PATH; returns the variables and what was recorded."""
    folder, record = tmp_path / "bin", tmp_path / "record"
    folder.mkdir()

    def install(name, text=RECORDER):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "RECORD": str(record)}

    def recorded():
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        record.unlink()
        return [{**line, "argv": [*line["argv"][1:]]} for line in lines]

    return install, recorded


@contextlib.contextmanager
def parsed(words):
    """Flags as the trainer takes them; it knows that it is one of several processes."""
    with fresh_flags(), pytest.MonkeyPatch.context() as patch:
        argv = ["program", *words]
        patch.setattr(sys, "argv", argv)
        patch.chdir(ROOT)
        assert flags.FLAGS(argv) == ["program"]
        assert flags.FLAGS.distributed
        yield flags.FLAGS


def check_trainer(words):
    """The words are those of ``TRAIN``, unchanged by any shell."""
    assert words[0] == "experiments.train"
    with parsed(words[1:]) as values:
        assert values.workdir == "/shared/a run"
        assert values.config.sharding_rules == ((r"kernel\b$", ("fsdp",)),)


TPU_ACTIONS = [
    ("create", (), CREATE),
    ("install", (), INSTALL),
    ("run", TRAIN, {}),
    ("ssh", ("echo 'a b'",), {}),
    ("delete", (), {}),
]


@pytest.mark.parametrize(("action", "argv", "variables"), TPU_ACTIONS)
def test_tpu_vm_runs_what_its_dry_run_prints(fake, action, argv, variables):
    install, recorded = fake
    variables = {**TPU, **variables}
    printed = dry("tpu_vm.sh", action, *argv, **variables)
    path = install("gcloud")
    subprocess.run(["bash", "-c", printed], env={**os.environ, **path}, check=True)
    expected = recorded()
    done = launch("tpu_vm.sh", action, *argv, **variables, **path)
    assert done.returncode == 0, done.stderr
    assert recorded() == expected
    words = expected[0]["argv"]
    assert words[:3] == ["compute", "tpus", "tpu-vm"]
    assert {"slice", "--project=my-project", "--zone=europe-west4-b"} <= set(words)
    on_hosts = action in ("install", "run", "ssh")
    assert words[3] == ("ssh" if on_hosts else action)
    assert ("--worker=all" in words) == on_hosts


def test_tpu_vm_starts_the_trainer_on_every_host():
    [line] = dry("tpu_vm.sh", "run", *TRAIN, **TPU).splitlines()
    command = shlex.split(line)[-1].removeprefix("--command=")
    change, python = command.split(" && ")
    assert change == "cd optax_heavytail"
    assert shlex.split(python)[:2] == [".venv/bin/python", "-m"]
    check_trainer(shlex.split(python)[2:])


def test_tpu_vm_installs_what_the_hosts_shell_can_read(fake):
    install, recorded = fake
    path = install("gcloud")
    launch("tpu_vm.sh", "install", **TPU, **INSTALL, **path)
    [command] = recorded()[0]["argv"][-1:]
    command = command.removeprefix("--command=")
    subprocess.run(["bash", "-n", "-c", command], check=True)
    assert "git clone 'https://example.com/a.git' optax_heavytail" in command
    assert "git checkout --detach 'v1'" in command


def jobset(**changes):
    return yaml.safe_load(dry("gke_jobset.sh", *TRAIN, **{**GKE, **changes}))


def test_gke_has_a_pod_for_each_host_of_the_slice():
    manifest = jobset()
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest["kind"] == "JobSet"
    assert manifest["metadata"]["name"] == "my-run"
    [replicated] = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (8, 8, 0)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    [container] = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    [mount], [volume] = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    assert volume["persistentVolumeClaim"] == {"claimName": "shared"}
    assert container["command"] == ["python", "-m"]
    check_trainer(container["args"])
    assert "${" not in yaml.dump(manifest)


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"), [("2x4", "8", 1), ("4x4x8", "4", 32)]
)
def test_gke_counts_hosts(topology, chips, hosts):
    manifest = jobset(TOPOLOGY=topology, CHIPS_PER_HOST=chips)
    [replicated] = manifest["spec"]["replicatedJobs"]
    assert replicated["template"]["spec"]["parallelism"] == hosts


def test_gke_applies_what_its_dry_run_prints(fake):
    install, recorded = fake
    path = install("kubectl")
    done = launch("gke_jobset.sh", *TRAIN, **GKE, **path)
    assert done.returncode == 0, done.stderr
    printed = dry("gke_jobset.sh", *TRAIN, **GKE)
    command, _, manifest = printed.partition("\n")
    assert recorded() == [
        {"argv": shlex.split(command.removeprefix("# "))[1:], "stdin": manifest}
    ]


def test_slurm_asks_for_a_task_for_each_gpu_and_binds_none():
    text = (ROOT / FOLDER / "slurm.sbatch").read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert "gpus-per-task" not in options
    [line] = dry("slurm.sbatch", *TRAIN, SLURM_CPUS_PER_TASK="6").splitlines()
    srun, *words = shlex.split(line)
    assert srun == "srun"
    python = words.index(".venv/bin/python")
    assert set(words[:python]) == {
        "--gpu-bind=none",
        "--cpus-per-task=6",
        "--kill-on-bad-exit=1",
    }
    assert words[python + 1] == "-m"
    check_trainer(words[python + 2 :])


def finished(workdir, done):
    assert done.returncode == 0, done.stderr
    assert "devices: 2 of 2 process(es)" in done.stdout
    assert read(workdir / "metrics.jsonl")[-1]["status"] == "complete"


def slurm_job():
    """A job whose port is free: JAX takes 61,440 plus its number modulo 4,096."""
    for number in range(os.getpid() % 4096, 4096):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("", 61_440 + number))
            return str(4096 + number)
    raise AssertionError("no port is free")


@pytest.mark.nightly
def test_slurm_tasks_find_each_other(fake, tmp_path):
    install, _ = fake
    variables = {"SLURM_JOB_ID": slurm_job(), "PYTHON": sys.executable}
    argv = (*TRAIN[:2], f"--workdir={tmp_path / 'run'}")
    done = launch("slurm.sbatch", *argv, **variables, **install("srun", SRUN))
    finished(tmp_path / "run", done)


@pytest.mark.nightly  # test_distributed has two processes of its own
def test_local_processes_find_each_other(tmp_path):
    variables = {"PROCESSES": "2", "PORT": str(free_port()), "PYTHON": sys.executable}
    argv = (*TRAIN[:2], f"--workdir={tmp_path / 'run'}")
    finished(tmp_path / "run", launch("local.sh", *argv, **variables))


def test_local_numbers_its_processes():
    lines = dry("local.sh", *TRAIN, PROCESSES="3", DEVICES="4").splitlines()
    assert len(lines) == 3
    for index, line in enumerate(lines):
        words = shlex.split(line)
        assert "XLA_FLAGS=--xla_force_host_platform_device_count=4" in words
        check_trainer(words[words.index("-m") + 1 :])
        assert f"--process_id={index}" in words
        assert "--num_processes=3" in words


def test_local_ends_with_the_first_process_that_fails(tmp_path):
    python = tmp_path / "python"  # process 0 fails, and process 1 does not end
    python.write_text(
        '#!/usr/bin/env bash\n[[ "$*" == *--process_id=0 ]] && exit 3\nexec sleep 90\n'
    )
    python.chmod(0o755)
    started = time.monotonic()
    done = launch("local.sh", *TRAIN, PROCESSES="2", PYTHON=str(python))
    assert done.returncode == 3
    assert time.monotonic() - started < 60


WITHOUT = [
    ("local.sh", TRAIN, {}, "PROCESSES"),
    ("tpu_vm.sh", ("run", *TRAIN), TPU, "PROJECT"),
    ("tpu_vm.sh", ("run", *TRAIN), TPU, "ZONE"),
    ("tpu_vm.sh", ("run", *TRAIN), TPU, "TPU_NAME"),
    ("tpu_vm.sh", ("create",), {**TPU, **CREATE}, "ACCELERATOR_TYPE"),
    ("tpu_vm.sh", ("create",), {**TPU, **CREATE}, "RUNTIME_VERSION"),
    ("tpu_vm.sh", ("install",), {**TPU, **INSTALL}, "REPOSITORY"),
    ("tpu_vm.sh", ("install",), {**TPU, **INSTALL}, "REVISION"),
    *(("gke_jobset.sh", TRAIN, GKE, name) for name in GKE),
]


@pytest.mark.parametrize(("script", "argv", "variables", "missing"), WITHOUT)
def test_a_missing_parameter_is_named(fake, script, argv, variables, missing):
    install, _ = fake
    path = install("gcloud") | install("kubectl")
    given = {name: value for name, value in variables.items() if name != missing}
    done = launch(script, *argv, **given, **path)
    assert done.returncode != 0
    assert f"{missing}: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path(path["RECORD"]).exists()


@pytest.mark.parametrize(
    ("script", "argv", "variables", "message"),
    [
        ("local.sh", (), {"PROCESSES": "2"}, "no command: must be a module"),
        ("slurm.sbatch", ("train",), {}, "train: must be a module"),
        ("tpu_vm.sh", (), TPU, "no command: must be create, install"),
        ("tpu_vm.sh", ("run",), TPU, "no command: must be a module"),
        ("gke_jobset.sh", TRAIN, {**GKE, "TOPOLOGY": "4by8"}, "TOPOLOGY=4by8: must"),
        ("gke_jobset.sh", TRAIN, {**GKE, "CHIPS_PER_HOST": "5"}, "must divide the 32"),
        ("gke_jobset.sh", TRAIN, {**GKE, "CHIPS_PER_HOST": "x"}, "must be a number"),
    ],
)
def test_bad_input_is_refused(script, argv, variables, message):
    done = launch(script, *argv, **variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# Runs the batch script that it is given, with what follows.
SBATCH = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
exec bash "$@"
"""
GUIDE = [
    block
    for block in blocks(ROOT / "docs/guide/pods.md")
    if block.language == "bash" and FOLDER in block.text
]


@pytest.mark.parametrize("block", GUIDE, ids=lambda block: block.place)
def test_the_guide_has_commands_that_launchers_take(fake, block):
    """Each block runs dry, and the trainer takes the flags that come out of it."""
    install, _ = fake
    variables = {**environment(), **install("sbatch", SBATCH), "DRY_RUN": "1"}
    lines = [line for line in block.text.splitlines() if "-m venv" not in line]
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=variables,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    commands = trainer_commands(done.stdout)
    assert commands
    for module, *words in commands:
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
        with parsed(words) as values:
            assert values.config.target_devices in (1, 32, 64)


def trainer_commands(printed):
    """What follows ``python -m`` in the output of a dry run."""
    if "kind: JobSet" in printed:
        [replicated] = yaml.safe_load(printed)["spec"]["replicatedJobs"]
        [container] = replicated["template"]["spec"]["template"]["spec"]["containers"]
        return [container["args"]]
    found = []
    for line in printed.splitlines():
        words = shlex.split(line)
        if words[0] == "gcloud":
            words = shlex.split(words[-1])
        if "-m" in words and words[words.index("-m") + 1].startswith("experiments."):
            found.append(words[words.index("-m") + 1 :])
    return found
