"""Faults of what studies say of their results."""

from tests.planted_faults.fault import Fault

FILE = "experiments/studies/intervals.py"
TEST = "tests/test_intervals.py"

FAULTS = [
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
]
