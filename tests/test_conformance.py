"""The tables of the kit over Optax: all optimizers are there, and are written right."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments import conformance
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
    factories = {subject.factory for subject in conformance.SUBJECTS.values()}
    missing = {name for name, function in found.items() if function not in factories}
    assert missing == LEFT_OUT
    assert len(found) > 40


def test_an_optimizer_is_examined_on_its_own_parameters(monkeypatch):
    monkeypatch.setattr(testing, "examine", lambda tx, params, **options: params)
    assert set(conformance.examine(conformance.SUBJECTS["sm3, no scalar"])) == {
        "bias",
        "kernel",
    }
    assert conformance.examine(conformance.SUBJECTS["sgd"]) is None


def test_the_objective_that_sophia_is_given_has_a_derivative_at_0():
    objective = conformance.SUBJECTS["contrib.sophia, float32"].extra_args["obj_fn"]
    assert not jnp.any(jax.grad(objective)(jnp.zeros(2)))


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
    fine = testing.Report(tuple(outcomes))
    return {"fine": fine, "bad": testing.Report(tuple(changed))}


def test_the_tables_say_what_was_passed_broken_and_skipped():
    lines = conformance.tables(_reports()).splitlines()
    assert lines[0].startswith("| default laws | pure | arrays | stable | one trace |")
    assert lines[2].startswith("| `fine` | · | · | · |")
    assert lines[3].startswith("| `bad` | **✗** | - | · |")
    assert lines[-2:] == ["- `bad`", "  - pure: `first line`"]


def test_only_what_is_between_the_marks_is_replaced(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    monkeypatch.setattr(conformance, "PAGE", page)
    page.write_text("above\n<!-- begin tables -->\nold\n<!-- end tables -->\nbelow\n")
    conformance.write("new\n")
    text = page.read_text()
    assert text.startswith("above\n<!-- begin tables -->\nOptax ")
    assert text.endswith("new\n<!-- end tables -->\nbelow\n")
    assert "old" not in text
    page.write_text("no marks\n")
    with pytest.raises(UserError, match=r"has blocks \[\], not \['tables'\]"):
        conformance.write("new\n")
    assert page.read_text() == "no marks\n"


def test_unknown_words_are_named():
    with pytest.raises(UserError, match="no optimizer is called"):
        conformance.main(["adamx"])
