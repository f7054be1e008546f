"""Runs of the toy task that are interrupted, and what they leave behind."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from experiments.common.errors import UserError
from experiments.training import trainer
from experiments.training.job import Job
from experiments.training.programs import Programs
from tests import toy_task

# Also the commit, which may be made while the tests run, and what is made of them all.
TIMES = ("time", "train_seconds", "compile_seconds", "steps_per_second")
TIMES += ("commit", "seal")
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


def run_job(config, workdir, source, program=None, **kwargs):
    """The final record, and the program if one was needed."""
    job, programs = Job.of(config).on(source), Programs(source)
    if program is not None:
        programs.keep(job, program)
    outcome = trainer.run(job, workdir, programs, **kwargs)
    return outcome.record, programs.last


def go(config, workdir, built=None, source=None, **kwargs):
    return run_job(config, workdir, source or toy_task.source(), built, **kwargs)


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


def assert_ends_like(workdir, other):
    last = saved(other)[-1]
    assert timeless(workdir) == timeless(other)
    assert about(workdir, last)["fingerprints"] == about(other, last)["fingerprints"]
    assert_same(arrays_of(workdir, last), arrays_of(other, last))
    left, right = (read(folder / "params") for folder in (workdir, other))
    assert_same(left["dense"], right["dense"])
