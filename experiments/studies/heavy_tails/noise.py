"""The tails of a workload's own gradient noise, beside those of Gaussian noise."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from experiments.common import markdown
from experiments.studies import study
from experiments.studies.study import Cell, Record
from experiments.studies.training import Problem, PyTree, warm_cosine
from optax_heavytail import diagnostics
from optax_heavytail.diagnostics import TailEstimate

SEED = 1000
BATCHES = 400


class Look(NamedTuple):
    """A problem, and after how many steps of AdamW behind a clip of 1."""

    problem: Callable[[], Problem]
    rate: float
    steps: int


def cells(workload: str, looks: Mapping[str, Look]) -> list[Cell]:
    """One measurement for each point of training, named by where it is."""
    return [
        Cell(
            {"workload": workload, "noise": name, "steps": look.steps}
            | {"batches": BATCHES},
            functools.partial(measure, look),
        )
        for name, look in looks.items()
    ]


def measure(look: Look) -> dict[str, Any]:
    """Indices of the norms over the batches, and of single coordinates."""
    problem = look.problem()
    data = jax.tree.map(jax.numpy.asarray, problem.data)
    params, model_state = _trained(problem, look, data)

    @jax.jit
    def gradient(params: PyTree, batch: PyTree) -> PyTree:
        return jax.grad(problem.loss, has_aux=True)(params, model_state, data, batch)[0]

    found = diagnostics.diagnose(gradient, params, _batches(problem, BATCHES))
    whole = found.whole
    return {
        "norms": _plain(whole.norms.get("hill")),
        "entries": _plain(whole.entries),
        "label": whole.verdict.label,
        "signal_to_noise": study.rounded([whole.noise.signal_to_noise])[0],
    }


def _trained(problem: Problem, look: Look, data: PyTree) -> tuple[PyTree, PyTree]:
    factor = warm_cosine(problem.steps)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda count: look.rate * factor(count)),
    )
    params, model_state = jax.jit(problem.init)(problem.key(SEED))
    step = jax.jit(functools.partial(_step, problem.loss, tx, data))
    carry = params, model_state, tx.init(params)
    batches = problem.batches(SEED)
    for i in range(look.steps):
        carry = step(carry, jax.tree.map(lambda x, i=i: x[i], batches))
    return carry[0], carry[1]


def _step(
    loss: Callable[..., Any], tx: Any, data: PyTree, carry: PyTree, batch: PyTree
) -> PyTree:
    params, model_state, state = carry
    grads, model_state = jax.grad(loss, has_aux=True)(params, model_state, data, batch)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), model_state, state


def _batches(problem: Problem, number: int) -> list[PyTree]:
    """So many independent batches, of as many seeds as it takes."""
    found: list[PyTree] = []
    for seed in range(SEED + 1, SEED + 100):
        drawn = problem.batches(seed)
        count = len(jax.tree.leaves(drawn)[0])
        found += [jax.tree.map(lambda x, i=i: x[i], drawn) for i in range(count)]
        if len(found) >= number:
            break
    return found[:number]


def _plain(estimate: TailEstimate | None) -> dict[str, Any] | None:
    if estimate is None or estimate.index is None:
        return None
    ends = (estimate.index, estimate.low, estimate.high)
    null = (estimate.null_low, estimate.null_high)
    return {
        "index": [round(float(x or 0), 2) for x in ends],
        "null": [round(float(x or 0), 2) for x in null],
        "heavier_than_null": bool(estimate.heavier_than_null),
    }


def table(records: Sequence[Record], workload: str) -> str:
    """Where, the two indices, and what the diagnosis says."""
    rows = []
    for record in records:
        settings, result = record["settings"], record["result"]
        if settings["workload"] == workload and "noise" in settings:
            where = f"{settings['noise']}, after {settings['steps']} steps"
            told = [_told(result[kind]) for kind in ("norms", "entries")]
            rows.append([where, *told[0], *told[1], result["label"]])
    headings = ["gradients", "index of the norms", "of Gaussian noise"]
    headings += ["index of single entries", "of Gaussian noise", "diagnosis"]
    return markdown.table(headings, rows)


def _told(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["none", ""]
    index, low, high = found["index"]
    null_low, null_high = found["null"]
    return [
        f"{index:.1f} ({low:.1f} to {high:.1f})",
        f"{null_low:.1f} to {null_high:.1f}",
    ]
