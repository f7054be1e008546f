"""Every test, marked or not, under XLA's own code generator; then the planted faults.

    python -m tests.nightly

The exit status is 0 if all tests pass and all faults are caught. At its end it prints
which steps and compilations cost another share than the committed table says; a busy
machine does that too, so it fails nothing.
"""

import os
import subprocess
import sys
import tempfile

from tests import compilation


def main() -> int:
    """Runs both, also when the first fails."""
    tests = [sys.executable, "-m", "pytest", "-n", "2"]
    tests += ["-m", "nightly or not nightly"]
    environment = os.environ | {compilation.AS_USERS_DO: "1"}
    failed = subprocess.run(tests, check=False, env=environment).returncode
    faults = [sys.executable, "-m", "tests.planted_faults"]
    failed = failed or subprocess.run(faults, check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        standing = [sys.executable, "-m", "experiments.benchmarks.standing"]
        subprocess.run([*standing, f"--output={folder}/standing"], check=False)
    return failed


if __name__ == "__main__":
    sys.exit(main())
