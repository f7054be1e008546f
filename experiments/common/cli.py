"""Flags that the commands share, and errors as one line."""

import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.common import commands, config_files, distributed, inputs, memory
from experiments.common.errors import UserError
from experiments.common.fields import Field
from experiments.common.types import Config

# Titles, and under each the fields of a config with what they may be.
Sections = Mapping[str, Mapping[str, Field]]
REQUIRED = ("config", "workdir")
WIDTH, INDENT = 88, 28  # of what --help prints
HELP = ("-h", "-?", "--help", "-help", "--helpshort", "--helpfull")

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
flags.FLAGS["config"].parser = config_files.Parser()
# The libraries' INFO lines would bury the progress; --verbosity=0 shows them.
flags.FLAGS.verbosity = logging.WARNING


def config() -> Config:
    """The config of ``--config`` with the changes of ``--config.name=value``.

    Raises:
      UserError: a field holds what no config can.
    """
    config_files.check_plain(CONFIG.value)
    return CONFIG.value


def workdir() -> Path:
    """The folder of ``--workdir``.

    Raises:
      UserError: none, or one of another machine.
    """
    if not WORKDIR.value:
        raise UserError("--workdir=: must name a folder")
    return inputs.local("--workdir", WORKDIR.value)


def run(
    main: Callable[[], None],
    sections: Sections | None = None,
    *,
    resumes_with_changes: bool = True,
) -> None:
    """Parses flags, calls ``main`` and exits; bad input ends in one line.

    Args:
      main: the command, in a module whose docstring says what it does.
      sections: what ``--help`` says of the config.
      resumes_with_changes: whether the command goes on with another config when
        ``--resume_with_changes`` asks for it; otherwise it refuses the flag.
    """
    memory.keep_freed()

    def parse(argv: list[str]) -> list[str]:
        if any(word in HELP for word in argv[1:]):
            print(help_text(main, sections or {}, resumes_with_changes))
            sys.exit(0)
        return _parse(argv)

    with commands.one_line_errors():
        app.run(lambda _: _start(main, resumes_with_changes), flags_parser=parse)


def _start(main: Callable[[], None], resumes_with_changes: bool) -> None:
    workdir()  # a bad one is refused before anything is read
    if RESUME_WITH_CHANGES.value and not resumes_with_changes:
        raise UserError(f"--{RESUME_WITH_CHANGES.name}: not a flag of this command")
    distributed.start()
    main()


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    # What ConfigDict says of an unknown field, and of one in a field that has none.
    except (AttributeError, LookupError) as error:
        name = " ".join(str(error).split()).strip("\"'")
        raise UserError(f"the config has no field {name}") from None
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]}: unknown argument; options start with --")
    return rest


def help_text(
    main: Callable[[], None], sections: Sections, resumes_with_changes: bool = True
) -> str:
    """What a command does, its flags, and the fields of its config.

    Args:
      main: as for `run`.
      sections: likewise.
      resumes_with_changes: likewise.
    """
    module = getattr(main, "__globals__", {})
    # A flag of the module that is run is known by the name of the program.
    ours = (str(module.get("__name__")), sys.argv[0], distributed.__name__, __name__)
    by_module = flags.FLAGS.flags_by_module_dict()
    found = {flag.name: flag for name in ours for flag in by_module.get(name, ())}
    if not resumes_with_changes:
        del found[RESUME_WITH_CHANGES.name]
    lines = [(module.get("__doc__") or "").strip(), "", "Flags:", ""]
    for name, flag in found.items():
        shown = f"--[no]{name}" if flag.boolean else f"--{name}="
        lines += _entry(shown, f"{flag.help} {_default(flag)}")
    for title, fields in sections.items():
        lines += ["", f"{title}:", ""]
        for name, field in fields.items():
            missing = "; need not be there" if field.may_miss else ""
            lines += _entry(name, f"{field.allowed}{missing}")
    return "\n".join(lines)


def _default(flag: flags.Flag) -> str:
    if flag.name in REQUIRED:
        return "Required."
    none = flag.default is None or flag.boolean or flag.default == []
    return "" if none else f"Default: {flag.default}."


def _entry(name: str, text: str) -> list[str]:
    """A name, and beside or under it what it is."""
    wrapped = textwrap.wrap(text, WIDTH - INDENT)
    if len(name) > INDENT - 4:
        wrapped = ["", *wrapped]
    first, *rest = wrapped
    lines = [f"  {name:<{INDENT - 2}}{first}", *(" " * INDENT + line for line in rest)]
    return [line.rstrip() for line in lines]
