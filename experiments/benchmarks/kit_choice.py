"""Which optimizers the conformance kit judges, of which versions, run by what."""

import importlib.metadata
import pathlib
import subprocess
from collections.abc import Mapping, Sequence

import jax
import optax

from experiments.benchmarks.kit_subjects import OPTAX, PACKAGES, Subject
from experiments.common.errors import UserError


def choose(
    words: Sequence[str], third_party: bool, interpreters: Mapping[str, str]
) -> dict[str, Subject]:
    """Optax's optimizers, or those of the packages that are installed, by name.

    Args:
      words: parts of names; those that contain one of them are chosen, or all.
      third_party: whether other packages than Optax are meant.
      interpreters: by package, another interpreter that has it.

    Raises:
      UserError: nothing is left.
    """
    known = OPTAX
    if third_party:
        there = [p for p in PACKAGES if p in interpreters or version(p)]
        if not there:
            raise UserError(f"none of these is installed: {', '.join(PACKAGES)}")
        known = {name: x for p in there for name, x in PACKAGES[p].items()}
    chosen = {
        name: subject
        for name, subject in known.items()
        if not words or any(word in name for word in words)
    }
    if not chosen:
        there = ", ".join(known)
        raise UserError(f"no optimizer is called {words}; there are {there}")
    return chosen


def interpreters(entries: Sequence[str]) -> dict[str, str]:
    """Interpreters by the package that they judge, from ``PACKAGE=PYTHON``."""
    pythons: dict[str, str] = {}
    for entry in entries:
        package, _, python = entry.partition("=")
        pythons[package] = python
    for package, python in pythons.items():
        if package not in PACKAGES or not pathlib.Path(python).is_file():
            raise UserError(
                f"--python must be PACKAGE=PYTHON, with a package of {list(PACKAGES)} "
                f"and a file, got {package}={python}"
            )
    return pythons


def by_optimizer(pythons: Mapping[str, str]) -> dict[str, str]:
    """The interpreters by the names of the optimizers."""
    return {name: python for p, python in pythons.items() for name in PACKAGES[p]}


def version(package: str) -> str:
    """The version that is installed; empty if none is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def origin(third_party: bool, pythons: Mapping[str, str]) -> str:
    """The versions that are judged."""
    there, missing = [f"Optax {optax.__version__}", f"JAX {jax.__version__}"], []
    for package in PACKAGES if third_party else ():
        if package in pythons:
            there.append(_elsewhere(package, pythons[package]))
        elif number := version(package):
            there.append(f"{package} {number}")
        else:
            missing.append(package)
    text = f"{', '.join(there)}, on a CPU."
    return text + (f" Not installed: {', '.join(missing)}." if missing else "")


def _elsewhere(package: str, python: str) -> str:
    """The versions that another interpreter has."""
    names = (package, "optax", "jax")
    code = f"import importlib.metadata as m; print(*map(m.version, {names}))"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"--python: {python} does not have all of {', '.join(names)}")
    own, of_optax, of_jax = done.stdout.split()
    return f"{package} {own} (with Optax {of_optax}, JAX {of_jax})"
