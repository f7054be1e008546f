"""Which way the experiments' wings import, and how long files and functions are."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments"
FLOORS = (  # from the ground
    {"common"},
    {"data", "models"},
    {"runs", "configs"},
    {"reporting", "tasks"},
    {"training", "rule_search", "learning"},
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


def too_long(text, most_in_file=400, most_in_function=60):
    """What is longer, in lines: docstrings of functions do not count."""
    if text.count("\n") > most_in_file:
        yield "the file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            if node.end_lineno - node.lineno + 1 - docstring > most_in_function:
                yield node.name


def test_files_and_functions_are_short():
    long = [
        f"{path.relative_to(ROOT)}: {what}"
        for folder in ("optax_heavytail", "experiments")
        for path in (ROOT / folder).rglob("*.py")
        for what in too_long(path.read_text(encoding="utf-8"))
    ]
    assert not long, "\n".join(long)


def test_what_is_too_long():
    body = "    x = 1\n" * 58
    kept = f"def kept():\n    '''A.\n\n    B.\n    '''\n{body}    return x\n"
    long = kept.replace("kept", "long").replace("return", "x += 1\n    return")
    assert list(too_long(kept + long)) == ["long"]
    assert list(too_long("x = 1\n" * 401)) == ["the file"]
