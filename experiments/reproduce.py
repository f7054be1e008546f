"""Measures a study again, and writes its page's tables and figures.

python -m experiments.reproduce theory --scale=cpu

What is measured already is used again: delete the raw results to measure anew. Some
studies need data that the project does not have: docs/evidence/protocol.md says which.
"""

import sys
from collections.abc import Sequence

from experiments.common import commands, inputs
from experiments.studies import catalogue, study


def parser() -> commands.Parser:
    """The flags."""
    made = commands.Parser(__doc__)
    made.add_argument(
        "name",
        choices=catalogue.STUDIES,
        metavar="study",
        help=f"One of {', '.join(catalogue.STUDIES)}.",
    )
    made.add_argument(
        "--scale",
        choices=study.SCALES,
        default="cpu",
        help="Which of its sizes to measure (%(default)s).",
    )
    made.add_argument(
        "--data",
        default="data",
        help="Folder of the data sets that some studies need (%(default)s).",
    )
    return made


def main(argv: Sequence[str]) -> None:
    """Reproduces as the flags say."""
    given = parser().parse_args(argv)
    data = inputs.local("--data", given.data)
    page = catalogue.reproduce(
        given.name, given.scale, data, study.RESULTS, study.PAGES
    )
    print(f"written: {page}")


if __name__ == "__main__":
    with commands.one_line_errors():
        main(sys.argv[1:])
