"""Faults of rules as text."""

from tests.planted_faults.fault import Fault

FAULTS = [
    Fault(
        "arguments of a difference change places",
        "optax_heavytail/rules/_expression.py",
        'COMMUTATIVE = ("+", "*")',
        'COMMUTATIVE = ("+", "*", "-")',
        ("tests/test_rules.py", "-k", "canonical or known"),
    ),
    Fault(
        "a power groups to the left",
        "optax_heavytail/rules/_expression.py",
        "return f\"{_inside(left, _ATOM)}^{_inside(right, _LEVELS['neg'])}\"",
        "return f\"{_inside(left, _LEVELS['^'])}^{_inside(right, _ATOM)}\"",
        ("tests/test_rules.py", "-k", "canonical or read_back"),
    ),
    Fault(
        "the first column is not the first fault",
        "optax_heavytail/rules/_parse.py",
        "column, fault = min(placed",
        "column, fault = max(placed",
        ("tests/test_rules.py", "-k", "errors"),
    ),
    Fault(
        "prev after the update",
        "optax_heavytail/rules/_values.py",
        "return step.past(memory_of(average), now)",
        "return now",
        ("tests/test_rules.py", "-k", "known"),
    ),
    Fault(
        "one draw of noise for all leaves",
        "optax_heavytail/rules/_values.py",
        "own = jax.random.fold_in(key, i)",
        "own = jax.random.fold_in(key, 0)",
        ("tests/test_rules.py", "-k", "noise"),
    ),
    Fault(
        "the key of the noise stays what it was",
        "optax_heavytail/rules/_values.py",
        "self.key = jax.random.key_data(key)",
        "self.key = state.key",
        ("tests/test_rules.py", "-k", "noise"),
    ),
    Fault(
        "norm of one shard",
        "optax_heavytail/rules/_values.py",
        "return _norms.global_norm(tree, step.settings.axis_name).value",
        "return _norms.global_norm(tree).value",
        ("tests/test_sharding.py", "-k", "rule"),
    ),
    Fault(
        "fingerprint of the signs alone",
        "optax_heavytail/rules/_fingerprint.py",
        "unit = scaled / size if up_to_scale else updates",
        "unit = np.sign(scaled) if up_to_scale else updates",
        ("tests/test_rules.py", "-k", "fingerprints"),
    ),
    Fault(
        "the cross-entropy of a search cancels",
        "experiments/tasks/problems.py",
        "    centred = logits - top\n",
        "    centred = logits\n",
        ("tests/test_rule_search.py", "-k", "large_logits"),
    ),
    Fault(
        "a loss of NaN is a loss",
        "experiments/rule_search/fitness.py",
        "good = np.isfinite(loss) & (loss < ceiling)",
        "good = ~(loss >= ceiling)",
        ("tests/test_rule_search.py", "-k", "what_is_refused"),
    ),
    Fault(
        "weights may go anywhere",
        "experiments/rule_search/fitness.py",
        "is_near = growth <= GROWTH",
        "is_near = growth > -1",
        ("tests/test_rule_search.py", "-k", "what_is_refused"),
    ),
    Fault(
        "errors say nothing of a loss",
        "experiments/rule_search/fitness.py",
        "if np.any(loss < 0.999 * errors * math.log(2)):",
        "if np.any(loss < 0 * errors):",
        ("tests/test_rule_search.py", "-k", "what_is_refused"),
    ),
    Fault(
        "a search trains again what the archive has",
        "experiments/rule_search/search.py",
        "if (tier, c.word) not in self.archive]",
        "if c.word]",
        ("tests/test_rule_search.py", "-k", "killed or once"),
    ),
    Fault(
        "a killed search hears what it had not heard",
        "experiments/rule_search/search.py",
        "        if word in self.texts:\n",
        "        if (1, word) in self.archive:\n",
        ("tests/test_rule_search.py", "-k", "killed"),
    ),
]
