"""Writes checkpoints of this version, for later ones to read.

python -m tests.make_checkpoint_fixture tests/fixtures/checkpoints_0.1.0.tar.gz
"""

import sys
import tarfile
import tempfile
from pathlib import Path

from tests import toy_task
from tests.toy_runs import run_job

OPTIMIZERS = {
    "acclip": {"kwargs": {}},
    "acclip_bfloat16": {"transform": "acclip", "kwargs": {"mu_dtype": "bfloat16"}},
    "lambc": {"kwargs": {}},
    "neumann": {"kwargs": {"burn_in_steps": 1}},
    "skip_if_unsafe": {
        "transform": "adamw",
        "kwargs": {},
        "skip_if_unsafe": {"max_in_a_row": 2},
    },
}


def config(name, steps=6):
    chosen = toy_task.config(steps=steps, log_every=2, eval_every=6)
    chosen.optimizers.adamw = {
        "transform": name,
        "learning_rate": 0.05,
        **OPTIMIZERS[name],
    }
    return chosen


def main(target):
    with tempfile.TemporaryDirectory() as folder, tarfile.open(target, "w:gz") as out:
        for name in OPTIMIZERS:
            workdir = Path(folder) / name
            run_job(config(name, steps=3), workdir, toy_task.source())
            for part in ("config.json", "checkpoints/3"):
                out.add(workdir / part, f"{name}/{part}")


if __name__ == "__main__":
    main(sys.argv[1])
