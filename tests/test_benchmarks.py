import importlib
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from experiments.benchmarks import (
    accumulate,
    common,
    contestants,
    gpu,
    growth,
    kernels,
    leaves,
    memory,
    monitor,
    spectrum,
    standing,
    startup,
    step,
    throughput,
    trees,
    two_loop,
)
from experiments.common.errors import UserError
from experiments.tasks import without_data


@pytest.fixture(autouse=True)
def restored_cache_setting():
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def run(main, tmp_path, *argv):
    """Calls a benchmark; returns its page and its records after the header."""
    output = tmp_path / "folder" / "bench.x"
    main([f"--output={output}", *argv])
    assert {p.name for p in output.parent.iterdir()} == {"bench.x.md", "bench.x.jsonl"}
    page = output.with_name("bench.x.md").read_text(encoding="utf-8")
    lines = output.with_name("bench.x.jsonl").read_text(encoding="utf-8").splitlines()
    header, *records = map(json.loads, lines)
    assert header["kind"] == "header"
    for name in ("command", "date", "hardware", "versions", "commit"):
        assert header[name] in page
    assert f"jax {jax.__version__}" in header["versions"]
    return page, records


def cells(page):
    """The rows of all tables, without headings."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    rules = [i for i, row in enumerate(found) if set(row) == {"---"}]
    headings = {i - 1 for i in rules}
    return [row for i, row in enumerate(found) if i not in headings | set(rules)]


# Trees


@pytest.mark.parametrize(
    ("name", "num_leaves", "num_params"),
    [
        ("resnet50", 161, 25_557_032),
        ("bert_base", 199, 109_482_240),
        ("bert_large", 391, 335_141_888),
        ("tiny", 3, 32 * 64 + 64 + 1),
    ],
)
def test_trees_have_the_published_sizes(name, num_leaves, num_params):
    shapes = trees.TREES[name]()
    assert len(shapes) == num_leaves
    assert trees.num_params(shapes) == num_params


def test_filled_leaves_have_their_shapes_and_size():
    params = trees.filled({"a": (300, 400), "b": ()}, 0.02, seed=0)
    assert {k: p.shape for k, p in params.items()} == {"a": (300, 400), "b": ()}
    assert all(p.dtype == jnp.float32 for p in params.values())
    np.testing.assert_allclose(jnp.std(params["a"]), 0.02, rtol=0.02)


# Timing


def test_ratios_are_of_the_same_round():
    assert common.paired_ratio([2, 9, 4], [1, 3, 4]) == (1.5, 2, 2.5)
    assert common.paired_ratio([5, 0.1, 7], [5, 0.1, 7]) == (1, 1, 1)
    # A machine that gets ten times slower leaves no spread.
    assert common.paired_ratio([2, 20, 200], [1, 10, 100]) == (2, 2, 2)
    with pytest.raises(ValueError, match="zip"):
        common.paired_ratio([1, 2], [1])


def test_a_summary_shows_the_median_and_quartiles():
    summary = common.summarize([4, 1, 3, 2, 5])
    assert summary == (2, 3, 4)
    assert str(summary) == "3 [2, 4]"
    assert str(common.summarize([1.00449])) == "1.004 [1.004, 1.004]"


@pytest.mark.parametrize("warm_ups", [0, 1, 2])
def test_interleaved_rounds_go_back_and_forth(warm_ups):
    calls = []

    def timer(name):
        def timed():
            calls.append(name)
            return float(len(calls))

        return timed

    timers = {name: timer(name) for name in "abc"}
    times = common.interleave(timers, 3, warm_ups=warm_ups)
    skipped = 3 * warm_ups
    assert "".join(calls) == "abc" * warm_ups + "abc" + "cba" + "abc"
    assert times == {
        "a": [1 + skipped, 6 + skipped, 7 + skipped],
        "b": [2 + skipped, 5 + skipped, 8 + skipped],
        "c": [3 + skipped, 4 + skipped, 9 + skipped],
    }


# Step

# Float32 numbers that are read and written, by pass over the tree.
PASSES = {
    "optax.adamw": ["gwmv", "wmv"],
    "oht.acclip": ["gwmv", "wmv"],
    "oht.acclip, normalize": ["gwmv", "wmv"],
    "oht.compress_state(optax.adamw)": ["gwMV", "wMV"],  # a byte each
    "oht.compress_state(oht.acclip)": ["gwMV", "wMV"],
    "optax: clip + adamw": ["g", "gwmv", "wmv"],
    "oht.clip_by_history + adamw": ["g", "gwmv", "wmv"],
    "oht.guarded(optax.adamw)": ["g", "gwmv", "wmv"],
    "optax: clip + momentum": ["g", "gwm", "wm"],
    "oht.gclip": ["gm", "m", "wm", "w"],
    "oht.cclip": ["gwm", "wm"],
    "optax.lamb": ["gwmv", "mv", "wmv", "w"],
    "oht.lambc, as LAMB": ["gwmv", "mv", "wmv", "w"],
    "oht.lambc": ["gwmv", "mv", "wmv", "w"],
    "optax.lars": ["gw", "gwm", "wm"],
    "oht.larsc": ["gw", "gwm", "wm"],
    "neumann in plain jnp": ["gwv", "gwmv", "wmv"],
    "oht.neumann": ["gwv", "gwmv", "wmv"],
}


def test_bytes_are_those_of_the_passes():
    counted = {
        name: sum(1 if x.isupper() else 4 for x in "".join(passes))
        for name, passes in PASSES.items()
    }
    stated = {name: c.bytes_per_param for name, c in contestants.CONTESTANTS.items()}
    assert stated == counted


def test_bytes_per_second_follow_from_the_time():
    record = {
        "contestant": "a",
        "reference": "b",
        "bytes_per_param": 28,
        "seconds": [2.0, 2.0, 5.0],
        "reference_seconds": [1.0, 4.0, 5.0],
    }
    assert step.row(record, size=10**9, copy_rate=28e9) == [
        *("a", "2000", "b", "4000", "1 [0.75, 1.5]", "28", "14", "50%")
    ]


@pytest.mark.parametrize(
    "chosen",
    [
        ["oht.acclip", "oht.neumann"],
        pytest.param(list(contestants.CONTESTANTS), marks=pytest.mark.nightly),
    ],
    ids=["two", "all"],
)
def test_step_measures_each_pair(tmp_path, chosen):
    argv = ["--trees=tiny", "--repeats=2"]
    if len(chosen) < len(contestants.CONTESTANTS):
        argv.append(f"--contestants={','.join(chosen)}")
    page, records = run(step.main, tmp_path, *argv)
    copy, *pairs = records
    assert copy["kind"] == "copy"
    assert len(copy["seconds"]) == 2
    found = [(r["contestant"], r["reference"], r["bytes_per_param"]) for r in pairs]
    assert found == step.pairs(chosen)
    assert {name for name, *_ in found} >= set(chosen)
    for record in pairs:
        times = record["seconds"] + record["reference_seconds"]
        assert len(times) == 4
        assert min(times) > 0
    rows = cells(page)
    assert [(row[0], row[2], int(row[5])) for row in rows] == found
    assert "2,113 parameters in 3 leaves" in page
    assert ("torch is not installed" in page) != step.has_torch()


@pytest.mark.nightly
def test_importing_is_timed_beside_optax(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "CONTESTANTS", (startup.REFERENCE, "import json"))
    page, (plain, small) = run(startup.main, tmp_path, "--repeats=1")
    assert small["seconds"][0] < 0.5 * plain["seconds"][0]
    assert [cell[0] for cell in cells(page)] == ["`import optax`", "`import json`"]
    assert cells(page)[0][2] == "-"


def test_each_contestant_has_the_reference_of_its_target():
    references = {(name, reference) for name, reference, _ in step.pairs()}
    assert references >= {
        ("oht.acclip", "optax.adamw"),
        ("oht.lambc, as LAMB", "optax.lamb"),
        ("oht.gclip", "optax: clip + momentum"),
        ("oht.neumann", "optax.adamw"),
        ("oht.neumann", "neumann in plain jnp"),
    }
    assert {reference for _, reference in references} <= set(contestants.CONTESTANTS)


def test_plain_neumann_is_the_same_formula():
    first = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array(0.3)}

    def trajectory(tx):
        def one(carry, i):
            params, state = carry
            grads = jax.tree.map(lambda w: jnp.sin(w + i), params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (first, tx.init(first))
        return jax.lax.scan(one, start, jnp.arange(20))[0][0]

    ours, plain = (
        trajectory(oht.neumann(0.05)),
        trajectory(contestants.plain_neumann(0.05)),
    )
    for name in first:
        assert not np.allclose(plain[name], first[name], atol=0.1)
        # Both round in float32, in another order, 20 times.
        np.testing.assert_allclose(plain[name], ours[name], rtol=1e-5)


def test_several_steps_in_a_call_are_single_ones():
    tx = contestants.CONTESTANTS["optax: clip + adamw"].make()
    shapes = {"a": (8, 4), "b": (4,)}
    grads = trees.filled(shapes, 1.0, seed=1)
    found = step.Stepper(tx, step.compile_step(tx, grads, steps=3), shapes, grads)
    expected = jax.tree.map(jnp.copy, found.params)
    state = tx.init(expected)
    for _ in range(3):
        updates, state = tx.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
    assert found() > 0
    for name in shapes:
        # The loop rounds some products once where single steps do twice.
        np.testing.assert_allclose(found.params[name], expected[name], rtol=1e-5)


# Many leaves


def test_leaves_measures_contestants_and_their_references(tmp_path):
    argv = ["--counts=3", "--builds=1", "--repeats=2"]
    argv += ["--contestants=oht.lambc,oht.acclip"]
    page, records = run(leaves.main, tmp_path, *argv)
    names = ["optax.adamw", leaves.REFERENCE, "oht.lambc", "oht.acclip"]
    expected = [(3, name) for name in names]
    assert [(r["leaves"], r["contestant"]) for r in records] == expected
    for record in records:
        [stages], [total] = record["stages"], record["total_seconds"]
        assert stages.keys() == {"trace", "lower", "compile"}
        assert min(stages.values()) > 0
        assert sum(stages.values()) == pytest.approx(total)
        assert len(record["step_seconds"]) == 2
    rows = cells(page)
    assert [(int(row[0]), row[1]) for row in rows] == expected
    for row in rows:
        if row[1] == row[6]:
            assert row[7] == row[9] == "1 [1, 1]"
    assert [row[6] for row in rows] == [leaves.REFERENCE] * 3 + ["optax.adamw"]


def test_leaves_knows_what_each_contestant_is_compared_with():
    assert {*leaves.REFERENCES, *leaves.REFERENCES.values()} <= {*leaves.CONTESTANTS}
    for make in leaves.CONTESTANTS.values():
        make().init(jnp.zeros(3))


def test_leaves_rows_are_ratios_to_the_reference():
    def record(name, compile_seconds, step_seconds):
        stages = [{"trace": 1, "lower": 2, "compile": s} for s in compile_seconds]
        return {
            "leaves": 7,
            "contestant": name,
            "stages": stages,
            "total_seconds": [s + 3 for s in compile_seconds],
            "step_seconds": step_seconds,
        }

    records = [
        record(leaves.REFERENCE, [17, 27], [0.004, 0.002]),
        record("fast", [2, 12], [0.001, 0.001]),
    ]
    assert leaves.rows(records)[1] == [
        *("7", "fast", "1", "2", "7", "10", leaves.REFERENCE),
        *("0.375 [0.3125, 0.4375]", "1", "0.375 [0.3125, 0.4375]"),
    ]


# Memory


@pytest.mark.nightly
def test_memory_counts_every_case(tmp_path):
    page, records = run(memory.main, tmp_path, "--tree=tiny")
    found = {(r["contestant"], *sorted(r["dtypes"].items())): r for r in records}
    assert len(found) == len(records) == len(cells(page)) == len(memory.cases())
    assert {r["contestant"] for r in records} == set(memory.CONTESTANTS)
    n = 2113
    for record in records:
        assert record["parameters"] == n
        # Parameters, gradients and state go in; counts that are not used may not.
        assert 0 <= 8 * n + record["state"] - record["argument"] <= 64
        saved = record["argument"] - record["alias"]
        assert record["peak"] == saved + record["output"] + record["temp"]
        # Gradients are read; parameters and state are read and written.
        assert record["moved"] >= 12 * n + 2 * record["state"] - 64

    def state(name, **dtypes):
        return found[(name, *sorted(dtypes.items()))]["state"]

    # Besides, a count of 4 bytes in Adam's, and one in each part of ours; a key of 8.
    wide = {"mu_dtype": "float32", "threshold_dtype": "float32"}
    narrow = dict.fromkeys(wide, "bfloat16")
    assert state("optax.adamw", mu_dtype="float32") == 8 * n + 4
    assert state("optax.adamw", mu_dtype="bfloat16") == 6 * n + 4
    assert 8 * n < state("oht.acclip", **wide) <= 8 * n + 16
    assert 4 * n < state("oht.acclip", **narrow) <= 4 * n + 32
    assert 8 * n < state("oht.neumann") <= 8 * n + 16
    assert 4 * n <= state("optax.sgd", accumulator_dtype="float32") <= 4 * n + 4


@pytest.mark.nightly
def test_a_process_of_its_own_measures_the_same():
    case = ("optax.sgd", {"accumulator_dtype": "bfloat16"}, "tiny")
    assert memory.in_own_process(*case) == memory.measure(*case)


def test_memory_rows_are_bytes_per_parameter():
    record = {
        "contestant": "a",
        "dtypes": {},
        "parameters": 100,
        **{"state": 800, "temp": 50, "peak": 1650, "moved": 4000},
        "device_peak": None,
    }
    expected = ["a", "float32", "8.00", "0.50", "16.50", "40.00"]
    assert memory.row(record) == [*expected, "-"]
    assert memory.row(record | {"device_peak": 2000}) == [*expected, "20.00"]


# Kernels

PROGRAM = """HloModule x

%branch (x: f32[4,8]) -> f32[4,8] {
  ROOT %y = f32[4,8]{1,0} fusion(%x), kind=kLoop
}

ENTRY %main (p: f32[4,8], q: u8[4,8]) -> f32[] {
  %p.1 = f32[4,8]{1,0} parameter(0), metadata={op_name="p"}
  %q = u8[4,8]{1,0} parameter(1)
  %few = f32[1,8]{1,0} constant({...})
  %sum.1 = f32[4,8]{1,0} fusion(%p.1, %q, %few), kind=kLoop, calls=%branch
  %norm = f32[] fusion(%sum.1, f32[4,8]{1,0} %p.1), kind=kCustom
  %c = (f32[], /*index=1*/pred[4,8]{1,0}) conditional(%norm, %sum.1)
  %both = (f32[4,8]{1,0}, bf16[4,8]{1,0}) fusion(%c), kind=kLoop
  ROOT %out = f32[] get-tuple-element(%c), index=0
}
"""


def test_kernels_are_told_by_what_they_read_and_write():
    found = [(kernel.kind, kernel.moved) for kernel in kernels.kernels(PROGRAM)]
    assert found == [
        (("2 f32, u8", "f32"), 4 * 32 + 32 + 4 * 8 + 4 * 32),
        (("2 f32", "-"), 2 * 4 * 32 + 4),
        (("pred", "bf16, f32"), 4 + 32 + 4 * 32 + 2 * 32),
    ]


def test_equal_programs_count_once():
    own = PROGRAM[PROGRAM.index("%branch") : PROGRAM.index("ENTRY")]
    again = own.replace("%branch", "%other.1").replace("%x", "%z")
    assert list(kernels.programs(PROGRAM).values()) == [1]
    assert list(kernels.programs(again + PROGRAM).values()) == [2]


def test_kernels_of_a_step_move_what_the_compiler_says(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "SMALL_LEAVES", 3)
    monkeypatch.setattr(kernels, "COMPILED", ("optax.adamw",))
    flags = ("--tree=tiny", "--contestants=optax.adamw")
    page, (record, small) = run(kernels.main, tmp_path, *flags)
    assert small["kernels"] >= 3 * 3
    assert small["different_operations"] < small["operations"]
    moved = sum(kind["bytes"] for kind in record["kinds"])
    # Adam's count, and a few scalars of its bias correction.
    assert abs(moved - record["moved"]) <= 128
    assert cells(page)[-3][-1] == f"{moved / 2113:.2f}"


# Growth


def test_only_a_rate_that_is_a_constant_compiles_again(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "TRAINED", ())
    flags = ("--contestants=oht.acclip", "--updates=16")
    page, (long, anew) = run(growth.main, tmp_path, *flags)
    assert long["first"] == 1
    assert long["of_rates"] == [0] * len(growth.RATES)
    assert long["arrays"] == long["bytes"] == 0
    assert anew["compiled"] == [1] * len(growth.RATES)
    assert cells(page)[0][:5] == ["oht.acclip", "1", "0", "+0", "+0"]
    assert cells(page)[1] == [growth.ANEW, "1", "7"]


# Whole training steps


@pytest.mark.nightly
def test_a_batch_takes_the_memory_of_a_microbatch_and_a_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(accumulate, "in_own_process", accumulate.measure)
    flags = ("--batch=512", "--microbatches=8")
    page, (record,) = run(accumulate.main, tmp_path, *flags)
    assert [cell[:2] for cell in cells(page)] == [["8", "64"]]
    # The loop over microbatches adds its counter and their keys.
    assert record["temporary"] < 1.05 * record["alone_and_gradient"]
    assert 0 < record["difference"] < 1e-5
    assert 1 < record["loss"] < 5  # of ten classes, untrained: about 2.3


@pytest.mark.nightly
def test_throughput_has_every_optimizer_and_its_share(tmp_path, monkeypatch):
    build = throughput.build

    def fewer(*args):
        config, *rest = build(*args)
        config.compare.optimizers = ("adamw",)
        return config, *rest

    monkeypatch.setattr(throughput, "build", fewer)
    flags = ("--configs=bert_tiny", "--rows=2", "--repeats=2", "--dtype=float32")
    page, records = run(throughput.main, tmp_path, *flags)
    names = [record["optimizer"] for record in records]
    assert names == [throughput.GRADIENT, "adamw"]
    assert all(len(record["seconds"]) == 2 for record in records)
    assert [cell[1] for cell in cells(page)] == names


def test_the_share_of_an_optimizer_is_what_the_gradient_leaves():
    record = {
        "model": "m",
        "dtype": "float32",
        "rows": 10,
        "optimizer": "adamw",
        "seconds": [0.2, 0.4, 0.4],
        "gradient_seconds": [0.1, 0.3, 0.3],
    }
    _, _, time, rate, share = throughput.row(record)
    assert time.startswith("400")
    assert rate == "25"
    assert share == "0.25 [0.25, 0.375]"


@pytest.mark.nightly
def test_the_monitor_is_compared_with_the_optimizer_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "OPTIMIZERS", ("adamw",))
    page, (record,) = run(monitor.main, tmp_path, "--rows=2", "--repeats=2")
    rows = record["leaves"] + 1
    # Of each row three norms, a count, the histogram and the reservoir; two counts, a
    # key, and when the reservoir was filled; the leaves' names, of ten letters or more.
    state = rows * 4 * (4 + 1025 + 1024) + 4 * (2 + 2 + 1024)
    names = record["monitor_bytes"] - state
    assert 10 * record["leaves"] < names < 100 * record["leaves"]
    assert [cell[1] for cell in cells(page)] == list(record["seconds"])
    is_bare = [cell[3] == "-" for cell in cells(page)]
    assert is_bare == [True, False, False, False, True]
    twice = record | {"seconds": {"alone": [1, 1], monitor.MONITORED[1]: [2, 3]}}
    assert monitor.rows_of(twice)[1][3] == "2.5 [2.25, 2.75]"


# Spectra


def one_matrix(name, rows, dtype):
    """In place of `throughput.build`: a model that compiles in no time."""
    functions = {
        "init": lambda key: (jax.random.normal(key, (300, 300)) / 300**0.5, {}),
        "weight": lambda batch: jnp.float32(rows),
        "loss_sum": lambda w, state, x, key: (jnp.sum(jnp.tanh(x @ w) ** 2), state),
        "eval_sums": None,
    }
    batch = jnp.cos(jnp.arange(rows * 300.0)).reshape(rows, 300)
    return None, without_data(functions), batch


@pytest.mark.nightly
def test_a_search_takes_the_memory_of_its_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(spectrum.throughput, "build", one_matrix)
    flags = ("--configs=bert_tiny", "--rows=2", "--steps=20", "--repeats=2")
    page, (record,) = run(spectrum.main, tmp_path, *flags)
    assert record["parameters"] == 90_000
    vectors = 4 * 20 * record["parameters"]
    assert vectors < record["bytes"] < 1.5 * vectors  # no second copy of them
    assert record["smallest"] < 0 < record["largest"]
    assert all(len(times) == 2 for times in record["seconds"].values())
    (row,) = cells(page)
    assert row[1:3] == [f"{record['parameters']:,}", "20"]


def test_a_search_is_told_in_products_of_its_steps():
    record = {
        "model": "m",
        "dtype": "float32",
        "rows": 1,
        "parameters": 1_000_000,
        "steps": 10,
        "bytes": 80_000_000,
        "seconds": {"gradient": [1.0], "product": [2.5], "search": [30.0]},
    }
    _, *numbers = spectrum.row(record)
    assert numbers == [
        "1,000,000",
        "10",
        "1 [1, 1]",
        "2.5 [2.5, 2.5]",
        "30 [30, 30]",
        "1.2 [1.2, 1.2]",
        "0.08",
        "0.04",
    ]


# Two loops


BATCH_SIZE, WIDTHS = 32, (64, 3, 10)


@pytest.fixture(scope="module")
def problem():
    return two_loop.make_problem(BATCH_SIZE, WIDTHS)


def test_the_direction_solves_the_damped_system(problem):
    low, high = problem.bounds
    assert problem.direction.shape == (64 * 3 + 3 + 3 * 10 + 10,)
    assert low < problem.smallest < 0 < -low < high
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    direction = unravel(jnp.asarray(problem.direction, flat.dtype))
    derivative = jax.jit(lambda w, v: jax.jvp(problem.grad_fn, (w,), (v,)))
    gradient, product = derivative(problem.params, direction)
    damped = jax.tree.map(lambda h, x: h - low * x, product, direction)
    for found, expected in zip(
        jax.tree.leaves(damped), jax.tree.leaves(gradient), strict=True
    ):
        # The Hessian is a float32 one.
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_cosine_is_that_of_the_angle():
    assert two_loop.cosine({"a": jnp.array([3.0, 4.0])}, np.array([6.0, 8.0])) == 1
    assert two_loop.cosine([jnp.array(1.0), jnp.array(0.0)], np.array([0.0, 1.0])) == 0


@pytest.mark.nightly
def test_two_loop_measures_every_method(problem, tmp_path, monkeypatch):
    problems = {(BATCH_SIZE, WIDTHS): problem}  # making another takes long
    monkeypatch.setattr(two_loop, "make_problem", lambda *sizes: problems[sizes])
    argv = ["--inner_steps=1,60", "--batch_size=32", "--width=3", "--repeats=2"]
    page, records = run(two_loop.main, tmp_path, *argv)
    expected = [(k, method) for k in (1, 60) for method in two_loop.METHODS]
    assert [(r["inner_steps"], r["method"]) for r in records] == expected
    rows = cells(page)
    assert [(int(row[0]), row[1]) for row in rows] == expected
    assert [row[2] for row in rows[:3]] == ["2", "1 + 1 HVP", "1 + at most 2 HVP"]
    assert [row[2] for row in rows[3:]] == ["61", "1 + 60 HVP", "1 + at most 61 HVP"]
    for record in records:
        assert len(record["seconds"]) == len(record["gradient_seconds"]) == 2
    first, last = (dict(zip(two_loop.METHODS, r, strict=True)) for r in halves(records))
    for method in two_loop.METHODS:
        assert 0 < first[method]["cosine"] < last[method]["cosine"]
    # The error of K steps is at most (1 - 0.1 / 1.1)^61 = 0.3% of the direction.
    assert last["neumann, HVP"]["cosine"] > 0.9999
    assert last["conjugate gradients"]["cosine"] > 0.9999


def halves(items):
    return items[: len(items) // 2], items[len(items) // 2 :]


# All of them, for an accelerator


@pytest.mark.nightly
def test_all_benchmarks_run_within_their_time_and_say_how_they_ended(tmp_path, capfd):
    parts = "--parts=memory,leaves"
    gpu.main([f"--output={tmp_path / 'all'}", "--small", parts])
    rows = cells((tmp_path / "all" / "README.md").read_text(encoding="utf-8"))
    assert [(row[0], row[2]) for row in rows] == [
        ("memory", "complete"),
        ("leaves", "complete"),
    ]
    files = {path.name for path in (tmp_path / "all").iterdir()}
    assert files == {
        "README.md",
        *(f"{x}{y}" for x in ("memory", "leaves") for y in (".md", ".jsonl")),
    }
    capfd.readouterr()
    with pytest.raises(UserError, match="not every benchmark is complete: see"):
        gpu.main([f"--output={tmp_path / 'late'}", "--seconds=1", parts])
    rows = cells((tmp_path / "late" / "README.md").read_text(encoding="utf-8"))
    assert rows[0][2] == "stopped: 1 s were left for it"
    assert rows[1][2] == "not begun: no time was left"


def test_the_commands_of_all_benchmarks_take_their_flags(monkeypatch):
    """The long ones too, which need an accelerator to end in time."""
    monkeypatch.setattr(common, "check_writable", _stop)
    for part in gpu.PARTS.values():
        module = importlib.import_module(f"experiments.benchmarks.{part.module}")
        for flags in (part.flags, part.small):
            with pytest.raises(_StoppedError):
                module.main(["--output=x", *flags])


class _StoppedError(Exception):
    pass


def _stop(path):
    raise _StoppedError(path)


def test_a_choice_of_contestants_brings_its_references():
    assert leaves.with_references(["oht.acclip"]) == [
        "optax.adamw",
        "optax: clip + lamb",
        "oht.acclip",
    ]


# Standing still


def test_what_moved_is_marked_and_what_the_quartiles_cover_is_not():
    def record(*ratio, moved=40.0):
        return {
            "kind": "standing",
            "what": "x",
            "ratio": list(ratio),
            "bytes": moved,
        }

    before = record(0.98, 1.0, 1.02)
    marks = [
        standing.row(record(*ratio), before)[-1]
        for ratio in [(1.15, 1.2, 1.3), (0.9, 1.2, 1.3), (1.03, 1.05, 1.07), (0.5,) * 3]
    ]
    assert marks == ["+20%", "", "", "-50%"]
    assert standing.row(before, None)[-1] == "new"
    assert standing.row(record(1, 1, 1, moved=44.0), before)[3:5] == ["44", "40"]


@pytest.mark.nightly
def test_a_run_is_compared_with_its_own_table(tmp_path):
    flags = ["--tree=tiny", "--leaves=2", "--builds=1", "--repeats=1"]
    _, records = run(standing.main, tmp_path, *flags)
    own = tmp_path / "folder" / "bench.x.jsonl"
    against = own.rename(tmp_path / "before.jsonl")
    (tmp_path / "folder" / "bench.x.md").unlink()
    page, again = run(standing.main, tmp_path, *flags, f"--against={against}")
    assert [r["what"] for r in again] == [r["what"] for r in records]
    assert len(cells(page)) == len(standing.STEPS) + len(standing.COMPILATIONS)
    assert all(row[2] != "-" for row in cells(page))
    against.write_text('{"kind": "standing", "what": "x", "ratio": [1], "bytes": 0}\n')
    with pytest.raises(UserError, match=r"before.jsonl.*ratio"):
        standing.main([f"--output={tmp_path / 'x'}", f"--against={against}"])


@pytest.mark.parametrize("ratio", ["[0, 0, 0]", "[1, 1, 1, 1]", "[1, 1]", "1"])
def test_a_ratio_that_none_is_compared_with_is_refused_at_once(tmp_path, ratio):
    path = tmp_path / "before.jsonl"
    start = '{"kind": "standing", "what": "", "bytes": 0, "ratio": '
    path.write_text(f"{start}{ratio}}}\n")
    with pytest.raises(UserError, match=r"before.jsonl.*ratio=.*must be a low"):
        standing.measured_before(path)


@pytest.mark.parametrize("content", [None, "", '{"kind": "copy"}\n'])
def test_a_table_to_compare_with_must_be_one(tmp_path, content):
    path = tmp_path / "before.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"against=.*before.jsonl.*an earlier run"):
        standing.main([f"--output={tmp_path / 'x'}", f"--against={path}"])


# Flags


@pytest.mark.parametrize("known", [contestants.CONTESTANTS, growth.CONTESTANTS])
def test_every_contestant_can_be_named_among_others(known):
    """Also one with a comma in its name."""
    assert common.several(",".join(known), common.one_of(list(known))) == list(known)


@pytest.mark.parametrize(
    ("main", "argv", "parts"),
    [
        (step.main, [], ["--output"]),
        (step.main, ["--output=x", "--trees=vgg"], ["--trees", "'vgg'", "resnet50"]),
        (step.main, ["--output=x", "--trees=tiny,tiny"], ["'tiny,tiny'", "once"]),
        (step.main, ["--output=x", "--repeats=0"], ["--repeats", "'0'", "1 or more"]),
        (step.main, ["--output=x", "--steps=-1"], ["--steps", "'-1'", "1 or more"]),
        (step.main, ["--output=x", "--tree=tiny"], ["--tree=tiny"]),
        (step.main, ["--output={file}/x"], ["{file}: ", "File exists"]),
        (leaves.main, ["--output=x", "--counts=10,many"], ["--counts", "'many'"]),
        (leaves.main, ["--output=x", "--builds=1.5"], ["--builds", "'1.5'"]),
        (memory.main, ["--output=x", "--tree=vgg"], ["--tree", "'vgg'", "bert_base"]),
        (memory.main, ["--output=x", "--repeats=3"], ["--repeats=3"]),
        (two_loop.main, ["--output=x", "--inner_steps=0"], ["--inner_steps", "'0'"]),
    ],
)
def test_bad_flags_end_in_one_line(main, argv, parts, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("kept")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common.memory, "keep_freed", lambda: None)
    monkeypatch.setattr(sys, "argv", ["program", *(a.format(file=file) for a in argv)])
    with pytest.raises(SystemExit) as caught:
        common.run(main)
    message = caught.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    for part in parts:
        assert part.format(file=file) in message
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "kept"


def test_ratios_in_the_documentation_are_those_of_the_tables():
    root = pathlib.Path(__file__).parent.parent
    ratio = re.compile(r"([\d.]+) \[([\d.]+), ([\d.]+)\]")
    measured = {
        tuple(f"{float(number):.2f}" for number in found)
        for page in (root / "experiments" / "results").glob("bench_step_*.md")
        for found in ratio.findall(page.read_text(encoding="utf-8"))
    }
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    told = ratio.findall(page)
    assert len(told) >= 16
    assert set(told) <= measured


def test_bytes_in_the_documentation_are_those_of_the_table():
    root = pathlib.Path(__file__).parent.parent
    result = root / "experiments" / "results" / "bench_memory_cpu.md"
    measured = {
        tuple(f"{float(cell):.1f}" for cell in row[2:6])
        for row in cells(result.read_text(encoding="utf-8"))
    }
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    part = page.partition("## Memory")[2].partition("##")[0]
    told = [tuple(f"{float(cell):.1f}" for cell in row[1:]) for row in cells(part)[1:]]
    assert len(told) >= 9
    assert set(told) <= measured


def test_kernels_in_the_documentation_are_those_of_the_table():
    root = pathlib.Path(__file__).parent.parent
    result = root / "experiments" / "results" / "bench_kernels_cpu.md"
    measured = [
        (*row[:4], f"{float(row[4]):.1f}")
        for row in cells(result.read_text(encoding="utf-8"))
    ]
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    part = page.partition("## Kernels")[2].partition("\n## ")[0]
    small = page.partition("What there is to compile")[2].partition("\n\n**")[0]
    told = [
        (row[0].strip("`"), *row[1:4], f"{float(row[4]):.1f}")
        for row in cells(part)[1:] + cells(small)[1:]
    ]
    assert len(told) >= 14
    assert set(told) <= set(measured)


def test_the_large_batch_in_the_documentation_is_that_of_the_table():
    root = pathlib.Path(__file__).parent.parent
    result = root / "experiments" / "results" / "bench_accumulate_cpu.md"
    measured = [row[:5] for row in cells(result.read_text(encoding="utf-8"))]
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    part = page.partition("## A batch of 32,768")[2].partition("##")[0]
    assert len(measured) == 4
    assert cells(part)[1:] == measured
