"""How the curvature of the loss changes while a model trains.

python -m experiments.curvature --config=experiments/configs/bert_tiny.py \
    --workdir=runs/curvature

It trains as `experiments.train` does, and on the way takes the spectrum of the Hessian
at some steps, and the smoothness along some updates. All of it is of the mean loss over
the same few batches, which the training does not come to. Writes ``curvature.jsonl``, a
line for each measurement, and ``curvature.png``. Given again after an interruption, it
trains again, and measures what is missing.
"""

import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import (
    cli,
    curvature_figures,
    distributed,
    folders,
    program,
    progress,
    provenance,
    train,
)
from experiments.errors import UserError
from experiments.program import Program
from experiments.steps import TrainState
from experiments.tasks import Batch, PyTree
from experiments.types import Config
from optax_heavytail import diagnostics

SPECTRA = flags.DEFINE_integer(
    "spectra", 6, "Steps whose spectrum is taken, the first and the last with them."
)
POINTS = flags.DEFINE_integer("points", 80, "Updates whose smoothness is taken.")
BATCHES = flags.DEFINE_integer("batches", 4, "Batches that the loss is averaged over.")
LANCZOS_STEPS = flags.DEFINE_integer(
    "lanczos_steps", 64, "Hessian-vector products for each spectrum."
)
RECORDS_FILE, FIGURE_FILE = "curvature.jsonl", "curvature.png"
Record = dict[str, Any]


class Settings(NamedTuple):
    """What is measured."""

    spectra: int
    points: int
    batches: int
    lanczos_steps: int

    def spectrum_steps(self, num_steps: int) -> list[int]:
        """Steps of the spectra: more of them early, where more changes."""
        return _early(0, num_steps, self.spectra)

    def smoothness_steps(self, num_steps: int) -> list[int]:
        """Steps after which an update is measured; the first has no learning rate."""
        return _early(1, num_steps - 1, self.points)


def _early(first: int, last: int, count: int) -> list[int]:
    fractions = np.linspace(0, 1, max(count, 2)) ** 2
    return sorted({first + round(x * max(last - first, 0)) for x in fractions})


class Instruments:
    """Measures the mean loss over some batches, at any parameters.

    Args:
      built: of the model.
      batches: how many; they come after the last one of the training.
      lanczos_steps: Hessian-vector products for each spectrum.
      seed: of dropout, which is the same at all parameters, and of the search.
    """

    def __init__(self, built: Program, batches: int, lanczos_steps: int, seed: int = 0):
        self._task, self._lanczos_steps = built.task, lanczos_steps
        self._key = jax.random.key(seed)
        stream = built.task.train_batches(built.plan.position(built.plan.num_steps))
        stacked = program.stack(list(itertools.islice(stream, batches)))
        self._batches = built.layout.place(stacked)
        self._spectrum = jax.jit(self._make_spectrum)
        self._smoothness = jax.jit(self._make_smoothness)

    def spectrum(self, params: PyTree, model_state: PyTree) -> Record:
        """Ends of the spectrum with bounds of their errors, and all its nodes."""
        started = time.perf_counter()
        found = jax.device_get(self._spectrum(params, model_state, self._batches))
        ends = {name: float(x) for name, x in found.ends()._asdict().items()}
        return {
            **ends,
            "nodes": found.nodes.tolist(),
            "weights": found.weights.tolist(),
            "errors": found.errors.tolist(),
            "seconds": time.perf_counter() - started,
        }

    def smoothness(self, params: PyTree, model_state: PyTree, update: PyTree) -> Record:
        """The smoothness along an update, the gradient norm, and the update's."""
        found = self._smoothness(params, model_state, update, self._batches)
        return {name: float(x) for name, x in found.items()}

    def _make_spectrum(
        self, params: PyTree, model_state: PyTree, batches: Batch
    ) -> diagnostics.Spectrum:
        loss, numbered = self._loss(model_state, batches)
        return diagnostics.spectral_density(
            lambda v: diagnostics.hvp(loss, params, v, numbered),
            params,
            self._key,
            self._lanczos_steps,
            num_probes=1,
        )

    def _make_smoothness(
        self, params: PyTree, model_state: PyTree, update: PyTree, batches: Batch
    ) -> dict[str, jax.Array]:
        loss, numbered = self._loss(model_state, batches)
        point = diagnostics.local_smoothness(
            lambda params: diagnostics.mean_gradient(loss, params, numbered),
            params,
            update,
        )
        squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(update)]
        return {**point._asdict(), "update_norm": jnp.sqrt(sum(squares))}

    def _loss(self, model_state: PyTree, batches: Batch) -> tuple[Any, Any]:
        """The loss of a numbered batch, and these; their mean is over all weights."""
        number = len(jax.tree.leaves(batches)[0])
        share = jnp.sum(jax.vmap(self._task.weight)(batches)) / number

        def loss(params: PyTree, numbered: tuple[Batch, jax.Array]) -> jax.Array:
            batch, index = numbered
            key = jax.random.fold_in(self._key, index)
            return self._task.loss_sum(params, model_state, batch, key)[0] / share

        return loss, (batches, jnp.arange(number))


class Point(NamedTuple):
    """A step of a training."""

    step: int
    params: PyTree  # after it; gone when the next point is asked for
    model_state: PyTree
    update: PyTree | None  # of the step after it, where that is wanted


def follow(
    built: Program,
    config: Config,
    state: TrainState,
    steps: Sequence[int],
    updates: Sequence[int],
) -> Iterator[Point]:
    """Trains on from a state, as far as is wanted.

    Args:
      built: of ``config``.
      config: a resolved one.
      state: where to start; it is used up.
      steps: steps after which to yield a point.
      updates: steps after which to yield one with the update that comes next.

    Yields:
      The points, in the order of their steps.

    Raises:
      UserError: the training diverges.
    """
    layout, plan = built.layout, built.plan
    last = max([*steps, *(step + 1 for step in updates)])
    rate = np.float32(config.optimizer.learning_rate)
    stream = built.task.train_batches(int(state.position))
    first = int(state.step)
    state, window = layout.enter(state), layout.enter(built.new_window())
    for step in range(first, last + 1):
        if step in steps:
            now = layout.leave(state)
            yield Point(step, now.params, now.model_state, None)
        if step == last:
            return
        before = _copy(layout.leave(state)) if step in updates else None
        count = int(plan.microbatches[step])
        batch = program.stack([next(stream) for _ in range(count)])
        state, window = layout.settle(
            built.train_step(count)(state, window, layout.place(batch), rate)
        )
        if before is None:
            continue
        lost_step = int(layout.leave(window).lost_step)
        if lost_step:
            raise UserError(f"non-finite loss at step {lost_step}")
        after = layout.leave(state).params
        change = jax.tree.map(jnp.subtract, after, before[0])
        yield Point(step, *before, change)


def _copy(state: TrainState) -> tuple[PyTree, PyTree]:
    """The next step uses the state up."""
    return jax.tree.map(jnp.copy, (state.params, state.model_state))


class File:
    """The records in a folder, each of which is on the disk once it is added.

    Args:
      path: of the file.
      settings: a file of other settings is refused.

    Raises:
      UserError: the file is of other settings, or not one of this program.
    """

    def __init__(self, path: Path, settings: Settings):
        self._path = path
        self.records: list[Record] = self._read() if path.exists() else []
        wanted = settings._asdict()
        if not self.records:
            self.records = [{"kind": "header", "settings": wanted, **_origin()}]
        found = self.records[0].get("settings")
        if found != wanted:
            raise UserError(
                f"{path}: has measurements with {found}, not {wanted}; choose another "
                "folder, or delete the file"
            )
        content = "".join(json.dumps(record) + "\n" for record in self.records)
        folders.write_atomically(path, content)

    def _read(self) -> list[Record]:
        whole = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        try:
            return [dict(json.loads(line)) for line in whole]
        except (ValueError, TypeError):
            raise UserError(f"{self._path}: has lines that are no records") from None

    def missing(self, kind: str, steps: Sequence[int]) -> list[int]:
        """Those of the steps of which there is no record."""
        found = {r["step"] for r in self.records if r["kind"] == kind}
        return [step for step in steps if step not in found]

    def add(self, kind: str, step: int, values: Record) -> None:
        """Writes a record; a number that is not finite becomes ``None``."""
        finite = {
            name: None if isinstance(x, float) and not math.isfinite(x) else x
            for name, x in values.items()
        }
        record = {"kind": kind, "step": step, **finite}
        line = json.dumps(record, allow_nan=False) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)


def _origin() -> Record:
    return {
        "command": provenance.command(),
        "hardware": provenance.hardware(),
        "versions": train.versions(),
    }


def measure(config: Config, workdir: Path, settings: Settings) -> list[Record]:
    """Trains, and writes what it measures; returns all records.

    Raises:
      UserError: bad input, or the training diverges; what was measured stays.
    """
    if jax.process_count() > 1:
        raise UserError("the curvature is measured by one process")
    source = train.load([config])
    resolved = train.resolve(config, source)
    folders.finished(workdir, resolved)  # refuses the folder of another config
    with folders.locked(workdir):
        task = source.build(workdir)
        built = program.build(resolved, task)
        folders.claim(workdir, resolved)
        task.save_assets(workdir)
        file = File(workdir / RECORDS_FILE, settings)
        _measure(built, resolved, settings, file)
        return file.records


def _measure(built: Program, config: Config, settings: Settings, file: File) -> None:
    end = built.plan.num_steps
    spectra = file.missing("spectrum", settings.spectrum_steps(end))
    updates = file.missing("smoothness", settings.smoothness_steps(end))
    if not spectra and not updates:
        return
    tools = Instruments(built, settings.batches, settings.lanczos_steps, config.seed)
    number, state = len(spectra) + len(updates), built.init_state()
    with progress.run_bar("curvature", number, distributed.console()) as bar:
        points = follow(built, config, state, spectra, updates)
        for count, (step, params, model_state, update) in enumerate(points, 1):
            if update is None:
                file.add("spectrum", step, tools.spectrum(params, model_state))
            else:
                values = tools.smoothness(params, model_state, update)
                file.add("smoothness", step, values)
            bar.update(count, note=f"at step {step:,}")


def fit(records: Sequence[Record]) -> diagnostics.SmoothnessFit:
    """The line through the points of a training that are finite."""
    found = [r for r in records if r["kind"] == "smoothness"]
    pairs = [(r["gradient_norm"], r["smoothness"]) for r in found]
    pairs = [pair for pair in pairs if None not in pair]
    norms, smooth = np.array(pairs).reshape(-1, 2).T
    return diagnostics.fit_smoothness(norms, smooth)


def describe(records: Sequence[Record]) -> str:
    """The ends of the spectra as a table, and the line in words."""
    lines = [f"{'step':>8}  {'smallest eigenvalue':>26}  {'largest':>26}"]
    for record in records:
        if record["kind"] == "spectrum":
            ends = (_number(record, "smallest"), _number(record, "largest"))
            lines.append(f"{record['step']:>8,}  {ends[0]:>26}  {ends[1]:>26}")
    return "\n".join([*lines, "", in_words(fit(records))])


def _number(record: Record, name: str) -> str:
    if record[name] is None:
        return "not finite"
    return f"{record[name]:.4g} +- {record[f'{name}_error']:.1g}"


def in_words(line: diagnostics.SmoothnessFit) -> str:
    """What a fit says."""
    if line.reason is not None:
        return f"no (L0, L1) fit: {line.reason}"
    assert line.correlation_low is not None
    assert line.correlation_high is not None
    if line.correlation_low > 0:
        verdict = "the smoothness rises with the gradient norm"
    elif line.correlation_high < 0:
        verdict = "the smoothness falls where the gradient norm rises"
    else:
        verdict = "no sign that the smoothness depends on the gradient norm"
    return (
        f"{verdict}: rank correlation {line.correlation:.2f} "
        f"[{line.correlation_low:.2f}, {line.correlation_high:.2f}], "
        f"L0 = {line.l0:.3g} [{line.l0_low:.3g}, {line.l0_high:.3g}], "
        f"L1 = {line.l1:.3g} [{line.l1_low:.3g}, {line.l1_high:.3g}] "
        f"({line.confidence:.0%} intervals, {line.num_points} updates)"
    )


def main() -> None:
    """Measures as the flags say."""
    for flag, least in ((SPECTRA, 2), (POINTS, 2), (BATCHES, 1), (LANCZOS_STEPS, 1)):
        if flag.value < least:
            raise UserError(f"--{flag.name}={flag.value}: must be {least} or more")
    values = SPECTRA.value, POINTS.value, BATCHES.value, LANCZOS_STEPS.value
    workdir = cli.workdir()
    records = measure(cli.config(), workdir, Settings(*values))
    picture = curvature_figures.png(records, fit(records))
    folders.write_atomically(workdir / FIGURE_FILE, picture)
    distributed.say(f"{describe(records)}\n\npicture: {workdir / FIGURE_FILE}")


if __name__ == "__main__":
    cli.run(main)
