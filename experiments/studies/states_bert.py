"""The small BERT on Python's own texts, with its optimizer's state in one byte."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import optax_heavytail as oht
from experiments.data import text
from experiments.studies import bert, comparison, intervals, study, training, wikitext
from experiments.studies.study import Cell, Record
from experiments.studies.training import Contestant, Point, Problem

NETWORK = "BERT of 2 layers"
STEPS, BATCH_SIZE = 500, 64  # fewer than those of bert_tiny.py:quick, as many rows
RATE = 4e-3  # the one there, the best of a grid
SEEDS = (500, 501, 502, 503, 504)
METHODS = {"AdamW": "adamw"}  # in `bert`
PLAIN, BYTE = "float32", "one byte"


def problem(steps: int = STEPS) -> Problem:
    """The network on the texts, evaluated at the end on those that were held out."""
    split = text.split_documents(text.load_corpus("", "").documents, 0)
    tokenizer = text.train_tokenizer(split.train, wikitext.VOCABULARY)
    rows, held_out = (
        text.windows(text.encode(tokenizer, documents), wikitext.LENGTH)
        for documents in (split.train, split.validation)
    )
    (validation,) = text.validation_batches(
        held_out, len(held_out), 0, wikitext.VOCABULARY
    )
    return wikitext.of_rows(rows, validation, steps, BATCH_SIZE, evaluations=1)


def measure(method: str, state: str) -> dict[str, Any]:
    """The held-out loss of every seed, and the bytes of the state."""
    make = bert.CONTESTANTS[METHODS[method]].make
    if state == BYTE:
        make = _compressed(make)
    found = problem()
    run = training.runner(Contestant(make, RATE), found)
    losses = run([Point(RATE, None)], SEEDS).losses[0, :, -1]
    params, _ = jax.eval_shape(found.init, jax.random.key(0))
    used = jax.eval_shape(make(RATE).init, params)
    return {
        "losses": study.rounded(losses),
        "bytes": round(_size(used, bytes_each=True) / _size(params), 3),
    }


def _compressed(make: Any) -> Any:
    return lambda rate: oht.compress_state(make(rate))


def _size(tree: Any, *, bytes_each: bool = False) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(x.size * (x.dtype.itemsize if bytes_each else 1) for x in leaves)


def cells() -> list[Cell]:
    """Every method with both states."""
    about = {"network": NETWORK, "seeds": len(SEEDS), "steps": STEPS, "rate": RATE}
    return [
        Cell(
            {"method": method, "state": state, **about},
            functools.partial(measure, method, state),
        )
        for method in METHODS
        for state in (PLAIN, BYTE)
    ]


def table(records: Sequence[Record]) -> str:
    """Losses, and differences of the seeds from those of float32."""
    results = {
        (r["settings"]["method"], r["settings"]["state"]): r["result"] for r in records
    }
    rows: list[list[Any]] = []
    for (method, state), result in results.items():
        losses = np.array(result["losses"])
        base = np.array(results[method, PLAIN]["losses"])
        versus = "" if state == PLAIN else comparison.difference(losses, base, "+.4f")
        spread = comparison.spread(losses)
        rows.append([method, state, f"{result['bytes']:.2f}", spread, versus])
    header = ["optimizer", "state", "bytes", "loss", "- float32's"]
    return intervals.table(header, rows)
