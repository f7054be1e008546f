"""Measures a study again, and writes its page's tables and figures.

python -m experiments.reproduce theory --scale=cpu

What is measured already is used again: delete the raw results to measure anew. Some
studies need data that the project does not have: docs/evidence/protocol.md says which.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common.errors import UserError
from experiments.studies import catalogue, study


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("name", choices=catalogue.STUDIES)
    made.add_argument("--scale", choices=study.SCALES, default="cpu")
    made.add_argument("--data", type=Path, default=Path("data"), help="folder")
    return made


def main(argv: Sequence[str]) -> None:
    """Reproduces as the flags say."""
    given = parser().parse_args(argv)
    catalogue.reproduce(given.name, given.scale, given.data, study.RESULTS, study.PAGES)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
