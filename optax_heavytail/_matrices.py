"""Polar factors of matrices by products alone, which every accelerator does fast."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _base, _tree

Coefficients = Sequence[tuple[float, float, float]]

SHAPE_SCALES = ("width", "rms", None)

_PUBLISHED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
# The paper divides the arguments of all but the last by 1.01: a margin for rounding.
POLAR_EXPRESS = (
    *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _PUBLISHED[:-1]),
    _PUBLISHED[-1],
)
COEFFICIENTS = {"polar_express": POLAR_EXPRESS, "quintic": ((3.4445, -4.775, 2.0315),)}

# The default precision is bfloat16 on a TPU.
matmul = functools.partial(jnp.matmul, precision="highest")


def check_axes(axes: Any) -> None:
    """Raises if ``axes`` is not a pair of Python integers."""
    _base.check_pair("matrix_axes", axes)
    _base.check_static("matrix_axes", axes)
    if not all(isinstance(axis, int | np.integer) for axis in axes):
        raise ValueError(f"matrix_axes must be two integers, got {axes!r}.")


def check_coefficients(coefficients: Any) -> Coefficients:
    """The triples of a word, or those that are given.

    Raises:
      ValueError: it is neither a known word nor a sequence of triples of numbers.
      TypeError: it is an array that may be traced.
    """
    if isinstance(coefficients, str):
        _base.check_choice("coefficients", coefficients, tuple(COEFFICIENTS))
        return COEFFICIENTS[coefficients]
    _base.check_static("coefficients", coefficients)
    triples: np.ndarray
    try:
        triples = np.asarray(coefficients, np.float64)
    except (TypeError, ValueError):
        triples = np.zeros(0)
    if triples.ndim != 2 or triples.shape[1] != 3 or not np.all(np.isfinite(triples)):
        raise ValueError(
            f"coefficients must be one of {list(COEFFICIENTS)} or a sequence of "
            f"triples of finite numbers, got {coefficients!r}."
        )
    return [tuple(row) for row in triples.tolist()]


def shape_factor(shape_scale: str | None, x: jax.Array, axes: Any) -> float:
    """What makes up for the shape of the matrices along two axes of ``x``."""
    width_in, width_out = (max(x.shape[axis], 1) for axis in axes)
    if shape_scale is None:
        return 1.0
    if shape_scale == "width":
        return max(1.0, width_out / width_in) ** 0.5
    return 0.2 * max(width_in, width_out) ** 0.5


def map_matrices(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, axes: Any
) -> jax.Array:
    """``function`` of the matrices along two axes of ``x``, over all other axes.

    It is given them with no more rows than columns. Those that are spread over explicit
    axes of a mesh are gathered first, and spread again.
    """
    if any(not -x.ndim <= axis < x.ndim for axis in axes) or (
        axes[0] % x.ndim == axes[1] % x.ndim
    ):
        raise ValueError(
            f"matrix_axes must be two axes of each leaf that has two or more, got "
            f"{tuple(axes)} for one of shape {x.shape}."
        )
    sharding = jax.typeof(x).sharding
    matrices = jnp.moveaxis(_whole_matrices(x, axes), axes, (-2, -1))
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    result = function(matrices.mT if is_tall else matrices)
    result = jnp.moveaxis(result.mT if is_tall else result, (-2, -1), axes)
    is_spread = jax.typeof(result).sharding != sharding
    return jax.sharding.reshard(result, sharding) if is_spread else result


def _whole_matrices(x, axes):
    sharding = jax.typeof(x).sharding
    spec = [*sharding.spec, *[None] * (x.ndim - len(sharding.spec))]
    whole = [None if i in {a % x.ndim for a in axes} else s for i, s in enumerate(spec)]
    if whole == spec:
        return x
    spec = jax.sharding.PartitionSpec(*whole)
    return jax.sharding.reshard(x, sharding.update(spec=spec))


def unit_matrices(x: jax.Array, eps: Any = 0.0) -> jax.Array:
    """Each matrix over its Frobenius norm plus ``eps``; 0 where that is 0.

    One with an entry that is not finite becomes NaN.
    """
    # The result does not depend on this scale, so it needs no slope.
    largest = jnp.max(jnp.abs(x), (-2, -1), keepdims=True, initial=0)
    largest = jax.lax.stop_gradient(jnp.where(largest == 0, 1, largest))
    x = x / largest
    norm = _tree.safe_sqrt(jnp.sum(jnp.square(x), (-2, -1), keepdims=True))
    return _tree.safe_divide(x, norm + eps / largest)


def polar(x: jax.Array, coefficients: Coefficients, steps: int) -> jax.Array:
    r"""Brings the singular values of each matrix, which are at most 1, near 1.

    In each step :math:`X \leftarrow a X + (b X X^\top + c (X X^\top)^2) X`. The last of
    the coefficients is used again and again.
    """
    triples = [coefficients[min(k, len(coefficients) - 1)] for k in range(steps)]

    def step(x, triple):
        a, b, c = triple
        gram = matmul(x, x.mT)
        return a * x + matmul(b * gram + c * matmul(gram, gram), x), None

    return jax.lax.scan(step, x, jnp.asarray(triples, x.dtype))[0]
