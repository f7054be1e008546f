"""Every test, marked or not, under XLA's own code generator; then the planted faults.

    python -m tests.nightly

The exit status is 0 if all tests pass and all faults are caught.
"""

import os
import subprocess
import sys

from tests import compilation


def main() -> int:
    """Runs both, also when the first fails."""
    tests = [sys.executable, "-m", "pytest", "-n", "2"]
    tests += ["-m", "nightly or not nightly"]
    environment = os.environ | {compilation.AS_USERS_DO: "1"}
    failed = subprocess.run(tests, check=False, env=environment).returncode
    faults = [sys.executable, "-m", "tests.planted_faults"]
    return failed or subprocess.run(faults, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
