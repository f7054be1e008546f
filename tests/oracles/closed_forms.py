"""What `unroll` and the (L0, L1) constants are tested with: no trajectories."""

import numpy as np

# Half of the root of nu e^nu = 1: what Gorbunov et al. use.
ETA = 0.5671432904097838 / 2


def unrolled(rate, num_steps, decay):
    """``w_T`` and its derivative in ``decay``, from 0 on (w-1)^2/2 + decay w^2/2.

    w_T = (1 - r^T) / (1 + decay) with r = 1 - rate (1 + decay).
    """
    r = 1 - rate * (1 + decay)
    power = r**num_steps
    w = (1 - power) / (1 + decay)
    slope = num_steps * r ** (num_steps - 1) * rate / (1 + decay) - w / (1 + decay)
    return w, slope


def l0l1_constants(l0, l1, rule):
    """The arguments of `normalized_gd` or `clipped_gd` that make a rule of them."""
    if rule == "clipped":
        return {"learning_rate": 1 / (2 * l0), "max_update_norm": 1 / (3 * l1)}
    if rule == "simple":  # 1 / (L0 + 1.5 L1 n)
        return {"learning_rate": 1 / (1.5 * l1), "offset": l0 / (1.5 * l1)}
    return {"learning_rate": ETA / l1, "offset": l0 / l1}  # eta / (L0 + L1 n)


def l0l1_step(l0, l1, n, rule):
    """The step size at a gradient of norm n, straight from the papers."""
    if rule == "exact":
        return np.log1p(l1 * n / (l0 + l1 * n)) / (l1 * n) if n else 1 / l0
    if rule == "simple":
        return 1 / (l0 + 1.5 * l1 * n)
    if rule == "clipped":
        return min(1 / (2 * l0), 1 / (3 * l1 * n)) if n else 1 / (2 * l0)
    return ETA / (l0 + l1 * n)
