"""`orthogonalize`: the polar factor of each matrix, by odd polynomials."""

import numpy as np

from tests.oracles.trajectories import cases

FORMULA = """
    Each matrix over matrix_axes = (in, out): X / (||X||_F + eps), as it is if rows
    <= columns, else transposed; in each of the steps A = X X^T, X = a X + (b A + c
    A^2) X with the step's (a, b, c), the last of a list again and again; transposed
    back; times sqrt(max(1, out / in)) for shape_scale 'width', 0.2 sqrt(max(in,
    out)) for 'rms'. 'quintic': (3.4445, -4.7750, 2.0315). 'polar_express': the list
    of the paper, all but its last as (a / 1.01, b / 1.01^3, c / 1.01^5). Leaves of
    less than two axes pass.
"""
_PUBLISHED = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]
COEFFICIENTS = {
    "quintic": [(3.4445, -4.7750, 2.0315)],
    "polar_express": [
        *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _PUBLISHED[:-1]),
        _PUBLISHED[-1],
    ],
}


def polar(x, steps, coefficients="polar_express", eps=1e-8):
    """Of one matrix, approximately."""
    if isinstance(coefficients, str):
        coefficients = COEFFICIENTS[coefficients]
    # In two steps, so that squares of 1e-30 are something in float32.
    largest = np.max(np.abs(x), initial=0)
    if largest == 0:
        return x
    frobenius = largest * np.sqrt(np.sum((x / largest) ** 2))
    is_tall = x.shape[0] > x.shape[1]
    x = (x.T if is_tall else x) / (frobenius + eps)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def over_matrices(function, x, matrix_axes):
    """``function`` of each matrix over the two axes of ``x``."""
    moved = np.moveaxis(x, matrix_axes, (-2, -1))
    flat = moved.reshape(-1, *moved.shape[-2:])
    done = np.stack([function(matrix) for matrix in flat]).reshape(moved.shape)
    return np.moveaxis(done, (-2, -1), matrix_axes)


def scale_of_shape(shape_scale, rows, columns):
    if shape_scale == "width":
        return max(1, columns / rows) ** 0.5
    return 0.2 * max(rows, columns) ** 0.5 if shape_scale == "rms" else 1


def orthogonalize(
    *,
    matrix_axes=(-2, -1),
    steps=5,
    coefficients="polar_express",
    shape_scale="width",
    eps=1e-8,
):
    def of_matrix(x):
        return scale_of_shape(shape_scale, *x.shape) * polar(
            x, steps, coefficients, eps
        )

    def step(g, w):
        del w
        u = {
            leaf: over_matrices(of_matrix, x, matrix_axes) if x.ndim > 1 else x
            for leaf, x in g.items()
        }
        return u, {}

    return step


ORACLES = {"orthogonalize": orthogonalize}
CASES = cases(
    "orthogonalize",
    FORMULA,
    {
        "polar_express5_width": (
            {"coefficients": "polar_express", "steps": 5, "shape_scale": "width"},
            "normal tiny zeros",
        ),
        "quintic5_rms": (
            {"coefficients": "quintic", "steps": 5, "shape_scale": "rms"},
            "normal spikes",
        ),
        "converged_out_in": (
            {
                "coefficients": "polar_express",
                "steps": 14,
                "shape_scale": "width",
                "matrix_axes": [-1, -2],
                "eps": 0.0,
            },
            "normal",
        ),
        "cubic": (
            {"coefficients": [[1.5, -0.5, 0.0]], "steps": 8, "shape_scale": None},
            "normal",
        ),
    },
)
