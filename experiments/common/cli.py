"""Flags that the commands share, and errors as one line."""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.common import distributed, inputs, memory
from experiments.common.errors import NO_ROOM, UserError
from experiments.common.types import Config

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(); `:smoke` after it selects a variant."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for everything a run writes.", required=True
)
RESUME_WITH_CHANGES = flags.DEFINE_bool(
    "resume_with_changes",
    False,
    "Go on from the checkpoints of a run whose config had other values.",
)
flags.mark_flag_as_required("config")
# The libraries' INFO lines would bury the progress; --verbosity=0 shows them.
flags.FLAGS.verbosity = logging.WARNING


def config() -> Config:
    """The config of ``--config`` with the changes of ``--config.name=value``."""
    given = config_flags.get_config_filename(flags.FLAGS["config"])
    inputs.local("--config", given)
    path = given.split(":")[0]
    if not Path(path).is_file():
        raise UserError(f"--config={path}: no such file")
    return CONFIG.value


def workdir() -> Path:
    """The folder of ``--workdir``.

    Raises:
      UserError: none, or one of another machine.
    """
    if not WORKDIR.value:
        raise UserError("--workdir=: must name a folder")
    return inputs.local("--workdir", WORKDIR.value)


def run(main: Callable[[], None]) -> None:
    """Parses flags, calls ``main`` and exits; bad input ends in one line."""
    memory.keep_freed()
    try:
        app.run(lambda _: _start(main), flags_parser=_parse)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror}")


def _start(main: Callable[[], None]) -> None:
    workdir()  # a bad one is refused before anything is read
    distributed.start()
    main()


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except AttributeError as error:  # what ConfigDict says of an unknown field
        name = str(error).strip("\"'")
        raise UserError(f"the config has no field {name}") from None
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]}: unknown argument; options start with --")
    return rest
