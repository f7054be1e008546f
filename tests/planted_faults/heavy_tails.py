"""Faults of the suite of heavy tails."""

from tests.planted_faults.fault import Fault

FOLDER = "experiments/studies/heavy_tails"
TEST = "tests/test_heavy_tails.py"

FAULTS = [
    Fault(
        "the default track at the rate that is best under corruption",
        f"{FOLDER}/race.py",
        'tracks["default"] = at(race, name, condition, tune(race, name, clean).best)',
        'tracks["default"] = at(race, name, condition, tuned.best)',
        (TEST, "-k", "tuned_where"),
    ),
    Fault(
        "rates chosen on the test part",
        f"{FOLDER}/race.py",
        'run = _runner(race, name, condition, "validation")',
        'run = _runner(race, name, condition, "test")',
        (TEST, "-k", "tuned_where"),
    ),
    Fault(
        "a group of lanes that begins anew with the first seed",
        f"{FOLDER}/race.py",
        "seeds[i : i + number] for i",
        "seeds[: len(seeds[i : i + number])] for i",
        (TEST, "-k", "groups_of_lanes"),
    ),
    Fault(
        "verdicts without Holm's method",
        f"{FOLDER}/verdicts.py",
        "adjusted = intervals.holm([p_value(pair) for pair in pairs])",
        "adjusted = [p_value(pair) for pair in pairs]",
        (TEST, "-k", "hint_among"),
    ),
    Fault(
        "level, whatever the interval holds",
        f"{FOLDER}/verdicts.py",
        "max(abs(numbers[1]), abs(numbers[2])) <= margin",
        "abs(numbers[0]) <= margin",
        (TEST, "-k", "verdicts_by_hand"),
    ),
    Fault(
        "lost runs of both counted as if the method's own",
        f"{FOLDER}/verdicts.py",
        "int(np.sum(own & ~base))",
        "int(np.sum(own))",
        (TEST, "-k", "exact_test"),
    ),
    Fault(
        "a fold's point by its test loss",
        f"{FOLDER}/folds.py",
        'last[..., KINDS.index("validation")]',
        'last[..., KINDS.index("test")]',
        (TEST, "-k", "validation_part_chose"),
    ),
    Fault(
        "validation rows among those of training",
        f"{FOLDER}/folds.py",
        '"train": rest[length:]',
        '"train": rest',
        (TEST, "-k", "share_no_row"),
    ),
    Fault(
        "a scalar refitted on the test part",
        f"{FOLDER}/folds.py",
        'seen, told = of["validation"], truth["validation"]',
        'seen, told = of["test"], truth["test"]',
        (TEST, "-k", "refitted"),
    ),
    Fault(
        "spikes that wait until a guard knows what is usual",
        f"{FOLDER}/corrupted.py",
        "rng.random(STEPS) < share for",
        "(rng.random(STEPS) < share) & (np.arange(STEPS) >= 20) for",
        (TEST, "-k", "corruption"),
    ),
    Fault(
        "a spike that the loss has as well",
        f"{FOLDER}/corrupted.py",
        "value - jax.lax.stop_gradient(value)",
        "value",
        (TEST, "-k", "corruption"),
    ),
    Fault(
        "a stale worker that is not",
        f"{FOLDER}/workers.py",
        'jnp.where(batch["stale"], q, p)',
        "p",
        (TEST, "-k", "bad_workers"),
    ),
    Fault(
        "forces that attract where they should repel",
        f"{FOLDER}/forces.py",
        "24 * (2 * distance**-13 - distance**-7)",
        "24 * (distance**-7 - 2 * distance**-13)",
        (TEST, "-k", "potential"),
    ),
    Fault(
        "a ratio that is clipped where it does harm as well",
        f"{FOLDER}/policy.py",
        "each = jnp.minimum(ratio * gain, clipped * gain)",
        "each = ratio * gain",
        (TEST, "-k", "ratio"),
    ),
    Fault(
        "attention that sees what comes",
        f"{FOLDER}/language.py",
        "jnp.tril(jnp.ones((LENGTH, LENGTH), bool))",
        "jnp.ones((LENGTH, LENGTH), bool)",
        (TEST, "-k", "later_character"),
    ),
    Fault(
        "a table of another hash taken",
        "experiments/data/rdata.py",
        "if digest.hexdigest() != sha256:",
        "if not digest.hexdigest():",
        (TEST, "-k", "known_by_their_hash"),
    ),
    Fault(
        "moves of a grid that nobody counts",
        "experiments/studies/tuning.py",
        "return tuned._replace(moves=moves)",
        "return tuned",
        ("tests/test_evidence.py", "-k", "grid_is_moved"),
    ),
]
