"""Bias and coverage of the tail estimators on laws whose index is known.

    python -m experiments.estimators --output=experiments/results/estimators

A cell is a law, how its samples depend on each other, their number, and a method. It
is `estimate_tail` with its defaults on many sets of samples. Cells go one by one to
OUTPUT.partial.jsonl, from which a killed run of the same commit goes on.
"""

from collections.abc import Sequence

from experiments.benchmarks import common, tail_estimators


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__)
    parser.add_argument(
        "--repeats",
        type=common.positive,
        default=300,
        help="Sets of samples of a cell (%(default)s).",
    )
    flags = parser.parse_args(argv)
    tail_estimators.study(flags.output, flags.repeats)


if __name__ == "__main__":
    common.run(main)
