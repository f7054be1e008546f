"""`clip_by_spectral_norm`: singular values limited, exactly."""

import numpy as np

from tests.oracles.orthogonalize import over_matrices, scale_of_shape
from tests.oracles.trajectories import cases
from tests.oracles.units import norm

FORMULA = """
    Each matrix over matrix_axes = (in, out): every singular value s becomes s /
    sqrt(1 + (s / threshold)^2) (soft) or min(s, threshold); then the factor of
    shape_scale, see `orthogonalize`. A leaf of less than two axes: the same with
    its norm for s. Exact: an iteration must have converged (steps 40).
"""


def decompose(x):
    """A singular value decomposition; NumPy has none in 80 bits."""
    wide = x.astype(np.float64) if x.dtype == np.longdouble else x
    return [part.astype(x.dtype) for part in np.linalg.svd(wide, full_matrices=False)]


def clip_by_spectral_norm(
    threshold, *, soft=True, steps=None, matrix_axes=(-2, -1), shape_scale=None
):
    del steps  # of an iteration

    def shortened(s):
        if soft:
            return s / np.hypot(1, s / threshold)
        return np.minimum(s, threshold)

    def of_matrix(x):
        left, values, right = decompose(x)
        return (
            scale_of_shape(shape_scale, *x.shape) * (left * shortened(values)) @ right
        )

    def of_vector(x):
        n = norm(x)
        return x / n * shortened(n) if n > 0 else x

    def step(g, w):
        del w
        u = {
            leaf: over_matrices(of_matrix, x, matrix_axes)
            if x.ndim > 1
            else of_vector(x)
            for leaf, x in g.items()
        }
        return u, {}

    return step


ORACLES = {"clip_by_spectral_norm": clip_by_spectral_norm}
CASES = cases(
    "clip_by_spectral_norm",
    FORMULA,
    {
        "soft0p5": ({"threshold": 0.5, "steps": 40}, "normal spikes zeros"),
        "hard0p5": (
            {"threshold": 0.5, "soft": False, "steps": 40},
            "normal zeros",
        ),
        "soft1_width_out_in": (
            {
                "threshold": 1.0,
                "steps": 40,
                "shape_scale": "width",
                "matrix_axes": [-1, -2],
            },
            "normal",
        ),
    },
    loose=(1e-8, 1e-4),
)
