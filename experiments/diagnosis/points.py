"""A model at points of its training: new, or as checkpoints of a run have it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import inputs
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.runs import folders
from experiments.tasks import Batch, PyTree
from experiments.training import aggregate, checkpoint_files, programs, steps
from experiments.training.programs import Program
from experiments.training.steps import TrainState

INITIAL = 0  # the step of the parameters before training


class Place(NamedTuple):
    """Where the state after a step is."""

    step: int
    folder: Path | None  # None: it is the initial one


def places(checkpoint: str | None, wanted: Sequence[str]) -> list[Place]:
    """The points that the flags name, in the order of their steps.

    Args:
      checkpoint: a run's folder, or that of one of its checkpoints; ``None``: the
        initial state alone.
      wanted: steps, or "all": the initial state and all checkpoints. Empty: the newest.

    Raises:
      UserError: what is named is not there.
    """
    if checkpoint is None:
        if wanted:
            raise UserError(
                f"--steps={','.join(wanted)}: --checkpoint must name the run's folder"
            )
        return [Place(INITIAL, None)]
    # Absolute, which Orbax insists on.
    folder = inputs.local("--checkpoint", checkpoint).absolute()
    if (folder / checkpoint_files.ABOUT).is_dir():
        if wanted:
            raise UserError(
                f"--steps={','.join(wanted)}: --checkpoint={checkpoint} is one "
                "checkpoint; name the run's folder"
            )
        return [Place(_step_of(folder), folder)]
    found = _kept(folder)
    if not wanted:
        return [Place(*max(found.items()))]
    if list(wanted) == ["all"]:
        return [Place(INITIAL, None), *(Place(*x) for x in sorted(found.items()))]
    return sorted({_place(step, found) for step in wanted})


def run_folder(checkpoint: str | None) -> Path | None:
    """The folder of the run that ``checkpoint`` is of; its tokenizer is there."""
    if checkpoint is None:
        return None
    folder = Path(checkpoint).absolute()
    is_one = (folder / checkpoint_files.ABOUT).is_dir()
    return folder.parents[1] if is_one else folder


def _kept(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by their steps."""
    checkpoints = folder / folders.CHECKPOINTS_FOLDER
    paths = list(checkpoints.iterdir()) if checkpoints.is_dir() else []
    found = {int(path.name): path for path in paths if path.name.isdecimal()}
    if not found:
        raise UserError(
            f"--checkpoint: {folder} has no checkpoint; a run's folder or one of its "
            f"{folders.CHECKPOINTS_FOLDER}/<step> is needed"
        )
    return found


def _step_of(folder: Path) -> int:
    if not folder.name.isdecimal():
        raise UserError(f"--checkpoint={folder}: must be named by its step")
    return int(folder.name)


def _place(step: str, found: dict[int, Path]) -> Place:
    kept = ", ".join(map(str, [INITIAL, *sorted(found)]))
    if step not in map(str, (INITIAL, *found)):
        raise UserError(f"--steps: {step} is not there; must be all, or of {kept}")
    return Place(int(step), found.get(int(step)))


def check(place: Place, config: Config) -> None:
    """Refuses the checkpoint of another config, before anything is built.

    Raises:
      UserError: naming the fields, or what is wrong with the files.
    """
    if place.folder is None:
        return
    old, new = _about(place.folder)["config"], folders.plain(config)
    differing = folders.differences(
        folders.without_free(old), folders.without_free(new)
    )
    if differing:
        raise UserError(
            f"--checkpoint: {place.folder} is of another config than --config: "
            f"{'; '.join(differing)}"
        )


def read(place: Place, program: Program) -> TrainState:
    """The state at a point.

    Raises:
      UserError: a damaged checkpoint.
    """
    if place.folder is None:
        return program.init_state()
    about = _about(place.folder)
    shapes = checkpoint_files.shapes(program)
    checkpoint_files.check_arrays(place.folder, about, shapes)
    try:
        return checkpoint_files.read(place.folder, about, shapes, program.layout).state
    except checkpoint_files.DamagedError as damage:
        raise _damaged(place.folder, damage) from None


def _about(folder: Path) -> dict[str, Any]:
    about = checkpoint_files.read_about(folder)
    if "damage" in about:
        raise _damaged(folder, about["damage"])
    checkpoint_files.check_format(folder, about)
    return about


def _damaged(folder: Path, damage: object) -> UserError:
    return UserError(f"--checkpoint: {folder} is damaged ({damage}); choose another")


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches that a run would see after its last step, each with a number.

    They can be gone through again and again, and are the same at every point.
    """

    program: Program
    number: int

    def __len__(self) -> int:
        """How many."""
        return self.number

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """The batches from the first one on."""
        plan = self.program.plan
        size = int(plan.microbatches[0])
        stream = self.program.task.train_batches(plan.position(plan.num_steps))
        for index in range(self.number):
            stacked = programs.stack([next(stream) for _ in range(size)])
            yield index, self.program.layout.place(stacked)


def gradients(
    program: Program, seed: int
) -> Callable[[TrainState], Callable[[PyTree, tuple[int, Batch]], PyTree]]:
    """state -> ((parameters, (number, batch)) -> gradient), compiled once for all.

    Of the mean loss over the whole batch, as the training step takes it, with another
    dropout for each number.
    """
    gradient, key = (
        steps.make_gradient(program.task, None, aggregate.MEAN),
        jax.random.key(seed),
    )

    @jax.jit
    def grads(params: PyTree, model_state: PyTree, batch: Batch, number: jax.Array):
        number_key = jax.random.fold_in(key, number)
        return gradient(params, model_state, batch, number_key).grads

    def at(state: TrainState) -> Callable[[PyTree, tuple[int, Batch]], PyTree]:
        return lambda params, batch: grads(
            params, state.model_state, batch[1], np.uint32(batch[0])
        )

    return at
