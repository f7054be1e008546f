"""README and docs: the code runs, commands take their flags, paths exist."""

import ast
import dataclasses
import importlib.metadata
import importlib.util
import operator
import re
import shlex
import tomllib
from collections import Counter
from pathlib import Path

import jax
import pytest
from absl import flags

import optax_heavytail as oht
from experiments import reproduce
from experiments.studies import catalogue
from optax_heavytail import testing
from tests.in_time import in_time

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("[!_]*.md"))]
PAGES += sorted((ROOT / "docs").glob("[!_]*/*.md"))
EXCUSED: dict[str, str] = {}  # "page:line" of a Python block that is not run: why

# Another spelling of "python" would hide a block from the tests.
LANGUAGES = {"python", "bash", "text", "{eval-rst}", "{toctree}"}
OUTPUTS = (".venv", "docs/_build/", "experiments/results/", "runs/")


@dataclasses.dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of the opening fence, from 1
    language: str
    text: str
    excuse: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    fences = [i for i, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) % 2 == 0, f"{page}: a code block is not closed"
    found = []
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        above = lines[start - 1] if start else ""
        excuse = re.fullmatch(r"<!-- not run: (.+) -->", above)
        found.append(
            Block(
                page,
                start + 1,
                lines[start].removeprefix("```").strip(),
                "\n".join(lines[start + 1 : end]) + "\n",
                excuse[1] if excuse else None,
            )
        )
    return found


def prose(page: Path) -> str:
    """The page without its code blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_block_names_its_language():
    unknown = {b.place: b.language for b in ALL_BLOCKS if b.language not in LANGUAGES}
    assert not unknown


def test_excused_blocks_are_the_expected_ones():
    excused = {b.place: b.excuse for b in ALL_BLOCKS if b.excuse is not None}
    assert excused == EXCUSED


# These judge whole optimizers, estimate tails or compile for many transforms, and wait
# for the nightly.
LONG = (
    "docs/api/aggregation.md",
    "docs/api/diagnostics.md",
    "docs/api/testing.md",
    "docs/conformance.md",
    "docs/guide/diagnosis.md",
    "docs/guide/learned.md",
    "docs/guide/rules.md",
    "docs/methods/conditional_gradient.md",
    "docs/methods/stable_adam.md",
    "docs/methods/unroll.md",
    "docs/migrating.md",
    "docs/numerics.md",
)
WITH_CODE = {
    page_id(p): p for p in PAGES if any(b.language == "python" for b in blocks(p))
}


@pytest.mark.parametrize("page", in_time(WITH_CODE, lambda name: name not in LONG))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    with jax.numpy_rank_promotion("allow"):  # JAX's own default, as readers have it
        for block in blocks(page):
            if block.language == "python" and block.excuse is None:
                padded = "\n" * block.line + block.text  # so that errors name the line
                exec(compile(padded, str(page), "exec"), namespace)


# Shell blocks


@dataclasses.dataclass(frozen=True)
class Command:
    """One program of a shell block, with its arguments."""

    place: str
    words: tuple[str, ...]

    @property
    def module(self) -> str | None:
        """What ``-m`` names."""
        is_python = Path(self.words[0]).name.startswith("python")
        if not is_python or "-m" not in self.words:
            return None
        return self.words[self.words.index("-m") + 1]

    @property
    def flags(self) -> dict[str, str]:
        pairs = [w[2:].partition("=") for w in self.words if w.startswith("--")]
        return {name: value for name, _, value in pairs}


def command_lines(block: Block) -> list[str]:
    """The block's lines, continued ones joined and comments left out."""
    joined = block.text.replace("\\\n", " ").splitlines()
    return [line for line in joined if line.strip() and not line.startswith("#")]


def commands(block: Block) -> list[Command]:
    found = []
    for line in command_lines(block):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, "&&"]:
            if token not in ("&&", ";", "|"):
                words.append(token)
            elif words:
                found.append(Command(block.place, tuple(words)))
                words = []
    return found


COMMANDS = [c for b in ALL_BLOCKS if b.language == "bash" for c in commands(b)]
EXPERIMENTS = [
    c
    for c in COMMANDS
    if (c.module or "").startswith("experiments.")
    # The first takes no flags, and the second has a parser of its own.
    and c.module not in ("experiments.conformance", "experiments.reproduce")
]


def command_id(command: Command) -> str:
    return command.place


def test_readme_starts_with_the_main_job_and_the_tests():
    main_job, tests = [b for b in blocks(README) if b.language == "bash"][:2]
    for block in (main_job, tests):
        assert len(command_lines(block)) == 1
        assert commands(block)[0].module == "venv"
        assert any(c.words[1] == "install" for c in commands(block))
    assert commands(main_job)[-1].module == "experiments.compare"
    assert commands(main_job)[-1].flags.keys() == {"config", "workdir"}
    assert commands(tests)[-1].module == "pytest"


def test_modules_that_commands_run_exist():
    for module in {c.module for c in COMMANDS} - {None}:
        assert importlib.util.find_spec(module), module


def test_extras_that_commands_install_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    jax_extras = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    known = {
        ".": set(project["project"]["optional-dependencies"]),
        "jax": set(jax_extras or ()),
    }
    words = [word for c in COMMANDS if "install" in c.words for word in c.words]
    requirements = [m for w in words if (m := re.fullmatch(r"(.+?)\[(.+)\]", w))]
    assert requirements
    for requirement in requirements:
        assert set(requirement[2].split(",")) <= known[requirement[1]]


@pytest.mark.parametrize("command", EXPERIMENTS, ids=command_id)
def test_experiment_commands_use_flags_that_exist(command):
    importlib.import_module(command.module)
    defined = flags.FLAGS.flags_by_module_dict()
    known = {
        flag.name
        for module in (
            command.module,
            "experiments.common.cli",
            "experiments.common.distributed",
        )
        for flag in defined.get(module, [])
    }
    config_path, *variant = command.flags["config"].split(":")
    config = load_config(ROOT / config_path, *variant)
    for name in command.flags:
        if name.startswith("config."):
            assert has_field(config, name.removeprefix("config.")), name
        else:
            assert name in known


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.module == "experiments.reproduce"],
    ids=command_id,
)
def test_studies_that_commands_reproduce_exist(command):
    place = command.words.index("experiments.reproduce")
    given = reproduce.parser().parse_args(command.words[place + 1 :])
    assert given.name in catalogue.STUDIES


def load_config(path: Path, *variant: str):
    spec = importlib.util.spec_from_file_location("config_of_docs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


def has_field(config, dotted_name: str) -> bool:
    for part in dotted_name.split("."):
        if part not in config:
            return False
        config = config[part]
    return True


# Paths and names


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    local = [t for t in targets if not re.match(r"https?:|mailto:|#", t)]
    missing = [t for t in local if not (page.parent / t.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_that_the_text_names_exist(page):
    words = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))
    for block in blocks(page):
        if block.language == "bash":
            words += [word for c in commands(block) for word in c.words]
            words += [c.flags.get("config", "").split(":")[0] for c in commands(block)]
    top_level = {path.name for path in ROOT.iterdir()}
    missing = []
    for word in words:
        is_path = re.fullmatch(r"[\w.<>-]+(/[\w.<>-]*)+", word)
        if is_path and word.split("/")[0] in top_level and not word.startswith(OUTPUTS):
            pattern = re.sub(r"<\w+>", "*", word).rstrip("/")
            if not list(ROOT.glob(pattern)):
                missing.append(word)
    assert not missing


def trap_rows() -> list[list[str]]:
    """The cells of each trap; the last one has its tests."""
    lines = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8").splitlines()
    tables = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [
        [cell.strip() for cell in row]
        for row in tables
        if row[0].strip() != "where" and set(row[0]) != {"-"}
    ]


def defined_in(path: str) -> set[str]:
    """The test functions that a file defines, without importing it."""
    if not (ROOT / path).exists():
        return set()
    module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {f"{path}::{f.name}" for f in module.body if isinstance(f, ast.FunctionDef)}


def test_every_trap_has_tests_that_exist():
    rows = trap_rows()
    assert len(rows) >= 22
    for where, elsewhere, here, tests in rows:
        assert where
        assert elsewhere
        assert here
        named = re.findall(r"`(tests/\w+\.py::test_\w+)`", tests)
        assert named, where
        assert ", ".join(f"`{name}`" for name in named) == tests
        missing = [n for n in named if n not in defined_in(n.partition("::")[0])]
        assert not missing


def test_every_name_is_documented_exactly_once():
    directive = re.compile(r"^\.\. auto\w+:: optax_heavytail\.(\S+)$", re.MULTILINE)
    counts = Counter(
        name
        for page in PAGES
        for name in directive.findall(page.read_text(encoding="utf-8"))
    )
    kit = [f"testing.{name}" for name in testing.__all__]
    kit += [f"aggregation.{name}" for name in oht.aggregation.__all__]
    kit += [f"diagnostics.{name}" for name in oht.diagnostics.__all__]
    kit += [f"rules.{name}" for name in oht.rules.__all__]
    kit += [f"learned.{name}" for name in oht.learned.__all__]
    assert counts == Counter([*oht.__all__, *kit])


def test_names_of_the_package_that_pages_mention_exist():
    missing = {
        f"{page_id(page)}: {name}"
        for page in PAGES
        for name in re.findall(r"`oht((?:\.\w+)+)", prose(page))
        if not exists(name)
    }
    assert not missing


def exists(dotted_name: str) -> bool:
    try:
        operator.attrgetter(dotted_name.lstrip("."))(oht)
    except AttributeError:
        return False
    return True


def test_the_table_of_the_readme_names_what_there_is():
    rows = README.read_text(encoding="utf-8").partition("\n## Transforms\n")[2]
    rows = rows.partition("\n## ")[0].splitlines()
    names, prefix = [], ""
    for row in rows:
        if row.startswith("| `"):
            for name in re.findall(r"`([\w.]+)`", row.split("|")[1]):
                # `aggregation.x`, `.y`: the second is of the same module.
                prefix = name.rpartition(".")[0] or prefix if "." in name else ""
                names.append(f"{prefix}.{name.rpartition('.')[2]}".strip("."))
    assert len(names) > 40
    assert len(set(names)) == len(names)
    assert not [name for name in names if not exists(name)]


def test_every_page_is_in_the_table_of_contents():
    entries = {
        (block.page.parent / f"{line}.md").resolve()
        for block in ALL_BLOCKS
        if block.language == "{toctree}"
        for line in block.text.split("\n")
        if line and not line.startswith(":")
    }
    assert entries == set(PAGES) - {README, ROOT / "docs" / "index.md"}
