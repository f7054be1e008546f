"""Trains the toy task in a process of its own, for tests that kill or starve it.

python -m tests.run_toy '{"workdir": ..., "steps": ..., "max_file_bytes": ...}'
"""

import json
import resource
import signal
import sys
from pathlib import Path

from experiments.common import cli
from tests import toy_task
from tests.toy_runs import run_job


def config(steps):
    return toy_task.config(
        "acclip",
        steps=steps,
        log_every=7,
        eval_every=10,
        checkpoint={"every": 2, "keep": 2},
    )


def main(options):
    if options.get("max_file_bytes"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = options["max_file_bytes"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    workdir, built = Path(options["workdir"]), None
    for name in options["runs"]:
        _, built = run_job(
            config(options["steps"]), workdir / name, toy_task.source(), built
        )


if __name__ == "__main__":
    given = json.loads(sys.argv.pop())
    sys.argv += ["--config=experiments/configs/bert_tiny.py", "--workdir=unused"]
    cli.run(lambda: main(given))
