"""The tables of the kit: all are there, and one that dies takes nobody along."""

import inspect
import signal
import sys
import textwrap

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments import conformance
from experiments.benchmarks import kit_choice, kit_judge, kit_tables
from experiments.benchmarks.kit_subjects import OPTAX, PACKAGES, Subject
from experiments.common import markdown
from experiments.common.errors import UserError
from optax_heavytail import testing

LEFT_OUT = {"dpsgd", "optimistic_adam", "scale_by_learning_rate"}
LEFT_OUT |= {"scale_by_madgrad", "scale_by_rprop"}  # parts of what is there


def _optimizers():
    for module in (optax, optax.contrib):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            signature = inspect.signature(function)
            makes = name[0] != "_" and "GradientTransformation" in str(
                signature.return_annotation
            )
            if makes and next(iter(signature.parameters), "") == "learning_rate":
                yield name, function


def test_all_optimizers_of_optax_are_in_the_table():
    found = dict(_optimizers())
    factories = {subject.found().factory for subject in OPTAX.values()}
    missing = {name for name, function in found.items() if function not in factories}
    assert missing == LEFT_OUT
    assert len(found) > 40


def test_the_packages_are_those_that_were_asked_for():
    assert " ".join(PACKAGES) == (
        "psgd-jax psgdax distributed-kron optax-shampoo optax-adan aura-optax "
        "flashoptim-jax"
    )


def test_the_objective_that_sophia_is_given_has_a_derivative_at_0():
    objective = OPTAX["contrib.sophia, float32"].extra_args["obj_fn"]
    assert not jnp.any(jax.grad(objective)(jnp.zeros(2)))


def test_a_factory_is_found_by_its_name_and_its_sizes_are_static():
    found = Subject("optax:lbfgs").found()
    assert found.factory is optax.lbfgs
    assert found.static_args == ("memory_size",)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("optax.sgd", "a factory is named package:function, got 'optax.sgd'"),
        ("no_such_package:sgd", "no_such_package cannot be imported: No module named"),
        ("optax:no_such", "optax has no function no_such"),
    ],
)
def test_a_factory_that_is_not_there_is_an_error(name, says):
    with pytest.raises(UserError, match=says):
        conformance.main([f"--factory={name}"])


def _reports():
    outcomes = [
        testing.Outcome(law, "passed", "")
        for law in testing.DEFAULT_LAWS + testing.OPTIONAL_LAWS
    ]
    changed = [
        testing.Outcome("pure", "broken", "first line\n  smallest input"),
        testing.Outcome("arrays", "skipped", "needs more"),
        *outcomes[2:],
    ]
    stopped = (testing.Outcome("runs", "broken", "cannot run: raised KeyError"),)
    fine = testing.Report(tuple(outcomes))
    return {
        "fine": fine,
        "bad": testing.Report(tuple(changed)),
        "stopped": testing.Report(stopped),
    }


def test_the_tables_say_what_was_passed_broken_and_skipped():
    lines = kit_tables.tables(_reports()).splitlines()
    assert lines[0].startswith("| default laws | pure | arrays | stable | one trace |")
    assert lines[2].startswith("| `fine` | · | · | · |")
    assert lines[3].startswith("| `bad` | **✗** | - | · |")
    assert lines[4].startswith("| `stopped` | - | - | - |")
    assert lines[-4:] == [
        "- `bad`",
        "  - pure: `first line`",
        "- `stopped`",
        "  - runs: `cannot run: raised KeyError`",
    ]


def test_only_its_own_block_of_the_page_is_replaced(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    monkeypatch.setattr(conformance, "PAGE", page)
    blocks = [
        f"<!-- begin {x} -->\nold {x}\n<!-- end {x} -->\n"
        for x in ("optax", "third_party")
    ]
    page.write_text("above\n" + "between\n".join(blocks) + "below\n")
    conformance.write("third_party", "new\n")
    want = page.read_text()
    assert want.startswith("above\n<!-- begin optax -->\nold optax\n<!-- end")
    assert "<!-- begin third_party -->\nnew\n<!-- end third_party -->\nbelow\n" in want
    page.write_text("no marks\n")
    with pytest.raises(UserError, match="a page has blocks"):
        conformance.write("optax", "new\n")
    assert page.read_text() == "no marks\n"


def test_the_page_has_both_blocks():
    page = conformance.PAGE.read_text(encoding="utf-8")
    for block in ("optax", "third_party"):
        assert "| default laws |" in markdown.block(page, block)


def test_another_interpreter_is_asked_for_its_versions():
    others = kit_choice.interpreters([f"psgd-jax={sys.executable}"])
    assert list(others) == ["psgd-jax"]
    with pytest.raises(UserError, match="does not have all of psgd-jax, optax, jax"):
        kit_choice.origin(True, others)
    with pytest.raises(UserError, match="--python must be PACKAGE=PYTHON"):
        kit_choice.interpreters(["none=/no/such"])


MINE = """
import os
import signal
import time

import jax
import optax


def fine(learning_rate):
    return optax.sgd(learning_rate)


def dies(learning_rate):
    def update(grads, state, params=None):
        if isinstance(jax.tree.leaves(grads)[0], jax.core.Tracer):
            os.kill(os.getpid(), signal.SIGSEGV)
        return grads, state

    return optax.GradientTransformation(lambda params: (), update)


def sleeps(learning_rate):
    def update(grads, state, params=None):
        time.sleep(3600)

    return optax.GradientTransformation(lambda params: (), update)


def raises(learning_rate):
    raise KeyError("none")


class Step:
    init = step = None

    def __repr__(self):
        return "Step"


def other(learning_rate):
    return Step()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "kit_test_package.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))


def _judged(name, laws, timeout=300.0, monkeypatch=None):
    monkeypatch.setattr(kit_judge, "ALL_LAWS", laws)
    command = [sys.executable, "-m", "experiments.conformance"]
    factory = f"kit_test_package:{name}"
    of = [f"--factory={factory}", "--only", factory.replace(":", " ")]
    return kit_judge.in_a_process([*command, *of], timeout)


@pytest.mark.nightly
def test_a_process_that_dies_is_reported_and_the_others_laws_are_judged(
    mine, monkeypatch
):
    laws = ("arrays", "jit", "zero", "stable")
    report = _judged("dies", laws, monkeypatch=monkeypatch)
    found = {o.law: (o.status, o.detail) for o in report.outcomes}
    died = f"the process was ended by {signal.SIGSEGV.name} in this law"
    assert list(found) == list(laws)
    assert found["arrays"] == found["stable"] == ("passed", "")
    assert found["jit"] == found["zero"] == ("broken", died)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", "cannot run: KeyError: 'none'"),
        (
            "other",
            "cannot run: its API is not Optax's: tx needs init and update; Step",
        ),
    ],
)
def test_what_cannot_run_is_said_once(name, says, mine, monkeypatch):
    report = _judged(name, ("arrays", "jit"), monkeypatch=monkeypatch)
    (outcome,) = report.outcomes
    assert (outcome.law, outcome.status) == ("runs", "broken")
    assert outcome.detail.startswith(says)


@pytest.mark.nightly  # it waits for that
def test_one_that_takes_too_long_is_stopped(mine, monkeypatch):
    # Time to import everything would do; the first step takes an hour.
    report = _judged("sleeps", ("arrays", "jit"), 8.0, monkeypatch=monkeypatch)
    assert [(o.law, o.status) for o in report.outcomes] == [
        ("arrays", "broken"),
        ("jit", "skipped"),
    ]
    assert "the laws took more than 8 s" in report.outcomes[0].detail


def test_any_optimizer_is_judged_and_its_table_written(
    mine, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(kit_judge, "ALL_LAWS", ("arrays", "scale_equivariant"))
    table = tmp_path / "table.md"
    flags = ["--factory=kit_test_package:fine", "--kwargs={'learning_rate': 0.5}"]
    conformance.main([*flags, f"--output={table}"])
    text = table.read_text()
    assert f"Optax {optax.__version__}, JAX {jax.__version__}, on a CPU." in text
    assert "| `kit_test_package fine` | - | · | - |" in text
    assert "scale_equivariant  passed" in capsys.readouterr().out


@pytest.mark.parametrize("kwargs", ["{", "[1]", "{1: 2}", "print()"])
def test_bad_arguments_are_named(kwargs):
    with pytest.raises(UserError, match="--kwargs must be a dict of names"):
        conformance.main(["--factory=optax:sgd", f"--kwargs={kwargs}"])


def test_unknown_words_are_named():
    with pytest.raises(UserError, match="no optimizer is called"):
        conformance.main(["adamx"])
