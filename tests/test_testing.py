"""The conformance kit: it passes what is right, and names what is broken."""

import os
import re
import subprocess
import sys
import traceback

import chex
import hypothesis
import jax
import jax.numpy as jnp
import optax
import pytest

from optax_heavytail import testing
from optax_heavytail.testing import _compare, _run, _search
from tests.in_time import in_time
from tests.lawbreakers import FAULTS, branches, each_leaf, squares, stateless
from tests.registry import CASES, make_params

ALL_LAWS = testing.DEFAULT_LAWS + testing.OPTIONAL_LAWS
SGD = {"learning_rate": 0.1, "momentum": 0.9}
ADAMW = {"learning_rate": 0.1}


def broken(error):
    """The laws that a message names, one per block."""
    blocks = [x for x in str(error).splitlines() if x.startswith("law ")]
    return [block.split("'")[1] for block in blocks]


NAMES = [f"{fault.law}-{k}" for k, fault in enumerate(FAULTS)]


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_a_planted_fault_is_caught_by_the_name_of_its_law(fault):
    options = {} if fault.kwargs is None else {"factory": fault.make, "kwargs": {}}
    with pytest.raises(AssertionError) as caught:
        testing.check_transformation(fault.make(), laws=[fault.law], **options)
    assert broken(caught.value) == [fault.law]
    assert fault.says in str(caught.value)
    alone = getattr(testing, f"check_{fault.law}")
    with pytest.raises(AssertionError) as caught_alone:
        alone(fault.make(), **options)
    assert str(caught_alone.value) == str(caught.value)


def test_every_law_has_a_fault_and_a_function():
    assert {fault.law for fault in FAULTS} == set(ALL_LAWS) == set(_run.BODIES)
    assert not set(testing.DEFAULT_LAWS) & set(testing.OPTIONAL_LAWS)
    functions = {name for name in testing.__all__ if name.startswith("check_")}
    assert functions == {"check_transformation", *(f"check_{x}" for x in ALL_LAWS)}
    assert testing.__all__ == sorted(testing.__all__)
    assert all(getattr(testing, name).__doc__ for name in functions)


def test_a_transform_can_keep_all_laws():
    tx = each_leaf(lambda g: jnp.where(jnp.isfinite(g), g, 0) / 2)
    report = testing.check_transformation(tx, laws=ALL_LAWS)
    assert [o.law for o in report.outcomes] == list(ALL_LAWS)
    assert [o.law for o in report.with_status("skipped")] == ["injected"]


@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [
        pytest.param(optax.sgd, SGD, id="momentum"),
        pytest.param(
            optax.sgd, {"learning_rate": 0.1}, id="sgd", marks=pytest.mark.nightly
        ),
        pytest.param(optax.adamw, ADAMW, id="adamw", marks=pytest.mark.nightly),
    ],
)
def test_optax_passes_the_default_laws(factory, kwargs):
    report = testing.check_transformation(
        factory(**kwargs), factory=factory, kwargs=kwargs
    )
    assert {o.status for o in report.outcomes} == {"passed"}


def test_the_smallest_input_is_one_entry_of_one_step():
    fault = each_leaf(lambda g: jnp.where(jnp.abs(g) > 5, 0 * g, g))
    with pytest.raises(AssertionError) as caught:
        testing.check_scale_equivariant(fault)
    what, smallest = str(caught.value).splitlines()
    assert what.startswith("law 'scale_equivariant' is broken: scaled by 4, update[")
    one_entry = (
        "  smallest input found: 1 step, gradients 0 but for "
        r"step 1 \['\w+'\](\[\d+(, \d+)?\])? = 2"
    )
    assert re.fullmatch(one_entry, smallest)


def test_all_broken_laws_are_in_one_message_and_each_run_says_the_same():
    messages = set()
    for _ in range(2):
        with pytest.raises(AssertionError) as caught:
            testing.check_transformation(branches(), laws=["pure", "jit", "vmap"])
        messages.add(str(caught.value))
    (message,) = messages
    assert broken(message) == ["jit", "vmap"]
    assert len(message.splitlines()) == 4
    assert max(map(len, message.splitlines())) < 450


def test_what_cannot_be_checked_is_said_and_why():
    one_leaf = jnp.ones(3)
    report = testing.check_transformation(optax.sgd(0.1), one_leaf)
    skipped = {o.law: o.detail for o in report.with_status("skipped")}
    assert skipped == {
        "injected": "needs factory= (and kwargs=) to build the transform again",
        "masked": "needs params of two leaves or more",
        "partition": "needs params of two leaves or more",
        "none": "needs params of two leaves or more",
        "sharding": "needs a leaf with a dimension of even length",
    }
    lines = str(report).splitlines()
    assert lines[0] == "pure            passed"
    assert "injected        skipped  needs factory=" in str(report)
    assert len(lines) == len(testing.DEFAULT_LAWS)


def test_one_device_skips_the_sharding_law():
    code = """
import optax
from optax_heavytail import testing
print(testing.check_sharding(optax.sgd(0.1)))
"""
    out = _python(code, XLA_FLAGS="").stdout
    assert "status='skipped', detail='needs two devices, and jax has one here'" in out


def test_the_kit_needs_no_hypothesis():
    code = """
import sys
sys.modules["hypothesis"] = None
import optax
from optax_heavytail import testing
print(testing.check_zero(optax.sgd(0.1)).status)
"""
    assert _python(code).stdout == "passed\n"


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((optax.sgd,), TypeError, "tx needs init and update"),
        ((optax.sgd(0.1), {}), ValueError, "params has no leaves"),
        (
            (optax.sgd(0.1), {"a": jnp.ones(2), "n": jnp.arange(2)}),
            ValueError,
            r"params\['n'\] has dtype int32",
        ),
        ((optax.sgd(0.1), {"a": "b"}), ValueError, r"params\['a'\] is a str; the laws"),
    ],
    ids=["factory", "empty", "integers", "string"],
)
def test_bad_input_is_named(arguments, error, says):
    with pytest.raises(error, match=says):
        testing.check_transformation(*arguments)
    with pytest.raises(error, match=says):
        testing.check_pure(*arguments)


def test_unknown_laws_and_lonely_kwargs_are_named():
    with pytest.raises(ValueError, match="laws has 'purity'; the laws are pure, "):
        testing.check_transformation(optax.sgd(0.1), laws=["pure", "purity"])
    with pytest.raises(ValueError, match="laws has nothing"):
        testing.check_transformation(optax.sgd(0.1), laws=[])
    with pytest.raises(ValueError, match="kwargs is given without factory"):
        testing.check_transformation(optax.sgd(0.1), kwargs=SGD)
    with pytest.raises(ValueError, match="max_examples is 0; it must be >= 1"):
        testing.check_pure(optax.sgd(0.1), max_examples=0)
    with pytest.raises(ValueError, match=r"rtol is -1; it must be in \[0, inf\)"):
        testing.check_jit(optax.sgd(0.1), rtol=-1)


def test_arguments_that_a_transform_needs_are_passed_to_every_update():
    kwargs = {"max_learning_rate": 1.0}
    tx = optax.polyak_sgd(**kwargs)
    laws = ["jit", "scan", "vmap", "injected", "masked", "multi_steps", "extra_args"]
    message = "law 'runs' is broken: cannot run: raised TypeError.*'value'$"
    with pytest.raises(AssertionError, match=message):
        testing.check_transformation(tx, laws=laws, max_examples=3)
    testing.check_transformation(
        tx,
        factory=optax.polyak_sgd,
        kwargs=kwargs,
        extra_args={"value": jnp.float32(2.0)},
        laws=laws,
    )


def smallest_so_far():
    best = lambda params: jnp.asarray(jnp.inf, jnp.float32)  # noqa: E731
    return optax.GradientTransformation(best, lambda g, s, p=None: (g, s))


@pytest.mark.parametrize(
    ("tx", "laws"),
    [
        (optax.chain(optax.centralize(), optax.adam(0.1)), "grad"),
        (optax.adam(0.1, mu_dtype=jnp.bfloat16), "jit"),
        (optax.adafactor(0.1, min_dim_size_to_factor=1), "sharding"),
        (smallest_so_far(), ("zero", "huge")),
    ],
    ids=["cancels", "narrow-state", "equal-shapes", "begins-as-inf"],
)
def test_what_is_right_is_not_accused(tx, laws):
    testing.check_transformation(tx, laws=laws, max_examples=3)


def test_an_inf_may_stay_where_it_was_and_come_nowhere_else():
    best = lambda params: jnp.asarray([jnp.inf, 0.0])  # noqa: E731
    swaps = optax.GradientTransformation(best, lambda g, s, p=None: (g, s[::-1]))
    with pytest.raises(AssertionError, match=r"state is \[ 0., inf\], which is not"):
        testing.check_zero(swaps)


def test_hundreds_of_leaves_are_drawn():
    params = {f"layer {k}": jnp.ones(8) for k in range(300)}
    testing.check_pure(stateless(lambda grads, _: grads), params, max_examples=2)
    with pytest.raises(AssertionError, match="is bfloat16"):
        testing.check_stable(each_leaf(lambda g: g.astype(jnp.bfloat16)), params)


def refuses(updates, state, params=None):
    raise RuntimeError("no more")


def test_pytest_shows_where_a_transform_raised():
    tx = optax.GradientTransformation(lambda params: (), refuses)
    for check in (testing.check_transformation, testing.check_empty, testing.check_jit):
        with pytest.raises(AssertionError) as caught:
            check(tx)
        cause = caught.value.__cause__
        assert isinstance(cause, RuntimeError)
        frames = traceback.extract_tb(cause.__traceback__)
        assert frames[-1].name == "refuses"
        assert not [f for f in frames if "/hypothesis/" in f.filename]
    with pytest.raises(AssertionError) as caught:
        testing.check_odd(squares())
    assert caught.value.__cause__ is None


def test_a_failure_begins_where_the_transform_does():
    with pytest.raises(AssertionError) as caught:
        testing.check_transformation(branches(), laws="jit")
    cause = caught.value.__cause__
    assert isinstance(cause, jax.errors.TracerBoolConversionError)
    files = [f.filename for f in traceback.extract_tb(cause.__traceback__)]
    assert not [name for name in files if "optax_heavytail/testing" in name]
    assert any(name.endswith("lawbreakers.py") for name in files)


PLUGGED = """
import jax
import optax
from optax_heavytail import testing


def test_passes(check_transformation):
    assert len(jax.devices()) == 8
    report = check_transformation(optax.sgd(0.1), laws=["zero", "sharding"])
    assert len(report.with_status("passed")) == 2


def test_cannot_run(check_transformation):
    check_transformation(optax.stateless(lambda g, p: g["none"]))


def test_one_law():
    testing.check_odd(optax.stateless_with_tree_map(lambda g, p: g * g))
"""


def test_the_plugin_has_devices_and_no_frame_of_the_kit_is_shown(tmp_path):
    (tmp_path / "test_mine.py").write_text(PLUGGED)
    (tmp_path / "conftest.py").write_text(
        'pytest_plugins = ["optax_heavytail.testing.plugin"]\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "."],
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "2 failed, 1 passed" in done.stdout
    assert "law 'runs' is broken: cannot run: raised KeyError: 'none'" in done.stdout
    assert "law 'odd' is broken: reflected" in done.stdout
    assert "_check.py" not in done.stdout
    assert "_run.py" not in done.stdout


@hypothesis.given(hypothesis.strategies.sampled_from([0.1, 0.5]))
@hypothesis.settings(max_examples=2)
def test_it_can_be_asked_inside_of_a_search(learning_rate):
    testing.check_transformation(optax.sgd(learning_rate), laws=["jit", "scan", "odd"])
    with pytest.raises(AssertionError, match="law 'odd' is broken: reflected"):
        testing.check_odd(squares())


def test_a_profile_says_how_many_examples_there_are(monkeypatch):
    tried = []
    run = _search.Search.run
    monkeypatch.setattr(
        _search.Search, "run", lambda self, n: (tried.append(n), run(self, n))
    )
    hypothesis.settings.register_profile("three", max_examples=3)
    for profile, options in (
        ("three", {}),
        ("default", {}),
        ("three", {"max_examples": 2}),
    ):
        hypothesis.settings.load_profile(profile)
        try:
            testing.check_odd(optax.identity(), **options)
            testing.check_jit(optax.identity(), **options)
        finally:
            hypothesis.settings.load_profile("tests")
    assert tried == [3, 3, 10, 3, 2, 2]


def test_one_trace_is_skipped_where_jit_is_off():
    with jax.disable_jit():
        outcome = testing.check_one_trace(optax.sgd(0.1))
    assert (outcome.status, outcome.detail) == (
        "skipped",
        "needs jit, which is turned off here",
    )


def test_a_state_of_no_numbers_is_named_and_without_addresses():
    tx = optax.GradientTransformation(lambda p: jnp.sin, lambda g, s, p=None: (g, s))
    report = testing.examine(tx, laws=["pure", "arrays", "stable", "jit"])
    assert [o.law for o in report.with_status("broken")] == ["arrays", "jit"]
    assert "init's state is a PjitFunction and not a jax array" in str(report)
    assert " at 0x" not in str(report)


def test_digits_are_shown_until_there_is_a_difference():
    one = jnp.float32(-0.0035)
    with pytest.raises(_compare.Broken) as caught:
        _compare.same_bits(one, jnp.nextafter(one, jnp.float32(0)), "update")
    shown = re.fullmatch(r"update is (.+) and not (.+)", str(caught.value))
    assert shown[1] != shown[2]
    assert float(shown[1]) == pytest.approx(-0.0035)
    right = {"w": jnp.ones((2, 9))}
    wrong = {"w": right["w"].at[1, 7].set(2)}
    with pytest.raises(_compare.Broken, match=r"\['w'\]\[1, 7\] is 2. and not 1."):
        _compare.same_bits(wrong, right, "update")


def only_positive(learning_rate=0.1):
    if learning_rate > 0:
        return optax.scale(-learning_rate)
    raise ValueError("must be positive")


def test_the_hyperparameter_is_named():
    with pytest.raises(AssertionError, match=r"raised Tracer.*\['learning_rate'\]\.\n"):
        testing.check_injected(only_positive(), factory=only_positive)


def long_error(updates, state, params=None):
    raise ValueError(f"{'a long story ' * 50} about learning_rate")


def test_the_end_of_a_long_message_is_there():
    tx = optax.GradientTransformation(lambda params: (), long_error)
    with pytest.raises(AssertionError, match=r" \.\.\. .* about learning_rate$"):
        testing.check_transformation(tx)


@pytest.mark.parametrize(
    ("update", "says"),
    [
        (lambda params, grads: (params, grads), r"update takes \(params, grads\)"),
        (lambda g, s, p=None: g, r"update returned a dict and not"),
    ],
    ids=["arguments", "result"],
)
def test_another_api_gets_one_line(update, says):
    report = testing.examine(optax.GradientTransformation(lambda p: (), update))
    first, *rest = report.outcomes
    assert (first.law, first.status) == ("runs", "broken")
    assert re.search(f"^cannot run: its API is not Optax's: {says}", first.detail)
    assert {o.status for o in rest} == {"skipped"}
    assert len(rest) == len(testing.DEFAULT_LAWS)


def test_what_is_compiled_is_dropped_before_it_fills_the_process(monkeypatch):
    dropped = []
    monkeypatch.setattr(jax, "clear_caches", lambda: dropped.append(1))
    testing.check_zero(optax.sgd(0.1))
    assert not dropped
    monkeypatch.setattr(_run, "_MOST_MAPS", 10)
    testing.check_zero(optax.sgd(0.1))
    assert dropped


def test_one_name_is_as_good_as_a_list():
    kwargs = {"learning_rate": 0.1, "mu_dtype": None}
    report = testing.check_transformation(
        optax.adam(**kwargs),
        factory=optax.adam,
        kwargs=kwargs,
        static_args="mu_dtype",
        laws="injected",
    )
    assert str(report) == "injected  passed"


def test_large_leaves_repeat_what_was_drawn():
    params = {"w": jnp.ones((300, 500)), "b": jnp.ones(300)}
    with pytest.raises(AssertionError) as caught:
        testing.check_odd(squares(), params)
    assert re.search(r"step 1 \['\w'\]\[.+\] = 1, step 1 ", str(caught.value))
    assert re.search(r", and \d+ more$", str(caught.value))


VARIED = ("pure", "arrays", "jit", "scan", "vmap", "grad", "extra_args", "many_steps")


class VariantsTest(chex.TestCase):
    """In the classes of other projects."""

    @chex.all_variants
    def test_update(self):
        tx = optax.adam(0.1)
        varied = optax.GradientTransformation(tx.init, self.variant(tx.update))
        testing.check_transformation(varied, laws=VARIED)
        bad = branches()
        varied = optax.GradientTransformation(bad.init, self.variant(bad.update))
        with pytest.raises(AssertionError, match="law 'scan' is broken"):
            testing.check_scan(varied)


QUICK = ("acclip",)


@pytest.mark.parametrize("case", in_time(CASES, QUICK.__contains__))
def test_our_transforms_pass_the_default_laws(case):
    any_tree = set(testing.DEFAULT_LAWS) - ({"empty", "scalar"} - {case.any_tree})
    testing.check_transformation(
        case.make(),
        make_params(),
        factory=case.factory,
        kwargs=case.kwargs,
        static_args=case.static_args,
        extra_args=case.extra_args,
        laws=[law for law in testing.DEFAULT_LAWS if law in any_tree],
        rtol=max(1e-4, case.drift),
        max_examples=5,
    )
