"""The tables of the questions: scores beside guesses, and what pre-training changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import markdown
from experiments.studies import intervals
from experiments.studies.intervals import Difference
from experiments.studies.study import Record

GUESSES, PRETRAINING = "guesses", "pre-training"
BASELINE = "adamw after clip"
PRETRAINED, RANDOM = "pre-trained", "random weights"
STARTS = (PRETRAINED, RANDOM)
SCORES = ("exact_match", "f1")
CHANCE = "random span"

Run = Mapping[str, Any]  # of `squad.measure`


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    by_what = {
        record["settings"]["what"]: record["result"]
        for record in records
        if "what" in record["settings"]
    }
    runs = {
        (record["settings"]["optimizer"], record["settings"]["start"]): record["result"]
        for record in records
        if "optimizer" in record["settings"]
    }
    guesses = by_what[GUESSES]
    return {
        "scores": scores(runs, guesses),
        "differences": differences(runs, guesses),
        "losses": losses(runs),
        "tuning": tuning(runs),
        "guesses": said_of_guesses(guesses),
        "pretraining": said_of_pretraining(by_what[PRETRAINING]),
    }


def scores(runs: Mapping[tuple[str, str], Run], guesses: Mapping[str, Any]) -> str:
    """Exact match and F1 of the test articles, with intervals over the seeds."""
    rows: list[list[Any]] = [
        [name, "", "", *(f"{guess[score]:.2f}" for score in SCORES)]
        for name, guess in guesses["scores"].items()
    ]
    for (name, start), result in runs.items():
        found = [
            intervals.with_interval(
                intervals.mean_interval(of_seeds(result, score)), ".2f"
            )
            for score in SCORES
        ]
        rate = f"{result['rate']:.3g}"
        rows.append([marked(name, result), start, rate, *found])
    headings = ["answers of", "start", "rate", "exact match, %", "F1, %"]
    return markdown.table(headings, rows)


def differences(runs: Mapping[tuple[str, str], Run], guesses: Mapping[str, Any]) -> str:
    """Of F1: over the seeds, the articles as they are, and over the articles."""
    rows: list[list[Any]] = []
    for other in dict.fromkeys((CHANCE, best_guess(guesses))):
        guess = guesses["scores"][other]
        articles = np.array(guess["by_article"]["f1"])
        for key, result in runs.items():
            differing = of_seeds(result, "f1") - guess["f1"]
            rows.append([", ".join(key), other, *both(differing, result, articles)])
    for one, other in pairs(runs):
        differing = of_seeds(runs[one], "f1") - of_seeds(runs[other], "f1")
        articles = of_articles(runs[other])
        rows.append(
            [*map(", ".join, (one, other)), *both(differing, runs[one], articles)]
        )
    headings = ["F1 of", "minus that of", "over seeds", "over articles"]
    return intervals.table(headings, rows)


def both(over_seeds: np.ndarray, result: Run, articles: np.ndarray) -> list[Difference]:
    """Differences of the seeds, and of the articles from those of another."""
    found = over_seeds, of_articles(result) - articles
    return [Difference(values, "+.2f") for values in found]


def pairs(runs: Mapping[tuple[str, str], Run]) -> list[tuple[tuple[str, str], ...]]:
    """What pre-training changes, then what the optimizer does."""
    names = list(dict.fromkeys(name for name, _ in runs))
    found = [((name, PRETRAINED), (name, RANDOM)) for name in names]
    others = [name for name in names if name != BASELINE]
    found += [((x, start), (BASELINE, start)) for x in others for start in STARTS]
    return [pair for pair in found if set(pair) <= set(runs)]


def losses(runs: Mapping[tuple[str, str], Run]) -> str:
    """What the training was about, at its end, and on the test articles."""
    names = ("train_loss", "loss")
    rows = [
        [
            *key,
            *(f"{of_seeds(result, name).mean():.2f}" for name in names),
            f"{of_seeds(result, 'exact_spans').mean():.1%}",
        ]
        for key, result in runs.items()
    ]
    headings = ["optimizer", "start", "training loss", "test loss", "exact spans"]
    return markdown.table(headings, rows)


def tuning(runs: Mapping[tuple[str, str], Run]) -> str:
    """F1 of the validation articles at every rate of the last grid."""
    rows = [
        [
            *key,
            ", ".join(f"{rate:.3g}" for rate in result["rates"]),
            ", ".join(f"{f1:.1f}" for f1 in result["validation_f1"]),
            result["moves"],
        ]
        for key, result in runs.items()
    ]
    headings = ["optimizer", "start", "rates", "F1, %", "moves of the grid"]
    return markdown.table(headings, rows)


def said_of_guesses(guesses: Mapping[str, Any]) -> str:
    """What the guesses are, in words."""
    number = guesses["questions"]
    return (
        f"Questions: {number['train']} for training, {number['validation']} for "
        f"choosing the rate, {number['test']} for the test. The constant span begins "
        f"after {guesses['place']:.0%} of the words and has {guesses['length']}; the "
        f"constant answer is “{guesses['answer']}”, which {guesses['answer_count']} "
        "training questions have."
    )


def said_of_pretraining(result: Mapping[str, Any]) -> str:
    """How far the encoder came, in words."""
    frequencies = result["baselines"]["token frequencies"]
    return (
        f"Pre-training: {result['parameters']:,} parameters, on "
        f"{result['train_tokens']:,} tokens of {result['vocabulary']:,} kinds; its "
        f"validation loss is {result['loss']:.2f} nats per masked token, where the "
        f"frequencies of the tokens alone give {frequencies:.2f}, and "
        f"{result['accuracy']:.1%} of the masked tokens are right."
    )


def of_seeds(result: Run, name: str) -> np.ndarray:
    """A number of each seed."""
    return np.array([seed[name] for seed in result["seeds"]])


def of_articles(result: Run) -> np.ndarray:
    """F1 of each article, the mean over the seeds."""
    return np.mean([seed["by_article"]["f1"] for seed in result["seeds"]], axis=0)


def best_guess(guesses: Mapping[str, Any]) -> str:
    """That of the highest F1."""
    found = guesses["scores"]
    return max(found, key=lambda name: found[name]["f1"])


def marked(name: str, result: Run) -> str:
    """A name, with a mark where the search has found no best rate inside."""
    return name if result["is_inside"] else f"{name} (edge of its grid)"
