"""Faults of what studies say of their results."""

from tests.planted_faults.fault import Fault

FILE = "experiments/studies/intervals.py"
TEST = "tests/test_intervals.py"

FAULTS = [
    Fault(
        "kernels of branches that hardly ever run",
        "experiments/benchmarks/kernels.py",
        '*("conditional", "while"),',
        '*("while",),',
        ("tests/test_benchmarks.py", "-k", "told_by_what_they_read"),
    ),
    Fault(
        "a sweep whose rates are compiled anew",
        "experiments/benchmarks/growth.py",
        'injected = {"learning_rate": jax.device_put(np.float32(rate))}',
        'injected = {"learning_rate": rate}',
        ("tests/test_benchmarks.py", "-k", "only_a_rate"),
    ),
    Fault(
        "a BERT whose state stays in float32",
        "experiments/studies/states_bert.py",
        "make = _compressed(make)",
        "make = make",
        ("tests/test_evidence_networks.py", "-k", "state_in_one_byte"),
    ),
    Fault(
        "an interval of a bootstrap, which is too short for few runs",
        FILE,
        "return mean, mean - half, mean + half",
        "drawn = np.random.default_rng(0).choice(values, (500, len(values)))\n"
        "    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])\n"
        "    return mean, float(low), float(high)",
        (TEST, "-k", "cover"),
    ),
    Fault(
        "a normal quantile in place of Student's",
        FILE,
        "special.stdtrit(len(values) - 1, (1 + confidence) / 2)",
        "special.ndtri((1 + confidence) / 2)",
        (TEST, "-k", "cover"),
    ),
    Fault(
        "every test of a table on its own",
        FILE,
        "factors = np.arange(len(order), 0, -1)",
        "factors = np.ones(len(order))",
        (TEST, "-k", "holm or marks"),
    ),
    Fault(
        "Holm's p-values that fall behind a larger one",
        FILE,
        "np.maximum.accumulate(factors * adjusted[order])",
        "factors * adjusted[order]",
        (TEST, "-k", "holm"),
    ),
    Fault(
        "lost runs in the mean",
        "experiments/studies/comparison.py",
        'return f"{number} of {len(runs[0])} lost" if number else ""',
        'return ""',
        (TEST, "-k", "lost"),
    ),
    Fault(
        "noise of unseen problems is in their loss",
        "experiments/studies/unseen.py",
        "drift = jnp.vdot(noise, params - jax.lax.stop_gradient(params))",
        "drift = jnp.vdot(noise, params)",
        ("tests/test_evidence_rules.py", "-k", "noise_is_in"),
    ),
    Fault(
        "characters are guessed from themselves",
        "experiments/studies/unseen.py",
        "seen = jax.nn.one_hot(windows[:, :-1], SYMBOLS)",
        "seen = jax.nn.one_hot(windows[:, 1:], SYMBOLS)",
        ("tests/test_evidence_rules.py", "-k", "characters"),
    ),
    Fault(
        "what evolution was given counts as found",
        "experiments/studies/rule_search_tables.py",
        "return np.minimum.accumulate(scores[:, first:], axis=1)",
        "return np.minimum.accumulate(scores, axis=1)[:, first:]",
        ("tests/test_evidence_rules.py", "-k", "lower"),
    ),
    Fault(
        "found rules go uphill",
        "experiments/studies/rule_search.py",
        "return optax.chain(rules.transform(rule), by_rate)",
        "return optax.chain(rules.transform(rule), optax.scale(learning_rate))",
        ("tests/test_evidence_rules.py", "-k", "downhill"),
    ),
]
