"""What trainings of one problem by many optimizers show, beside a baseline."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.studies import intervals, training
from experiments.studies.intervals import Difference

BASELINES = ("momentum", "adamw")  # in every table


def best_baseline(results: Mapping[str, Mapping[str, Any]]) -> str:
    """That of the smaller loss."""
    return min(BASELINES, key=lambda name: np.mean(results[name]["losses"]))


def named(name: str, result: Mapping[str, Any]) -> str:
    """A name, with a mark where the search has found no best point inside."""
    return name if result["is_inside"] else f"{name} (edge of its grid)"


def lost(*runs: np.ndarray) -> str:
    """How many of the seeds some run has lost; empty if none."""
    number = int(np.sum(np.any(np.array(runs) >= training.LOST, axis=0)))
    return f"{number} of {len(runs[0])} lost" if number else ""


def spread(losses: np.ndarray) -> str:
    """Mean and standard deviation over the seeds, or how many are lost."""
    return lost(losses) or f"{losses.mean():.3f} ± {losses.std(ddof=1):.3f}"


def difference(
    losses: np.ndarray, others: np.ndarray, form: str = "+.3f"
) -> Difference | str:
    """Of losses seed by seed, or how many seeds have none."""
    return lost(losses, others) or Difference(losses - others, form)


def points_above(result: Mapping[str, Any], other: Mapping[str, Any]) -> Difference:
    """Percentage points that more images are right, the seeds paired."""
    points = 100 * (np.array(result["accuracies"]) - np.array(other["accuracies"]))
    return Difference(points, "+.2f")


def training_table(results: Mapping[str, Mapping[str, Any]], baseline: str) -> str:
    """Losses of fresh seeds, and how they compare with the baseline's.

    Args:
      results: what `tuning.tune_and_run` returns, by optimizer.
      baseline: one of them, whose losses are taken from the others' seed by seed.

    Returns:
      A Markdown table of one row for each optimizer.
    """
    base = np.array(results[baseline]["losses"])
    rows = []
    for name, result in results.items():
        losses = np.array(result["losses"])
        versus = "" if name == baseline else difference(losses, base)
        threshold = result["threshold"]
        accuracy = np.mean(result["accuracies"])
        rows.append(
            [
                named(name, result),
                f"{result['rate']:.3g}",
                "" if threshold is None else f"{threshold:.3g}",
                spread(losses),
                versus,
                f"{accuracy:.1%}",
            ]
        )
    header = ["optimizer", "rate", "threshold", "loss", f"minus {baseline}'s"]
    return intervals.table([*header, "accuracy"], rows)
