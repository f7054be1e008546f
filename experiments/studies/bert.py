"""Does adaptive clipping train a BERT better than Adam and momentum SGD do?"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optax

import optax_heavytail as oht
from experiments.studies import charts, comparison, tuning, wikitext
from experiments.studies.study import Cell, Record, Study
from experiments.studies.training import Contestant

BASELINE = "adamw"


def _adamw(rate: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=1e-2, mask=oht.decay_mask)


def _clipped_adamw(rate: Any, threshold: Any) -> optax.GradientTransformation:
    return optax.chain(oht.clip_by_norm(threshold), _adamw(rate))


def _clipped_sgd(rate: Any, threshold: Any) -> optax.GradientTransformation:
    return optax.chain(oht.clip_by_norm(threshold), optax.sgd(rate, momentum=0.9))


def _acclip(rate: Any, alpha: float) -> optax.GradientTransformation:
    return oht.acclip(
        rate,
        alpha=alpha,
        eps=1e-8,
        weight_decay=1e-2,
        mask=oht.decay_mask,
        normalize=True,
    )


def _lambc(rate: Any) -> optax.GradientTransformation:
    return oht.lambc(rate, weight_decay=1e-2, mask=oht.decay_mask)


# Middles of grids; one whose best point is on its edge is moved.
CONTESTANTS = {
    "adamw": Contestant(_adamw, 4e-3),
    "momentum": Contestant(functools.partial(optax.sgd, momentum=0.9), 0.4),
    "gclip": Contestant(oht.gclip, 2.0, 1.0),
    "acclip": Contestant(functools.partial(_acclip, alpha=1.0), 4e-3),
    "lambc": Contestant(_lambc, 2e-2),
    "adamw after clip": Contestant(_clipped_adamw, 4e-3, 1.0),
    "acclip, alpha 1.5": Contestant(functools.partial(_acclip, alpha=1.5), 4e-3),
    "acclip, alpha 2": Contestant(functools.partial(_acclip, alpha=2.0), 4e-3),
    "acclip, literal": Contestant(oht.acclip, 4.0),
    "momentum after clip": Contestant(_clipped_sgd, 0.4, 1.0),
}


def measure(name: str, data: Path) -> dict[str, Any]:
    """One optimizer, tuned and with fresh seeds."""
    result = tuning.tune_and_run(
        CONTESTANTS[name], wikitext.problem(data), wikitext.PROTOCOL
    )
    return result | {"token_frequencies": wikitext.load(data)[2]}


def cells(scale: str, data: Path) -> list[Cell]:
    """Every optimizer; the same at each scale."""
    del scale
    about = {"steps": wikitext.STEPS, "corpus": "wikitext-2"}
    return [
        Cell({"optimizer": name} | about, functools.partial(measure, name, data))
        for name in CONTESTANTS
    ]


def _results(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    return {record["settings"]["optimizer"]: record["result"] for record in records}


def tables(records: Sequence[Record]) -> dict[str, str]:
    """The blocks of the page."""
    results = _results(records)
    baseline = next(iter(results.values()))["token_frequencies"]
    return {
        "losses": comparison.training_table(results, BASELINE),
        "frequencies": f"Token frequencies alone: {baseline:.3f} nats.",
    }


def pictures(records: Sequence[Record]) -> dict[str, bytes]:
    """The figures of the page."""
    name = "validation loss, nats per masked token"
    return {"bert.png": charts.trainings(_results(records), name)}


STUDY = Study(cells, tables, pictures)
