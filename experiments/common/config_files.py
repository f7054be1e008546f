"""Config files: Python with ``get_config``; what is wrong with one is one line."""

import importlib.util
import traceback
import types
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict

from experiments.common import inputs
from experiments.common.errors import UserError, one_line
from experiments.common.types import Config

LONGEST_NUMBER = 1024  # bits of an integer; the longest that is a float too
DEEPEST = 50  # dicts and lists within each other
WHAT = "a Python file with get_config()"


class Parser(flags.ArgumentParser):
    """What absl makes of ``--config=file`` or ``--config=file:variant``."""

    def parse(self, argument: str) -> Config:
        """The config, locked: its fields are those that the file gave it."""
        return load(argument)

    def flag_type(self) -> str:
        """What the flag is."""
        return "config file"


def load(argument: str) -> Config:
    """The config that a file returns.

    Args:
      argument: a path, and after a colon what ``get_config`` is called with.

    Raises:
      UserError: naming the file, and the line that raised something.
    """
    inputs.local("--config", argument)
    path, *variant = argument.split(":", 1)
    where = f"--config={path}"
    if not path:
        raise UserError(f"{where}: must name {WHAT}")
    try:
        module = _executed(path)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f"{where}: has no function get_config()")
        config = get_config(*variant)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        raise UserError(f"{where}{_line(error, path)}: {one_line(error)}") from None
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise UserError(
            f"{where}: get_config() must return an ml_collections.ConfigDict, returned "
            f"{'None' if config is None else f'a {type(config).__name__}'}"
        )
    check_plain(config)
    return config.lock()


def _executed(path: str) -> types.ModuleType:
    """The file as a module that no other one can import."""
    with inputs.needed(f"--config={path}", WHAT):
        source = inputs.read_bytes(Path(path), limit=2**20)
    code = compile(source, path, "exec")
    spec = importlib.util.spec_from_loader("config_file", None, origin=path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    exec(code, vars(module))
    return module


def _line(error: BaseException, path: str) -> str:
    """Which line of the file raised an error, or does not compile."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f", line {error.lineno}" if error.lineno else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""


def check_plain(value: Any, name: str = "config", above: tuple[int, ...] = ()) -> None:
    """Refuses what ``config.json`` has no form for.

    Raises:
      UserError: naming the field.
    """
    if len(above) > DEEPEST or id(value) in above:
        raise UserError(f"{name:.60}: contains itself, or is nested too deep")
    if isinstance(value, ConfigDict | dict):
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"{name}: the name {key!r:.60} must be text")
            check_plain(_item(value, key, name), f"{name}.{key}", (*above, id(value)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            check_plain(item, f"{name}[{number}]", (*above, id(value)))
    elif isinstance(value, int):
        if value.bit_length() > LONGEST_NUMBER:
            raise UserError(f"{name}: must have at most {LONGEST_NUMBER} bits")
    elif not (value is None or isinstance(value, str | float)):
        raise UserError(
            f"{name}: is a {type(value).__name__}; must be text, a number of Python, "
            "True, False, None, or a list or dict of these"
        )


def _item(config: Any, key: str, name: str) -> Any:
    try:
        return config[key]
    except Exception as error:  # of a reference to another field, or a required one
        raise UserError(f"{name}.{key}: {one_line(error)}") from None
