"""What trainings of one problem by many optimizers show, beside a baseline."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common import markdown
from experiments.studies import study

BASELINES = ("momentum", "adamw")  # in every table


def best_baseline(results: Mapping[str, Mapping[str, Any]]) -> str:
    """That of the smaller loss."""
    return min(BASELINES, key=lambda name: np.mean(results[name]["losses"]))


def named(name: str, result: Mapping[str, Any]) -> str:
    """A name, with a mark where the search has found no best point inside."""
    return name if result["is_inside"] else f"{name} (edge of its grid)"


def spread(losses: np.ndarray) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{losses.mean():.3f} ± {losses.std(ddof=1):.3f}"


def points_above(result: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Percentage points that more images are right, the seeds paired."""
    points = 100 * (np.array(result["accuracies"]) - np.array(other["accuracies"]))
    return study.with_interval(study.mean_interval(points), "+.2f")


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
        difference = study.mean_interval(losses - base)
        versus = "" if name == baseline else study.with_interval(difference, "+.3f")
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
    return markdown.table([*header, "accuracy"], rows)
