"""Faults of layer-wise rates, Adam's kin and sign agreement."""

from tests.planted_faults.fault import Fault

FAULTS = [
    Fault(
        "bounds of the trust ratio dropped",
        "optax_heavytail/_trust_ratio.py",
        "ratio = [_bound(r, low, high) for r in raw]",
        "ratio = raw",
        ("tests/test_golden.py", "-k", "lambc__clip1_"),
    ),
    Fault(
        "trust ratio of a zero norm",
        "optax_heavytail/_trust_ratio.py",
        "ratio = jnp.where(zero, 1, ratio)",
        "ratio = ratio + 0",
        ("tests/test_trust_ratio.py", "-k", "zero_norms"),
    ),
    Fault(
        "trust coefficient behind the bounds",
        "optax_heavytail/_trust_ratio.py",
        "ratio = coefficient * (w.scaled / length) * u.scale / w.scale",
        "ratio = (w.scaled / length) * u.scale / w.scale",
        ("tests/test_larsc.py", "-k", "bounds_hold"),
    ),
    Fault(
        "trust ratio without its eps",
        "optax_heavytail/_trust_ratio.py",
        "u.scaled + eps * u.scale",
        "u.scaled",
        ("tests/test_larsc.py", "-k", "lars and numbers"),
    ),
    Fault(
        "norms of the trust ratio square out of float32",
        "optax_heavytail/_trust_ratio.py",
        "(w.scaled / length) * u.scale / w.scale",
        "(w.scaled / length)",
        ("tests/test_trust_ratio.py", "-k", "extreme"),
    ),
    Fault(
        "infinite layer turned to zero",
        "optax_heavytail/_trust_ratio.py",
        "return _tree.nan_unless(jnp.isfinite(w.scaled + u.scaled), ratio)",
        "return ratio",
        ("tests/test_trust_ratio.py", "-k", "loud"),
    ),
    Fault(
        "mask of the trust ratio dropped",
        "optax_heavytail/_trust_ratio.py",
        "return masked(tx, mask)",
        "return tx",
        ("tests/test_trust_ratio.py", "-k", "masked"),
    ),
    Fault(
        "trust ratio of one shard",
        "optax_heavytail/_trust_ratio.py",
        "parts = _norms.parts_of([params, wide], axis_name, layer_axis)",
        "parts = _norms.parts_of([params, wide], None, layer_axis)",
        ("tests/test_sharding.py", "tests/test_trust_ratio.py", "-k", "eight or ratio"),
    ),
    Fault(
        "LAMBC corrects the bias by default",
        "optax_heavytail/_lambc.py",
        "bias_correction: bool = False,",
        "bias_correction: bool = True,",
        ("tests/test_golden.py", "-k", "lambc"),
    ),
    Fault(
        "LAMBC decays behind the ratio",
        "optax_heavytail/_lambc.py",
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
        "optax_heavytail/_larsc.py",
        "        scale_by_learning_rate(learning_rate),\n"
        "        trace(momentum, nesterov, accumulator_dtype),\n",
        "        trace(momentum, nesterov, accumulator_dtype),\n"
        "        scale_by_learning_rate(learning_rate),\n",
        ("tests/test_larsc.py", "-k", "past_steps"),
    ),
    Fault(
        "agreement with the old average",
        "optax_heavytail/_sign_agreement.py",
        "            grads,\n            average,\n        )",
        "            grads,\n            state.mu,\n        )",
        ("tests/test_golden.py", "-k", "sign__constant"),
    ),
    Fault(
        "decay of the agreement one count late",
        "optax_heavytail/_sign_agreement.py",
        "_base.at_count(sign_decay, state.count)",
        "_base.at_count(sign_decay, state.count + 1)",
        ("tests/test_golden.py", "-k", "sign__linear"),
    ),
    Fault(
        "decay of the agreement outside the exponent",
        "optax_heavytail/_sign_agreement.py",
        "factor(strength * jnp.sign(g) * jnp.sign(m)) * g",
        "strength * factor(jnp.sign(g) * jnp.sign(m)) * g",
        ("tests/test_golden.py", "-k", "sign__linear"),
    ),
    Fault(
        "AMSGrad forgets its largest moment",
        "optax_heavytail/_amsgrad.py",
        "direction = _tree.divide_by_root(mean, nu_max, eps)",
        "direction = _tree.divide_by_root(mean, square, eps)",
        ("tests/test_golden.py", "-k", "amsgrad"),
    ),
    Fault(
        "slope of a maximum that is rounded twice",
        "optax_heavytail/_amsgrad.py",
        "jax.tree.map(_tree.maximum, square, state.nu_max)",
        "jax.tree.map(jnp.maximum, square, state.nu_max)",
        ("tests/test_amsgrad.py", "-k", "slope_rests"),
    ),
    Fault(
        "AMSGrad corrects the bias of none",
        "optax_heavytail/_amsgrad.py",
        "            bias_correction=bias_correction,\n",
        "            bias_correction=False,\n",
        ("tests/test_amsgrad.py",),
    ),
    Fault(
        "AdaShift's moment of the newest gradient",
        "optax_heavytail/_adashift.py",
        "nu = optax.tree.update_moment(oldest, state.nu, b2, 2)",
        "nu = optax.tree.update_moment(grads, state.nu, b2, 2)",
        ("tests/test_golden.py", "-k", "adashift"),
    ),
    Fault(
        "ages of AdaShift's window reversed",
        "optax_heavytail/_adashift.py",
        "(slot - jnp.arange(n)) % n",
        "(jnp.arange(n) - slot) % n",
        ("tests/test_golden.py", "-k", "adashift__n10"),
    ),
    Fault(
        "AdaShift starts one update early",
        "optax_heavytail/_adashift.py",
        "started = jnp.asarray(count) > n",
        "started = jnp.asarray(count) >= n",
        ("tests/test_golden.py", "-k", "adashift"),
    ),
    Fault(
        "Adam's moments uncorrected",
        "optax_heavytail/_adam.py",
        "        if bias_correction:\n            mean",
        "        if False:\n            mean",
        ("tests/test_golden.py", "-k", "adamw__bc"),
    ),
    Fault(
        "multiplier missing from AdamW's decay",
        "optax_heavytail/_adam.py",
        "add_decayed_weights(_base.product(weight_decay, multiplier), mask)",
        "add_decayed_weights(weight_decay, mask)",
        ("tests/test_golden.py", "-k", "adamw"),
    ),
    Fault(
        "SGDW's decay scaled by the learning rate",
        "optax_heavytail/_sgdw.py",
        "_base.product(weight_decay, multiplier)",
        "_base.product(_base.product(weight_decay, learning_rate), multiplier)",
        ("tests/test_golden.py", "-k", "sgdw"),
    ),
    Fault(
        "SGDW's decay inside the momentum",
        "optax_heavytail/_sgdw.py",
        "        trace(momentum, accumulator_dtype=accumulator_dtype),\n"
        "        add_decayed_weights(_base.product(weight_decay, multiplier), mask),\n",
        "        add_decayed_weights(_base.product(weight_decay, multiplier), mask),\n"
        "        trace(momentum, accumulator_dtype=accumulator_dtype),\n",
        ("tests/test_golden.py", "-k", "sgdw"),
    ),
    Fault(
        "second moment of Adam not rounded stochastically",
        "optax_heavytail/_adam.py",
        'dtypes={"mu": mu_dtype, "nu": nu_dtype}',
        'dtypes={"mu": mu_dtype, "nu": None}',
        ("tests/test_stochastic_rounding.py",),
    ),
]
