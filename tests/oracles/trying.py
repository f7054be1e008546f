"""Runs of an oracle on a few gradients, for its tests."""

import numpy as np

from tests.oracles import methods
from tests.oracles.units import norm


def run(factory, grads, *args, **kwargs):
    """Outputs and readings for a list of gradients, arrays or dicts."""
    step = methods.ORACLES[factory](*args, **kwargs)
    outputs, readings = [], []
    for g in grads:
        tree = g if isinstance(g, dict) else {"w": np.atleast_1d(np.float64(g))}
        with np.errstate(all="ignore"):
            u, aux = step(tree, {leaf: np.zeros_like(x) for leaf, x in tree.items()})
        outputs.append(u if isinstance(g, dict) else u["w"])
        readings.append(aux)
    return outputs, readings


def lengths(factory, norms, **kwargs):
    return [norm(u) for u in run(factory, norms, **kwargs)[0]]
