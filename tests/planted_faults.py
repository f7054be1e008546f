"""Breaks a copy of the package on purpose and checks that the tests notice.

    python -m tests.planted_faults [word ...]

Each fault replaces one piece of text in one file of a temporary copy and runs a few
tests there, which must fail. The words choose the faults whose names contain one of
them; without words all run, in about ten minutes on two cores. The table says for each
fault whether it was caught. The exit status is 1 if one was missed, if its text is no
longer found, or if the chosen tests fail without any fault.

It is no part of the ordinary test run: run it after a change of the transforms or of
their tests, and every night.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
COPIED = ("optax_heavytail", "tests", "pyproject.toml")

MOMENT, GCLIP, CCLIP = "_clip_by_moment.py", "_gclip.py", "_cclip.py"
TREE, DECAY = "_tree.py", "_weight_decay.py"


class Fault(NamedTuple):
    name: str
    file: str  # in the package
    old: str
    new: str
    tests: tuple[str, ...]  # arguments of pytest


FAULTS = [
    Fault(
        "wrong root of the moment",
        TREE,
        "lambda x: x ** (1 / exponent)",
        "lambda x: x ** (1 / 2)",
        ("tests/test_golden.py", "-k", "acclip__alpha1p5"),
    ),
    Fault(
        "square in place of the first power",
        TREE,
        "return decay * old + (1 - decay) * new",
        "return jnp.sqrt(decay * old**2 + (1 - decay) * new**2)",
        ("tests/test_golden.py", "-k", "acclip__alpha1_"),
    ),
    Fault(
        "eps on the wrong side",
        MOMENT,
        "_tree.safe_divide(threshold, size + eps)",
        "_tree.safe_divide(threshold + eps, size)",
        ("tests/test_golden.py", "-k", "acclip"),
    ),
    Fault(
        "eps missing from the normalized update",
        MOMENT,
        "_tree.safe_divide(u, tau + eps)",
        "_tree.safe_divide(u, tau)",
        ("tests/test_clip_by_moment.py", "-k", "follow_the_reference"),
    ),
    Fault(
        "threshold from the momentum",
        MOMENT,
        "_magnitudes(grads, scope, axis_name), b2, alpha",
        "_magnitudes(inner_tx.update(grads, state.inner_state, params)[0], scope, "
        "axis_name), b2, alpha",
        ("tests/test_golden.py", "-k", "acclip"),
    ),
    Fault(
        "old threshold used for the clip",
        MOMENT,
        "if correct else threshold\n",
        "if correct else state.threshold\n",
        ("tests/test_golden.py", "-k", "acclip"),
    ),
    Fault(
        "absolute value dropped",
        MOMENT,
        "return jax.tree.map(jnp.abs, tree)",
        "return tree",
        ("tests/test_golden.py", "-k", "acclip"),
    ),
    Fault(
        "clip may enlarge",
        MOMENT,
        "jnp.minimum(_tree.safe_divide(threshold, size + eps), 1)",
        "_tree.safe_divide(threshold, size + eps)",
        ("tests/test_golden.py", "-k", "acclip"),
    ),
    Fault(
        "per-leaf in place of the global threshold",
        MOMENT,
        "return _tree.global_norm(tree, axis_name).value",
        "return [n.value for n in jax.tree.leaves(_tree.leaf_norms(tree, axis_name), "
        "is_leaf=lambda x: isinstance(x, _tree.Norm))][0]",
        ("tests/test_clip_by_moment.py", "-k", "follow_the_reference and global"),
    ),
    Fault(
        "per-leaf in place of the global norm",
        GCLIP,
        'if scope == "global":',
        "if False:",
        ("tests/test_golden.py", "-k", "gclip"),
    ),
    Fault(
        "bias correction of the threshold missing",
        MOMENT,
        "limit = _debias(threshold, b2, alpha, count) if correct else threshold",
        "limit = threshold",
        ("tests/test_clip_by_moment.py", "-k", "follow_the_reference"),
    ),
    Fault(
        "bias correction of the threshold without its root",
        MOMENT,
        "tau / weight ** (1 / alpha)",
        "tau / weight",
        ("tests/test_clip_by_moment.py", "-k", "follow_the_reference"),
    ),
    Fault(
        "bias correction of the momentum missing",
        "_acclip.py",
        "ema(b1, debias=correct, accumulator_dtype=mu_dtype)",
        "ema(b1, debias=False, accumulator_dtype=mu_dtype)",
        ("tests/test_acclip.py",),
    ),
    Fault(
        "momentum corrected by another decay",
        "_ema.py",
        "optax.tree.bias_correction(average, decay, count)",
        "optax.tree.bias_correction(average, 0.99, count)",
        ("tests/test_ema.py", "tests/test_acclip.py"),
    ),
    Fault(
        "bias corrected by default",
        MOMENT,
        "correct = normalize if bias_correction is None else bias_correction",
        "correct = True if bias_correction is None else bias_correction",
        ("tests/test_clip_by_moment.py", "-k", "corrects_the_bias"),
    ),
    Fault(
        "the two decays confused",
        "_acclip.py",
        "        b2=b2,\n        alpha=alpha,",
        "        b2=b1,\n        alpha=alpha,",
        ("tests/test_acclip.py",),
    ),
    Fault(
        "cast of the threshold's state dropped",
        MOMENT,
        "_tree.cast_like(threshold, state.threshold),\n            _tree",
        "threshold,\n            _tree",
        ("tests/test_contract.py", "-k", "types_are_stable and moment"),
    ),
    Fault(
        "cast of the inner state dropped",
        MOMENT,
        "_tree.cast_like(inner_state, state.inner_state)",
        "inner_state",
        ("tests/test_contract.py", "-k", "types_are_stable and moment"),
    ),
    Fault(
        "cast of the updates dropped",
        "_learning_rate.py",
        "return _tree.cast_like(scaled, updates), state",
        "return scaled, state",
        ("tests/test_learning_rate.py",),
    ),
    Fault(
        "arithmetic in narrow types",
        TREE,
        "return jax.tree.map(lambda x: jnp.asarray(x, _wide(x)), tree)",
        "return jax.tree.map(jnp.asarray, tree)",
        ("tests/test_ema.py", "tests/test_weight_decay.py", "-k", "narrow or dtype"),
    ),
    Fault(
        "sum over devices dropped",
        TREE,
        "return x if axis is None else jax.lax.psum(x, axis)",
        "return x",
        ("tests/test_sharding.py", "-k", "sees_all_shards or one_axis_name"),
    ),
    Fault(
        "replicated leaves counted once per device",
        TREE,
        "return broadcast_prefix(axis_name, tree, is_name)",
        'return ["x"] * len(jax.tree.leaves(tree)) if axis_name else '
        "broadcast_prefix(axis_name, tree, is_name)",
        ("tests/test_sharding.py", "-k", "replicated_leaf"),
    ),
    Fault(
        "second pass of the norm dropped",
        TREE,
        "return jax.lax.stop_gradient(scale.astype(square.dtype))",
        "return jnp.ones_like(square)",
        ("tests/test_gclip.py", "-k", "extreme"),
    ),
    Fault(
        "norm copied into its consumers",
        TREE,
        "sums = jax.lax.cond(wanted, lambda: sums_of_squares(leaves, scales), "
        "lambda: sums)",
        "sums = sums_of_squares(leaves, scales)",
        ("tests/test_numerics.py", "-k", "no_faster_than"),
    ),
    Fault(
        "slope of the norm at zero",
        TREE,
        "return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))",
        "return jnp.sqrt(square)",
        ("tests/test_contract.py", "-k", "derivatives and norm"),
    ),
    Fault(
        "infinite norm turns the rest to zero",
        GCLIP,
        "jnp.isfinite(scaled) & (tau >= 0)",
        "tau >= 0",
        ("tests/test_gclip.py", "-k", "bad_entries"),
    ),
    Fault(
        "infinite momentum turns to zero",
        MOMENT,
        "return jnp.where(jnp.isfinite(size), factor, jnp.nan)",
        "return factor",
        ("tests/test_clip_by_moment.py", "-k", "bad"),
    ),
    Fault(
        "one bad gradient stays in the threshold",
        MOMENT,
        "jnp.isfinite(size), _tree.power_mean",
        "size == size + 0 * tau, _tree.power_mean",
        ("tests/test_clip_by_moment.py", "-k", "bad"),
    ),
    Fault(
        "infinite entry passed off as a large one",
        CCLIP,
        "jnp.isfinite(g) & (tau >= 0)",
        "tau >= 0",
        ("tests/test_cclip.py", "-k", "bad"),
    ),
    Fault(
        "bad threshold of a schedule accepted",
        CCLIP,
        "jnp.isfinite(g) & (tau >= 0)",
        "jnp.isfinite(g)",
        ("tests/test_cclip.py", "-k", "schedule"),
    ),
    Fault(
        "clip on one side",
        CCLIP,
        "jnp.clip(g, -tau, tau)",
        "jnp.minimum(g, tau)",
        ("tests/test_golden.py", "-k", "cclip"),
    ),
    Fault(
        "weight decay inside the clip",
        GCLIP,
        "        clip_by_norm(threshold, axis_name=axis_name),\n"
        "        add_decayed_weights(weight_decay, mask),\n",
        "        add_decayed_weights(weight_decay, mask),\n"
        "        clip_by_norm(threshold, axis_name=axis_name),\n",
        ("tests/test_gclip.py", "-k", "reference or composition"),
    ),
    Fault(
        "weight decay beyond the learning rate",
        "_acclip.py",
        "        add_decayed_weights(weight_decay, mask),\n"
        "        scale_by_learning_rate(learning_rate),\n",
        "        scale_by_learning_rate(learning_rate),\n"
        "        add_decayed_weights(weight_decay, mask),\n",
        ("tests/test_golden.py", "-k", "acclip"),
    ),
    Fault(
        "names that must not decay inverted",
        DECAY,
        "and not any(word in name",
        "and any(word in name",
        ("tests/test_weight_decay.py",),
    ),
    Fault(
        "empty and total masks accepted",
        DECAY,
        "if coverage.leaves in (0, coverage.total_leaves):",
        "if False:",
        ("tests/test_weight_decay.py",),
    ),
    Fault(
        "step of the theory one count late",
        "schedules.py",
        "4 / (mu * (_number(count) + 2))",
        "4 / (mu * (_number(count) + 1))",
        ("tests/test_schedules.py",),
    ),
    Fault(
        "threshold of the theory one count early",
        "schedules.py",
        "growth = (_number(count) + 1)",
        "growth = (_number(count) + 2)",
        ("tests/test_schedules.py", "tests/test_golden.py", "-k", "clip"),
    ),
    Fault(
        "misprinted exponent of the theory",
        "schedules.py",
        "+ 1) ** (1 / tail_order)",
        "+ 1) ** (tail_order - 1)",
        ("tests/test_averaging.py", "-k", "theorem_1"),
    ),
    Fault(
        "threshold's schedule one count late",
        GCLIP,
        "_base.at_count(threshold, state.count)",
        "_base.at_count(threshold, state.count + 1)",
        ("tests/test_gclip.py", "-k", "schedule"),
    ),
    Fault(
        "learning rate's schedule one count late",
        "_learning_rate.py",
        "_base.at_count(learning_rate, state.count)",
        "_base.at_count(learning_rate, state.count + 1)",
        ("tests/test_learning_rate.py",),
    ),
    Fault(
        "weights of the average one count late",
        "_averaging.py",
        "weight * (x - mean)",
        "2 / (count + 2) * (x - mean)",
        ("tests/test_averaging.py", "-k", "by_hand"),
    ),
    Fault(
        "ascent",
        "_learning_rate.py",
        "sign = -1 if flip_sign else 1",
        "sign = 1 if flip_sign else -1",
        ("tests/test_learning_rate.py", "tests/test_golden.py", "-k", "not tiny"),
    ),
    Fault(
        "hyperparameter taken for the field",
        "_readers.py",
        "return isinstance(path[-1], optax.tree_utils.NamedTupleKey)",
        "return True",
        ("tests/test_readers.py",),
    ),
    Fault(
        "NaN accepted as a hyperparameter",
        "_base.py",
        "if not np.all(above & below):",
        "if np.any(array < low) or np.any(array > high):",
        ("tests/test_hyperparameters.py",),
    ),
]


def run_tests(copy, tests):
    """The exit status of pytest, which is 1 where tests failed, and the seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-o", "addopts=", "-q", *tests],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    return done.returncode, time.perf_counter() - start


def verdict(copy, fault):
    """Plants the fault, runs its tests and takes it out again."""
    file = copy / "optax_heavytail" / fault.file
    text = file.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        return f"the text is there {text.count(fault.old)} times", 0.0
    file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        status, seconds = run_tests(copy, fault.tests)
    finally:
        file.write_text(text, encoding="utf-8")
    return {0: "MISSED", 1: "caught"}.get(
        status, f"pytest ended with {status}"
    ), seconds


def main(words):
    chosen = [f for f in FAULTS if not words or any(word in f.name for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for name in COPIED:
            copier = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copier(ROOT / name, copy / name)
        good = True
        for tests in dict.fromkeys(fault.tests for fault in chosen):
            if run_tests(copy, tests)[0] != 0:
                print(f"fails without a fault: {' '.join(tests)}", flush=True)
                good = False
        for fault in chosen:
            result, seconds = verdict(copy, fault)
            good &= result == "caught"
            print(f"{result:8} {seconds:5.1f} s  {fault.name}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
