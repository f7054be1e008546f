"""Trains to the end, from the last checkpoint on if there is one."""

from pathlib import Path
from typing import Any

from experiments.common import progress
from experiments.common.types import Config
from experiments.learning import checkpoints, lstm, mlp

TRAININGS = {"lstm": lstm.Training, "mlp": mlp.Training}


def make(config: Config, seed: int) -> Any:
    """The training that a config is of."""
    return TRAININGS[config.model](config, seed)


def run(training: Any, workdir: Path | None = None) -> Any:
    """The last state of a training.

    Args:
      training: `lstm.Training` or `mlp.Training`.
      workdir: where checkpoints are; ``None``: nowhere.

    Raises:
      UserError: the checkpoint that is there is none of this training.
    """
    state = training.start()
    path = None if workdir is None else workdir / checkpoints.FILE
    if path is not None:
        found = checkpoints.read(path, state)
        state = state if found is None else found
    done, total = int(state.step), training.total
    with progress.run_bar(training.config.model, total) as bar:
        while done < total:
            state, loss = training.advance(state)
            done = int(state.step)
            bar.update(done, loss)
            is_due = done % training.config.checkpoint_every == 0 or done == total
            if path is not None and is_due:
                checkpoints.write(path, state)
    return state
