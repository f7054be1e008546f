"""Faults of the aggregation of gradients."""

from tests.planted_faults.fault import Fault

FAULTS = [
    Fault(
        "aggregation: mean in place of the kept middle",
        "optax_heavytail/aggregation/_rows.py",
        "inside = [(cut <= i) & (i < length - cut) for",
        "inside = [(0 <= i) & (i < length) for",
        ("tests/test_aggregation.py", "-k", "median_and_trimmed"),
    ),
    Fault(
        "aggregation: NaN of weight 0 gets in",
        "optax_heavytail/aggregation/_rows.py",
        "jnp.where(weight == 0, 0, weight * x)",
        "weight * x",
        ("tests/test_aggregation.py", "-k", "weight_zero"),
    ),
    Fault(
        "aggregation: pairs of the network left out",
        "optax_heavytail/aggregation/_rows.py",
        "d, q, r = q - p, q >> 1, p",
        "d, q, r = q - p, q >> 1, 0",
        ("tests/test_aggregation.py", "-k", "network"),
    ),
    Fault(
        "aggregation: median starts from the mean",
        "optax_heavytail/aggregation/_medians.py",
        "last, (count - 1) // 2, count",
        "last, 0, count",
        ("tests/test_aggregation.py", "-k", "corrupted"),
    ),
    Fault(
        "aggregation: stuck on a microbatch",
        "optax_heavytail/aggregation/_medians.py",
        "moved = force > held",
        "moved = (force > held) & (held == 0)",
        ("tests/test_aggregation.py", "-k", "wrong_microbatch"),
    ),
    Fault(
        "aggregation: off the right microbatch",
        "optax_heavytail/aggregation/_medians.py",
        "jnp.where(moved, 1 - held / jnp.where(moved, force, 1), 0)",
        "jnp.ones_like(force)",
        ("tests/test_aggregation.py", "-k", "right_microbatch"),
    ),
    Fault(
        "aggregation: microbatches that are not finite kept",
        "optax_heavytail/aggregation/_medians.py",
        "kept = jnp.where(finite, weights, 0)",
        "kept = weights",
        ("tests/test_aggregation.py", "-k", "not_finite"),
    ),
    Fault(
        "aggregation: a fraction loses one to rounding",
        "optax_heavytail/aggregation/_medians.py",
        "math.floor(trim * n + 1e-9)",
        "math.floor(trim * n)",
        ("tests/test_aggregation.py", "-k", "fractions"),
    ),
    Fault(
        "aggregation: clipped by the norm of all",
        "optax_heavytail/aggregation/_means.py",
        "_norms.clip_factors(_norms.row_norms(grads), max_norm)",
        "_norms.clip_factors(_norms.global_norm(grads), max_norm)",
        ("tests/test_aggregation.py", "-k", "test_means"),
    ),
    Fault(
        "aggregation: running sum in bfloat16",
        "optax_heavytail/aggregation/_means.py",
        "cls(_tree.zeros_like(like),",
        "cls(jax.tree.map(jnp.zeros_like, like),",
        ("tests/test_aggregation.py", "-k", "running"),
    ),
    Fault(
        "aggregation: weights of the devices ignored",
        "optax_heavytail/aggregation/_devices.py",
        'kwargs["weights"] = gather(weights)',
        "pass",
        ("tests/test_aggregation.py", "-k", "shard_map"),
    ),
    Fault(
        "aggregation: distances of numbers not scaled",
        "optax_heavytail/aggregation/_medians.py",
        "weights * (nearest / jnp.where(apart, distance, 1))",
        "weights / jnp.where(apart, distance, 1)",
        ("tests/test_aggregation.py", "-k", "huge_and_tiny"),
    ),
    Fault(
        "aggregation: stuck in the rounding of a microbatch",
        "optax_heavytail/aggregation/_medians.py",
        "_CLOSE = 1e-3",
        "_CLOSE = 0.0",
        ("tests/test_aggregation.py", "-k", "rounding_of_a_wrong"),
    ),
]
