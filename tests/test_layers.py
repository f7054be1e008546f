"""A wing of the experiments imports wings below it, never beside or above it."""

import ast
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
FLOORS = (  # from the ground
    {"common"},
    {"data", "models"},
    {"runs", "configs"},
    {"reporting", "tasks"},
    {"training"},
    {"diagnosis", "studies", "benchmarks"},
)
HEIGHT = {wing: height for height, wings in enumerate(FLOORS) for wing in wings}


def imported(path):
    """Dotted names of what a file imports, the names taken from modules included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breach(own, name):
    """What is wrong with an import in a wing, or in a command, which is above them."""
    package, *parts = name.split(".")
    if package == "optax_heavytail" and any(
        part.startswith("_") for part in parts[:-1]
    ):
        return "not public"
    if package != "experiments" or parts[0] == own:
        return ""
    height = HEIGHT.get(own, len(FLOORS))
    return "" if HEIGHT.get(parts[0], len(FLOORS)) < height else "not below"


def test_wings_import_those_below_them():
    breaches = [
        f"{path.relative_to(FOLDER)} imports {name}: {reason}"
        for path in FOLDER.rglob("*.py")
        for name in imported(path)
        if (reason := breach(path.relative_to(FOLDER).parts[0], name))
    ]
    assert not breaches, "\n".join(breaches)
