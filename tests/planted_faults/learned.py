"""Faults of learned optimizers, of their weights and of their training."""

from tests.planted_faults.fault import Fault

LSTM, MLP = "optax_heavytail/learned/_lstm.py", "optax_heavytail/learned/_mlp.py"
FILES = "optax_heavytail/learned/_weights.py"
OURS, TRAINING = "tests/test_learned.py", "tests/test_learning.py"

FAULTS = [
    Fault(
        "lstm: no bias of the forget gate",
        LSTM,
        "jax.nn.sigmoid(f + 1) * cell",
        "jax.nn.sigmoid(f) * cell",
        (OURS, "-k", "lstm_is_that_of_loops"),
    ),
    Fault(
        "lstm: the second layer sees the gradient's state",
        LSTM,
        "_cell(new_1[0], hidden_2, cell_2",
        "_cell(hidden_1, hidden_2, cell_2",
        (OURS, "-k", "lstm_is_that_of_loops"),
    ),
    Fault(
        "lstm: the sign of a small gradient alone",
        LSTM,
        "small = jnp.where(is_large, 0, g) / edge",
        "small = jnp.sign(g)",
        (OURS, "-k", "inputs_of_the_lstm"),
    ),
    Fault(
        "lstm: the hidden state is the cell",
        LSTM,
        "return jax.nn.sigmoid(o) * jnp.tanh(cell), cell",
        "return jax.nn.sigmoid(o) * cell, cell",
        (OURS, "-k", "bounded_for_any"),
    ),
    Fault(
        "lstm: a bad gradient stays in the state",
        LSTM,
        "jnp.where(good[..., None], x, old)",
        "x + 0 * old",
        (OURS, "-k", "bad_gradient"),
    ),
    Fault(
        "mlp: averages of two decays in one ratio",
        MLP,
        "    r = [_tree.safe_divide(m, size) for ",
        "    r = [_tree.safe_divide(m, hats[2]) for ",
        (OURS, "-k", "features_are_bounded"),
    ),
    Fault(
        "mlp: spikes are not limited",
        MLP,
        "is_over = (count >= _WARM_UP)",
        "is_over = (count < 0)",
        (OURS, "-k", "forgotten or mlp_is_that_of_loops"),
    ),
    Fault(
        "mlp: the limit includes the spike",
        MLP,
        "g = _limited(jnp.where(good, g, 0), sizes[1], old_count)",
        "g = jnp.where(good, g, 0)\n"
        "    g = _limited(g, _average(sizes[1], jnp.abs(g), 0.99), old_count)",
        (OURS, "-k", "forgotten or mlp_is_that_of_loops"),
    ),
    Fault(
        "mlp: a constant beside a gradient",
        MLP,
        "usual = _tree.safe_divide(size, ",
        "usual = _tree.safe_divide(size + 1e-8, ",
        (OURS, "-k", "knows_no_scale"),
    ),
    Fault(
        "mlp: what has no gradient moves",
        MLP,
        "jnp.where(good & (new_sizes[0] > 0), direction, 0)",
        "jnp.where(good, direction, 0)",
        (OURS, "-k", "mlp_is_that_of_loops"),
    ),
    Fault(
        "mlp: a NaN makes its whole leaf NaN",
        MLP,
        "direction = jnp.where(good & ",
        "direction = direction + 0 * jnp.where(good, 0, jnp.nan)\n"
        "    direction = jnp.where(",
        (OURS, "-k", "bad_gradient"),
    ),
    Fault(
        "mlp: layers of a stack have one mean",
        MLP,
        '_units.Units("leaf", layer_axis, axis_name)',
        '_units.Units("leaf", None, axis_name)',
        (OURS, "-k", "layers_of_a_stack"),
    ),
    Fault(
        "mlp: each device has its own mean",
        MLP,
        '_units.Units("leaf", layer_axis, axis_name)',
        '_units.Units("leaf", layer_axis)',
        ("tests/test_sharding.py", "-k", "shard_map and by_mlp"),
    ),
    Fault(
        "weights: pickles are read",
        FILES,
        "allow_pickle=False",
        "allow_pickle=True",
        (OURS, "-k", "bad_files"),
    ),
    Fault(
        "weights: of any version",
        FILES,
        'if said.get("version") != _VERSIONS[model]:',
        'if said.get("version") is None:',
        (OURS, "-k", "bad_files"),
    ),
    Fault(
        "weights: NaN is a number",
        FILES,
        "if not np.all(np.isfinite(array)):",
        "if np.all(np.isinf(array)):",
        (OURS, "-k", "bad_files"),
    ),
    Fault(
        "weights: of any size",
        FILES,
        "if total > _LARGEST:",
        "if total < 0:",
        (OURS, "-k", "bad_files"),
    ),
    Fault(
        "evolution: a new perturbation in each window",
        "experiments/learning/estimators.py",
        "kept = jnp.where(is_new, drawn, total)",
        "kept = drawn",
        (TRAINING, "-k", "long_influence"),
    ),
    Fault(
        "evolution: sums go on into the next episode",
        "experiments/learning/estimators.py",
        "return drawn, jnp.where(is_new, 0, total) + drawn",
        "return drawn, total + drawn",
        (TRAINING, "-k", "long_influence"),
    ),
    Fault(
        "evolution: a worker that is lost makes all NaN",
        "experiments/learning/estimators.py",
        "jnp.where(finite, factors * gradients, 0)",
        "factors * gradients",
        (TRAINING, "-k", "does_not_rule"),
    ),
    Fault(
        "training of the lstm: the first loss for the last",
        "experiments/learning/lstm.py",
        "return jnp.sum(losses[1:]) + end,",
        "return jnp.sum(losses),",
        (TRAINING, "-k", "gradient_of_a_window"),
    ),
    Fault(
        "training: fresh random numbers after a kill",
        "experiments/learning/lstm.py",
        "jax.random.fold_in(key, state.step)",
        "jax.random.fold_in(key, id(state) % 2**31)",
        (TRAINING, "-k", "killed"),
    ),
    Fault(
        "training: a checkpoint that has changed is read",
        "experiments/learning/checkpoints.py",
        "if hashlib.sha256(data).digest() != digest:",
        "if not digest:",
        (TRAINING, "-k", "damaged"),
    ),
    Fault(
        "episodes: one size for all leaves",
        "experiments/learning/episodes.py",
        "square = jnp.mean(jnp.square(part))",
        "square = jnp.mean(jnp.square(updates))",
        (TRAINING, "-k", "by_leaf"),
    ),
    Fault(
        "rivals: the worst rate",
        "experiments/learning/rivals.py",
        "int(np.argmin(found[:, h]))",
        "int(np.argmax(found[:, h]))",
        (TRAINING, "-k", "best_rate"),
    ),
]
