"""Breaks a copy of the package on purpose and checks that the tests notice.

    python -m tests.planted_faults [word ...]

Each fault replaces one piece of text in one file of a temporary copy and runs a few
tests there, which must fail. The words choose the faults whose names contain one of
them; without words all run, in about 20 minutes on two cores. The table says for each
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
RATIO, NEUMANN = "_trust_ratio.py", "_neumann.py"
TWO_LOOP, SKIP = "_neumann_two_loop.py", "_skip_if_unsafe.py"

MONITOR, HISTORY = "diagnostics/_monitor.py", "diagnostics/_norm_history.py"
CLIPPING, ROWS = "diagnostics/_monitor_clipping.py", "diagnostics/_rows.py"
READ = "diagnostics/_read_monitor.py"


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
        "_tree.minimum(_tree.safe_divide(threshold, size + eps), 1)",
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
    Fault(
        "bounds of the trust ratio dropped",
        RATIO,
        "ratio = jax.tree.map(lambda r: _bound(r, low, high), raw)",
        "ratio = raw",
        ("tests/test_golden.py", "-k", "lambc__clip1_"),
    ),
    Fault(
        "trust ratio of a zero norm",
        RATIO,
        "ratio = jnp.where(zero, 1, ratio)",
        "ratio = ratio + 0",
        ("tests/test_trust_ratio.py", "-k", "zero_norms"),
    ),
    Fault(
        "trust coefficient behind the bounds",
        RATIO,
        "ratio = coefficient * (w.scaled / length) * u.scale / w.scale",
        "ratio = (w.scaled / length) * u.scale / w.scale",
        ("tests/test_larsc.py", "-k", "bounds_hold"),
    ),
    Fault(
        "trust ratio without its eps",
        RATIO,
        "u.scaled + eps * u.scale",
        "u.scaled",
        ("tests/test_larsc.py", "-k", "lars and numbers"),
    ),
    Fault(
        "norms of the trust ratio square out of float32",
        RATIO,
        "(w.scaled / length) * u.scale / w.scale",
        "(w.scaled / length)",
        ("tests/test_trust_ratio.py", "-k", "extreme"),
    ),
    Fault(
        "infinite layer turned to zero",
        RATIO,
        "return jnp.where(jnp.isfinite(w.scaled + u.scaled), ratio, jnp.nan)",
        "return ratio",
        ("tests/test_trust_ratio.py", "-k", "loud"),
    ),
    Fault(
        "mask of the trust ratio dropped",
        RATIO,
        "return tx if mask is None else optax.masked(tx, mask)",
        "return tx",
        ("tests/test_trust_ratio.py", "-k", "masked"),
    ),
    Fault(
        "layer axis counted from the front alone",
        TREE,
        "if axis != layer_axis % x.ndim",
        "if axis != abs(layer_axis)",
        ("tests/test_trust_ratio.py", "-k", "slices"),
    ),
    Fault(
        "trust ratio of one shard",
        RATIO,
        "_tree.leaf_norms(wide, axis_name, layer_axis)",
        "_tree.leaf_norms(wide, None, layer_axis)",
        ("tests/test_sharding.py", "tests/test_trust_ratio.py", "-k", "eight or ratio"),
    ),
    Fault(
        "LAMBC corrects the bias by default",
        "_lambc.py",
        "bias_correction: bool = False,",
        "bias_correction: bool = True,",
        ("tests/test_golden.py", "-k", "lambc"),
    ),
    Fault(
        "LAMBC decays behind the ratio",
        "_lambc.py",
        "        add_decayed_weights(weight_decay, mask),\n"
        "        scale_by_clipped_trust_ratio(\n"
        "            lower,\n"
        "            upper,\n"
        "            layer_axis=layer_axis,\n"
        "            mask=trust_ratio_mask,\n"
        "            axis_name=axis_name,\n"
        "        ),\n",
        "        scale_by_clipped_trust_ratio(\n"
        "            lower,\n"
        "            upper,\n"
        "            layer_axis=layer_axis,\n"
        "            mask=trust_ratio_mask,\n"
        "            axis_name=axis_name,\n"
        "        ),\n"
        "        add_decayed_weights(weight_decay, mask),\n",
        ("tests/test_golden.py", "-k", "lamb"),
    ),
    Fault(
        "LARSC's momentum before its rate",
        "_larsc.py",
        "        scale_by_learning_rate(learning_rate),\n"
        "        trace(momentum, nesterov),\n",
        "        trace(momentum, nesterov),\n"
        "        scale_by_learning_rate(learning_rate),\n",
        ("tests/test_larsc.py", "-k", "past_steps"),
    ),
    Fault(
        "repulsive force without its bound",
        NEUMANN,
        "gradient = _tree.global_norm(grads, axis_name).value",
        "gradient = jnp.inf",
        ("tests/test_neumann.py", "-k", "bounded"),
    ),
    Fault(
        "repulsive force attracts",
        NEUMANN,
        "cubic * r * r - repulsion",
        "cubic * r * r + repulsion",
        ("tests/test_golden.py", "-k", "neumann__K3__normal"),
    ),
    Fault(
        "repulsive force counted in parameters by default",
        NEUMANN,
        'repulsive_scale: str | jax.typing.ArrayLike = "leaves"',
        'repulsive_scale: str | jax.typing.ArrayLike = "params"',
        ("tests/test_neumann.py", "-k", "scaled_by"),
    ),
    Fault(
        "Neumann's momentum kept at a reset",
        NEUMANN,
        "keep = jnp.where(free, mu, 0)",
        "keep = mu",
        ("tests/test_golden.py", "-k", "neumann__K3__normal"),
    ),
    Fault(
        "Neumann's momentum one update early",
        NEUMANN,
        "after_burn_in = jnp.maximum(state.count - burn_in_steps, 0)",
        "after_burn_in = jnp.maximum(count - burn_in_steps, 0)",
        ("tests/test_golden.py", "-k", "neumann__K1000"),
    ),
    Fault(
        "Neumann's average of the old parameters",
        NEUMANN,
        "(w + u) + decay * (v - (w + u))",
        "w + decay * (v - w)",
        ("tests/test_golden.py", "-k", "neumann__K1000"),
    ),
    Fault(
        "resets at equal distances",
        NEUMANN,
        "_NEVER, state.interval * growth",
        "_NEVER, state.interval",
        ("tests/test_golden.py", "-k", "neumann__K3__normal"),
    ),
    Fault(
        "first reset of Neumann without regard to the burn-in",
        NEUMANN,
        "first = jnp.asarray(burn_in_steps, jnp.int32) + 1",
        "first = jnp.ones([], jnp.int32)",
        ("tests/test_neumann.py", "-k", "default_only"),
    ),
    Fault(
        "displacement of one shard",
        NEUMANN,
        "distance = _tree.global_norm(displaced, axis_name)",
        "distance = _tree.global_norm(displaced)",
        ("tests/test_sharding.py", "-k", "neumann"),
    ),
    Fault(
        "parameters of one shard counted",
        NEUMANN,
        "return _tree.size(params, axis_name)",
        "return _tree.size(params)",
        ("tests/test_sharding.py", "-k", "neumann"),
    ),
    Fault(
        "displacement added twice and not taken back",
        NEUMANN,
        "(_tree.at_least_float32(w) - step)",
        "(_tree.at_least_float32(w) + step)",
        ("tests/test_neumann.py", "-k", "eval_params"),
    ),
    Fault(
        "one inner step too few",
        TWO_LOOP,
        "jax.lax.fori_loop(1, last + 1, body, start)",
        "jax.lax.fori_loop(1, last, body, start)",
        ("tests/test_golden.py", "-k", "two_loop"),
    ),
    Fault(
        "fresh batches numbered from zero",
        TWO_LOOP,
        "grad_fn(point, k) if fresh_batches",
        "grad_fn(point, k - 1) if fresh_batches",
        ("tests/test_neumann_two_loop.py", "-k", "fresh"),
    ),
    Fault(
        "convexified displacement without its factor",
        TWO_LOOP,
        "(mu * eta * m).astype(m.dtype)",
        "(eta * m).astype(m.dtype)",
        ("tests/test_neumann_two_loop.py", "-k", "convexified"),
    ),
    Fault(
        "Hessian-vector product without the gradient",
        TWO_LOOP,
        "return optax.tree.add(*jax.jvp(gradient, (wide,), (offset,)))",
        "return jax.jvp(gradient, (wide,), (offset,))[1]",
        ("tests/test_neumann_two_loop.py", "-k", "quadratic_converges"),
    ),
    Fault(
        "agreement with the old average",
        "_sign_agreement.py",
        "            grads,\n            average,\n        )",
        "            grads,\n            state.ema,\n        )",
        ("tests/test_golden.py", "-k", "sign__constant"),
    ),
    Fault(
        "decay of the agreement one count late",
        "_sign_agreement.py",
        "_base.at_count(decay, state.count)",
        "_base.at_count(decay, state.count + 1)",
        ("tests/test_golden.py", "-k", "sign__linear"),
    ),
    Fault(
        "decay of the agreement outside the exponent",
        "_sign_agreement.py",
        "factor(strength * jnp.sign(g) * jnp.sign(m)) * g",
        "strength * factor(jnp.sign(g) * jnp.sign(m)) * g",
        ("tests/test_golden.py", "-k", "sign__linear"),
    ),
    Fault(
        "AMSGrad forgets its largest moment",
        "_amsgrad.py",
        "direction = _tree.divide_by_root(mean, nu_max, eps)",
        "direction = _tree.divide_by_root(mean, square, eps)",
        ("tests/test_golden.py", "-k", "amsgrad"),
    ),
    Fault(
        "slope of a maximum that is rounded twice",
        "_amsgrad.py",
        "jax.tree.map(_tree.maximum, square, state.nu_max)",
        "jax.tree.map(jnp.maximum, square, state.nu_max)",
        ("tests/test_contract.py", "-k", "derivatives and amsgrad-corrected"),
    ),
    Fault(
        "layer axis that a leaf does not have",
        TREE,
        "if layer_axis is not None and not -x.ndim <= layer_axis < x.ndim:",
        "if False:",
        ("tests/test_trust_ratio.py", "-k", "does_not_have"),
    ),
    Fault(
        "square of Neumann's distance underflows",
        NEUMANN,
        "strength * inverse * inverse",
        "strength / (r * r)",
        ("tests/test_neumann.py", "-k", "leave_float32"),
    ),
    Fault(
        "AMSGrad corrects the bias by default",
        "_amsgrad.py",
        "bias_correction: bool = False,\n) -> optax.GradientTransformationExtraArgs",
        "bias_correction: bool = True,\n) -> optax.GradientTransformationExtraArgs",
        ("tests/test_golden.py", "-k", "amsgrad"),
    ),
    Fault(
        "AdaShift's moment of the newest gradient",
        "_adashift.py",
        "nu = optax.tree.update_moment(oldest, state.nu, b2, 2)",
        "nu = optax.tree.update_moment(grads, state.nu, b2, 2)",
        ("tests/test_golden.py", "-k", "adashift"),
    ),
    Fault(
        "ages of AdaShift's window reversed",
        "_adashift.py",
        "(slot - jnp.arange(n)) % n",
        "(jnp.arange(n) - slot) % n",
        ("tests/test_golden.py", "-k", "adashift__n10"),
    ),
    Fault(
        "AdaShift starts one update early",
        "_adashift.py",
        "started = jnp.asarray(count) > n",
        "started = jnp.asarray(count) >= n",
        ("tests/test_golden.py", "-k", "adashift"),
    ),
    Fault(
        "eps under Adam's root",
        TREE,
        "safe_divide(m, safe_sqrt(v) + eps)",
        "safe_divide(m, safe_sqrt(v + eps))",
        ("tests/test_golden.py", "-k", "adamw"),
    ),
    Fault(
        "Adam's moments uncorrected",
        "_adam.py",
        "        if bias_correction:\n            mean",
        "        if False:\n            mean",
        ("tests/test_golden.py", "-k", "adamw__bc"),
    ),
    Fault(
        "multiplier missing from AdamW's decay",
        "_adam.py",
        "add_decayed_weights(_base.product(weight_decay, multiplier), mask)",
        "add_decayed_weights(weight_decay, mask)",
        ("tests/test_golden.py", "-k", "adamw"),
    ),
    Fault(
        "SGDW's decay scaled by the learning rate",
        "_sgdw.py",
        "_base.product(weight_decay, multiplier)",
        "_base.product(_base.product(weight_decay, learning_rate), multiplier)",
        ("tests/test_golden.py", "-k", "sgdw"),
    ),
    Fault(
        "SGDW's decay inside the momentum",
        "_sgdw.py",
        "        trace(momentum),\n"
        "        add_decayed_weights(_base.product(weight_decay, multiplier), mask),\n",
        "        add_decayed_weights(_base.product(weight_decay, multiplier), mask),\n"
        "        trace(momentum),\n",
        ("tests/test_golden.py", "-k", "sgdw"),
    ),
    Fault(
        "Nesterov's step left out",
        "_trace.py",
        "if nesterov else total",
        "if False else total",
        ("tests/test_trace.py", "-k", "reference"),
    ),
    Fault(
        "bound on the gradient instead of the update",
        "_clipped_gd.py",
        "bound * (inverse * (norm.scale * g))",
        "rate * bound * (inverse * (norm.scale * g))",
        ("tests/test_golden.py", "-k", "clipped_gd and normal"),
    ),
    Fault(
        "bounded update compared without the rate",
        "_clipped_gd.py",
        "is_short = rate * norm.scaled <= bound * norm.scale",
        "is_short = norm.scaled <= bound * norm.scale",
        ("tests/test_clipped_gd.py", "-k", "smaller_of_two"),
    ),
    Fault(
        "offset not rescaled with the norm",
        "_clipped_gd.py",
        "norm.scaled + offset * norm.scale",
        "norm.scaled + offset",
        ("tests/test_clipped_gd.py", "-k", "extreme"),
    ),
    Fault(
        "snapshot one update early",
        "_snapshots.py",
        "is_end = position + 1 == length",
        "is_end = position + 2 == length",
        ("tests/test_snapshots.py", "-k", "end_of_each"),
    ),
    Fault(
        "ring of snapshots by the update",
        "_snapshots.py",
        "slot = state.taken % num_snapshots",
        "slot = state.count % num_snapshots",
        ("tests/test_snapshots.py", "-k", "newest or end_of"),
    ),
    Fault(
        "empty places averaged",
        "_snapshots.py",
        "total / number",
        "total / size",
        ("tests/test_snapshots.py", "-k", "averaged"),
    ),
    Fault(
        "bad norms in the rule for spikes",
        SKIP,
        "is_kept = is_safe & has_length",
        "is_kept = has_length",
        ("tests/test_skip_if_unsafe.py", "-k", "no_bit"),
    ),
    Fault(
        "inner state of a skipped step",
        SKIP,
        "inner_state=_where(is_safe, inner_state, state.inner_state)",
        "inner_state=inner_state",
        ("tests/test_skip_if_unsafe.py", "-k", "no_bit"),
    ),
    Fault(
        "applied after the limit, as optax does",
        SKIP,
        "is_safe = is_finite & ~is_spike",
        "is_safe = (is_finite & ~is_spike) | state.limit_reached",
        ("tests/test_skip_if_unsafe.py", "-k", "after_the_limit"),
    ),
    Fault(
        "spikes of a window that is not full",
        SKIP,
        "return is_full & (log_norm",
        "return (log_norm",
        ("tests/test_skip_if_unsafe.py", "-k", "beside or derivatives"),
    ),
    Fault(
        "each device skips alone",
        SKIP,
        "_tree.global_norm(_tree.at_least_float32(updates), axis_name)",
        "_tree.global_norm(_tree.at_least_float32(updates))",
        ("tests/test_skip_if_unsafe.py", "-k", "together"),
    ),
    Fault(
        "cycles that grow too fast",
        "schedules.py",
        "        length *= t_mult\n",
        "        length *= t_mult * t_mult\n",
        ("tests/test_schedules.py", "-k", "restarts and not optax"),
    ),
    Fault(
        "transformer's peak one update early",
        "schedules.py",
        "step = _number(count) + 1\n",
        "step = _number(count) + 2\n",
        ("tests/test_schedules.py", "-k", "transformer"),
    ),
    Fault(
        "grown batch without its rate",
        "schedules.py",
        "rates.append(rate * size / batch_size)",
        "rates.append(rate)",
        ("tests/test_schedules.py", "-k", "grow"),
    ),
    Fault(
        "raw trust ratio read for the used one",
        "_readers.py",
        '"raw_trust_ratio" if raw else "trust_ratio"',
        '"trust_ratio" if raw else "raw_trust_ratio"',
        ("tests/test_readers.py", "-k", "ratio"),
    ),
    Fault(
        "fields and groups rounded alike",
        "_stochastic_rounding.py",
        "jax.random.key(_seed(names, params), impl=_KIND)",
        "jax.random.key(0, impl=_KIND)",
        ("tests/test_stochastic_rounding.py", "-k", "independently"),
    ),
    Fault(
        "a window that stands still when its count is full",
        SKIP,
        "jnp.append(state.log_norms[1:], log_norm)",
        "state.log_norms.at[state.num_norms % window].set(log_norm)",
        ("tests/test_skip_if_unsafe.py", "-k", "moves_on"),
    ),
    Fault(
        "rounding to the nearest",
        "_stochastic_rounding.py",
        "bits + _random_bits(x.shape, seed)",
        "bits + jnp.uint32(2**15)",
        ("tests/test_stochastic_rounding.py",),
    ),
    Fault(
        "rounding always down",
        "_stochastic_rounding.py",
        "(bits + _random_bits(x.shape, seed)) >> 16",
        "bits >> 16",
        ("tests/test_stochastic_rounding.py",),
    ),
    Fault(
        "rounding noise of 15 bits",
        "_stochastic_rounding.py",
        "return (x ^ (x >> 16)) >> 16",
        "return (x ^ (x >> 16)) >> 17",
        ("tests/test_stochastic_rounding.py",),
    ),
    Fault(
        "the same rounding noise in each column",
        "_stochastic_rounding.py",
        "stride = math.prod(shape[axis + 1 :]) % 2**32",
        "stride = axis % 2**32",
        ("tests/test_stochastic_rounding.py",),
    ),
    Fault(
        "the same rounding noise at each update",
        "_stochastic_rounding.py",
        "StochasticRoundingState(\n            jax.random.key_data(key)",
        "StochasticRoundingState(\n            state.key",
        ("tests/test_stochastic_rounding.py",),
    ),
    Fault(
        "largest numbers rounded to infinity",
        "_stochastic_rounding.py",
        "jnp.clip(x.astype(jnp.float32), -largest, largest)",
        "x.astype(jnp.float32)",
        ("tests/test_stochastic_rounding.py",),
    ),
    Fault(
        "NaN and infinity rounded like numbers",
        "_stochastic_rounding.py",
        "jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))",
        "rounded",
        ("tests/test_stochastic_rounding.py",),
    ),
    Fault(
        "float16 states accepted",
        "_base.py",
        "(jnp.bfloat16, jnp.float32, jnp.float64)",
        "(jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)",
        ("tests/test_hyperparameters.py", "-k", "floating_point"),
    ),
    Fault(
        "second moment of Adam not rounded stochastically",
        "_adam.py",
        "round_bfloat16_fields(tx, mu=mu_dtype, nu=nu_dtype)",
        "round_bfloat16_fields(tx, mu=mu_dtype)",
        ("tests/test_stochastic_rounding.py",),
    ),
    Fault(
        "one ratio for a stack of leaves",
        "_stack_leaves.py",
        "support(inner(layer_axis=0))",
        "support(inner(layer_axis=None))",
        ("tests/test_stack_leaves.py",),
    ),
    Fault(
        "stacks unpacked in another order",
        "_stack_leaves.py",
        "zip(group, jnp.unstack(stack), strict=True)",
        "zip(group[::-1], jnp.unstack(stack), strict=True)",
        ("tests/test_stack_leaves.py",),
    ),
    Fault(
        "labels left out of the stacks",
        "_stack_leaves.py",
        "setdefault((word, jnp.shape(leaf), alone), [])",
        "setdefault((words[0], jnp.shape(leaf), alone), [])",
        ("tests/test_stack_leaves.py",),
    ),
    Fault(
        "large leaves stacked too",
        "_stack_leaves.py",
        "alone = i if jnp.size(leaf) > _MOST_ENTRIES else None",
        "alone = None",
        ("tests/test_stack_leaves.py",),
    ),
    Fault(
        "aggregation: mean in place of the kept middle",
        "aggregation/_rows.py",
        "inside = [(cut <= i) & (i < length - cut) for",
        "inside = [(0 <= i) & (i < length) for",
        ("tests/test_aggregation.py", "-k", "median_and_trimmed"),
    ),
    Fault(
        "aggregation: NaN of weight 0 gets in",
        "aggregation/_rows.py",
        "jnp.where(weight == 0, 0, weight * x)",
        "weight * x",
        ("tests/test_aggregation.py", "-k", "weight_zero"),
    ),
    Fault(
        "aggregation: pairs of the network left out",
        "aggregation/_rows.py",
        "d, q, r = q - p, q >> 1, p",
        "d, q, r = q - p, q >> 1, 0",
        ("tests/test_aggregation.py", "-k", "network"),
    ),
    Fault(
        "aggregation: median starts from the mean",
        "aggregation/_medians.py",
        "last, (count - 1) // 2, count",
        "last, 0, count",
        ("tests/test_aggregation.py", "-k", "corrupted"),
    ),
    Fault(
        "aggregation: stuck on a microbatch",
        "aggregation/_medians.py",
        "moved = force > held",
        "moved = (force > held) & (held == 0)",
        ("tests/test_aggregation.py", "-k", "wrong_microbatch"),
    ),
    Fault(
        "aggregation: off the right microbatch",
        "aggregation/_medians.py",
        "jnp.where(moved, 1 - held / jnp.where(moved, force, 1), 0)",
        "jnp.ones_like(force)",
        ("tests/test_aggregation.py", "-k", "right_microbatch"),
    ),
    Fault(
        "aggregation: microbatches that are not finite kept",
        "aggregation/_medians.py",
        "kept = jnp.where(finite, weights, 0)",
        "kept = weights",
        ("tests/test_aggregation.py", "-k", "not_finite"),
    ),
    Fault(
        "aggregation: a fraction loses one to rounding",
        "aggregation/_medians.py",
        "math.floor(trim * n + 1e-9)",
        "math.floor(trim * n)",
        ("tests/test_aggregation.py", "-k", "fractions"),
    ),
    Fault(
        "aggregation: clipped by the norm of all",
        "aggregation/_means.py",
        "_gclip.clip_factors(_tree.row_norms(grads), max_norm)",
        "_gclip.clip_factors(_tree.global_norm(grads), max_norm)",
        ("tests/test_aggregation.py", "-k", "test_means"),
    ),
    Fault(
        "aggregation: running sum in bfloat16",
        "aggregation/_means.py",
        "cls(_tree.zeros_like(like),",
        "cls(jax.tree.map(jnp.zeros_like, like),",
        ("tests/test_aggregation.py", "-k", "running"),
    ),
    Fault(
        "aggregation: weights of the devices ignored",
        "aggregation/_devices.py",
        'kwargs["weights"] = gather(weights)',
        "pass",
        ("tests/test_aggregation.py", "-k", "shard_map"),
    ),
    Fault(
        "aggregation: distances of numbers not scaled",
        "aggregation/_medians.py",
        "weights * (nearest / jnp.where(apart, distance, 1))",
        "weights / jnp.where(apart, distance, 1)",
        ("tests/test_aggregation.py", "-k", "huge_and_tiny"),
    ),
    Fault(
        "aggregation: stuck in the rounding of a microbatch",
        "aggregation/_medians.py",
        "_CLOSE = 1e-3",
        "_CLOSE = 0.0",
        ("tests/test_aggregation.py", "-k", "rounding_of_a_wrong"),
    ),
    Fault(
        "monitor: norms of the update in place of the gradient",
        MONITOR,
        "gradient_norms=gradient_norms,",
        "gradient_norms=norms(updates),",
        ("tests/test_diagnostics_monitor.py", "-k", "norms_are_those"),
    ),
    Fault(
        "monitor: norms without a second pass",
        ROWS,
        "jnp.any(scales != 1), rescaled",
        "jnp.any(scales != scales), rescaled",
        ("tests/test_diagnostics_monitor.py", "-k", "squares_leave"),
    ),
    Fault(
        "monitor: a bad step enters the reservoir",
        HISTORY,
        "is_drawn = is_drawable & (place < size)",
        "is_drawn = place < size",
        ("tests/test_diagnostics_monitor.py", "-k", "bad_gradients_are_counted"),
    ),
    Fault(
        "monitor: a bad norm enters the histogram",
        HISTORY,
        "is_finite.astype(jnp.int32)",
        "1",
        ("tests/test_diagnostics_monitor.py", "-k", "bad_gradients_are_counted"),
    ),
    Fault(
        "monitor: a reservoir of the last steps",
        HISTORY,
        "jnp.maximum(num_seen - 1, 0), drawn)",
        "jnp.maximum(num_seen - 1, 0), (num_seen - 1) % size)",
        ("tests/test_diagnostics_monitor.py", "-k", "every_step_is_as_likely"),
    ),
    Fault(
        "monitor: a reservoir that is always drawn for",
        HISTORY,
        "drawn = number % jnp.maximum(num_seen, 1).astype(jnp.uint32)",
        "drawn = number % jnp.uint32(size)",
        ("tests/test_diagnostics_monitor.py", "-k", "every_step_is_as_likely"),
    ),
    Fault(
        "monitor: bins off by one",
        HISTORY,
        "return jnp.where(tiny, 0, 1 + jnp.clip(",
        "return jnp.where(tiny, 0, jnp.clip(",
        ("tests/test_diagnostics_monitor.py", "-k", "quantiles_are or bins_from"),
    ),
    Fault(
        "monitor: edges of the bins for their middle",
        HISTORY,
        "(place - 0.5) / BINS_PER_OCTAVE",
        "(place - 1) / BINS_PER_OCTAVE",
        ("tests/test_diagnostics_monitor.py", "-k", "quantiles_are or bins_from"),
    ),
    Fault(
        "monitor: a sample out of order",
        READ,
        'order = np.argsort(drawn_at, kind="stable")',
        "order = np.arange(drawn_at.size)",
        ("tests/test_diagnostics_monitor.py", "-k", "order_of_time"),
    ),
    Fault(
        "monitor: rows of the leaves in another order",
        ROWS,
        "return jnp.concatenate([_tree.global_norm(each).value[None], each])",
        "return jnp.concatenate([_tree.global_norm(each).value[None], each[::-1]])",
        ("tests/test_diagnostics_monitor.py", "-k", "norms_are_those"),
    ),
    Fault(
        "clipping: compared with the gradient, not the momentum",
        "_clip_by_moment.py",
        "both = _base.Clipping(moment, ",
        "both = _base.Clipping(grads, ",
        ("tests/test_diagnostics_monitor.py", "-k", "shares_and_cosine and acclip"),
    ),
    Fault(
        "clipping: not in the units of the output",
        "_clip_by_moment.py",
        "return both if with_raw else",
        "return both._replace(raw=moment) if with_raw else",
        ("tests/test_diagnostics_monitor.py", "-k", "shares_and_cosine and normalized"),
    ),
    Fault(
        "clipping: bad gradients enter the averages",
        CLIPPING,
        "return jnp.where(good, mean + (x - mean) / window, mean)",
        "return mean + (x - mean) / window",
        ("tests/test_diagnostics_monitor.py", "-k", "enters_no_average"),
    ),
    Fault(
        "clipping: averages that are not corrected for their start",
        READ,
        "weight = jnp.where(state.weight > 0, state.weight, jnp.nan)",
        "weight = jnp.where(state.weight > 0, 1.0, jnp.nan)",
        ("tests/test_diagnostics_monitor.py", "-k", "shares_and_cosine and value"),
    ),
    Fault(
        "clipping: a cosine of squares that are no numbers",
        READ,
        "_tree.safe_divide(v, norm[i])",
        "v",
        ("tests/test_diagnostics_monitor.py", "-k", "does_not_depend_on_the_size"),
    ),
    Fault(
        "a verdict on one end of the interval",
        "diagnostics/_verdict.py",
        "if high < LIMIT:",
        "if low < LIMIT:",
        ("tests/test_diagnostics_noise.py", "-k", "verdicts"),
    ),
    Fault(
        "a power law that does not fit counts",
        "diagnostics/_verdict.py",
        "estimate.p_value < _FIT_LEVEL",
        "estimate.p_value > 2",
        ("tests/test_diagnostics_noise.py", "-k", "verdicts"),
    ),
    Fault(
        "a gradient is its own signal",
        "diagnostics/_effect.py",
        "signal = (cross.sum() - np.trace(cross)) / (n * (n - 1))",
        "signal = cross.sum() / n**2",
        ("tests/test_diagnostics_noise.py", "-k", "the_effect"),
    ),
    Fault(
        "sketches without signs",
        "diagnostics/_collect_noise.py",
        "padded[: self.size] = noise * self.signs",
        "padded[: self.size] = noise",
        ("tests/test_diagnostics_noise.py", "-k", "move_together"),
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
