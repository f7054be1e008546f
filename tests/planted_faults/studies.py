"""Faults of what studies say of their results."""

from tests.planted_faults.fault import Fault

FILE = "experiments/studies/intervals.py"
TEST = "tests/test_intervals.py"
SQUAD, SQUAD_TEST = "experiments/studies/squad.py", "tests/test_squad_study.py"

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
        "two contestants of one whose name has a comma",
        "experiments/benchmarks/common.py",
        're.split(r",(?! )", text)',
        'text.split(",")',
        ("tests/test_benchmarks.py", "-k", "can_be_named"),
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
    Fault(
        "questions: the rate is chosen on the test articles",
        SQUAD,
        'finetune(name, start, "validation", rates, seed)',
        'finetune(name, start, "test", rates, seed)',
        (SQUAD_TEST, "-k", "other_articles"),
    ),
    Fault(
        "questions: the lowest F1 is the best",
        SQUAD,
        "short = 100 - np.array",
        "short = np.array",
        (SQUAD_TEST, "-k", "other_articles"),
    ),
    Fault(
        "questions: answers of a run that is lost",
        SQUAD,
        'if record["status"] == "diverged":',
        "if False:",
        (SQUAD_TEST, "-k", "is_lost"),
    ),
    Fault(
        "questions: an article in two parts",
        SQUAD,
        "np.cumsum(list(ARTICLES.values()))[:-1])",
        "[32, 32])",
        (SQUAD_TEST, "-k", "whole_articles"),
    ),
    Fault(
        "questions: the pre-trained weights are left out",
        SQUAD,
        "    if start == squad_tables.PRETRAINED:\n        config",
        "    if False:\n        config",
        (SQUAD_TEST, "-k", "way_from"),
    ),
    Fault(
        "questions: random weights with tokens of their own",
        SQUAD,
        "            tokenizer.save(tokens, workdir)\n",
        "",
        (SQUAD_TEST, "-k", "random_weights"),
    ),
    Fault(
        "questions: a baseline without its clip",
        SQUAD,
        "if entry.max_norm is not None:",
        "if False:",
        (SQUAD_TEST, "-k", "clip"),
    ),
    Fault(
        "questions: the constant span is chosen by the test articles",
        "experiments/studies/squad_guesses.py",
        "place, length = best_span(known)",
        "place, length = best_span([e for article in test for e in article])",
        (SQUAD_TEST, "-k", "guesses"),
    ),
    Fault(
        "questions: random spans of the first half alone",
        "experiments/studies/squad_guesses.py",
        "rng.integers(words - length + 1)",
        "rng.integers(max(words - length, 1)) // 2",
        (SQUAD_TEST, "-k", "guesses"),
    ),
    Fault(
        "questions: seeds in place of articles",
        "experiments/studies/squad_tables.py",
        'for seed in result["seeds"]], axis=0)',
        'for seed in result["seeds"]], axis=1)',
        (SQUAD_TEST, "-k", "differences"),
    ),
    Fault(
        "predictions of another question",
        "experiments/tasks/squad.py",
        "return dict(zip(ids, texts, strict=True))",
        "return dict(zip(ids[::-1], texts, strict=True))",
        (SQUAD_TEST, "-k", "way_from"),
    ),
    Fault(
        "predictions are not sealed",
        "experiments/runs/seals.py",
        "MODEL_STATE_FOLDER, PREDICTIONS_FILE, tokenizer.FILE)",
        "MODEL_STATE_FOLDER, tokenizer.FILE)",
        (SQUAD_TEST, "-k", "way_from"),
    ),
]
