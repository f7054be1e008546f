"""The polar factor of each matrix: all singular values become 1."""

from typing import Any

import jax
import optax

from optax_heavytail import _base, _matrices
from optax_heavytail._transform import transform


def orthogonalize(
    *,
    matrix_axes: tuple[int, int] = (-2, -1),
    steps: int = 5,
    coefficients: Any = "polar_express",
    shape_scale: str | None = "width",
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces each matrix by the nearest one with orthonormal rows or columns.

    .. math::
        u = s\, U V^\top \quad \text{for} \quad g = U \Sigma V^\top, \qquad
        s = \sqrt{\max(1, d_\text{out} / d_\text{in})}

    in the limit of many steps. Muon's step without its momentum, so that what the
    momentum is made of can be chosen, or clipped, in front of it:
    ``optax.chain(clip_by_value(c), ema(0.95), orthogonalize(), ...)``.

    It divides by :math:`\lVert g \rVert_F + \epsilon` and then, ``steps`` times, takes
    :math:`X \leftarrow a X + (b X X^\top + c (X X^\top)^2) X`, which brings every
    singular value nearer to 1. After 5 steps they are between 0.75 and 1.25 where
    they were above a thousandth of the norm, and smaller ones stay below.

    A leaf with more than two axes is a batch of matrices, such as scanned layers or
    experts; so a stack of biases counts as a matrix and is better left out with
    ``optax.masked``. Leaves with fewer axes pass.

    Args:
      matrix_axes: the axes of inputs and outputs: (-2, -1) for the kernels of Flax,
        (-1, -2) for PyTorch's layout.
      steps: iterations, a Python integer of at least 1.
      coefficients: "polar_express", eight triples (a, b, c) that converge; "quintic",
        Muon's one triple, which keeps singular values between 0.7 and 1.2; or a
        sequence of triples, whose last is repeated.
      shape_scale: :math:`s`. "width" as above; "rms" for
        :math:`0.2 \sqrt{\max(d_\text{in}, d_\text{out})}`, which gives the entries
        the size that Adam's have; ``None`` for 1.
      eps: :math:`\epsilon` in [0, inf).

    Returns:
      A transform without state. Updates keep their structure, shapes and dtypes.
      Arithmetic is float32 or wider, with no product in fewer bits. A zero matrix stays
      zero, huge and, with ``eps=0``, tiny ones count by their direction alone. An inf
      or NaN entry makes its matrix NaN, and no other.

    Raises:
      ValueError: an argument is outside its range, or ``matrix_axes`` are no two axes
        of a leaf.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.orthogonalize(steps=10)
      >>> grads = {"kernel": jnp.diag(jnp.array([100.0, -2.0])), "bias": jnp.ones(2)}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> jnp.round(updates["kernel"], 4).tolist(), updates["bias"].tolist()
      ([[1.0, 0.0], [0.0, -1.0]], [1.0, 1.0])

    References:
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024. Amsel
      et al., `The Polar Express <https://arxiv.org/abs/2505.16932>`_, 2025.
    """
    _matrices.check_axes(matrix_axes)
    _base.check_static_integer("steps", steps, 1)
    triples = _matrices.check_coefficients(coefficients)
    _base.check_choice("shape_scale", shape_scale, _matrices.SHAPE_SCALES)
    _base.check_range("eps", eps, 0.0, float("inf"))

    def init(params):
        del params
        return optax.EmptyState()

    def polar_factor(x):
        return _matrices.polar(_matrices.unit_matrices(x, eps), triples, steps)

    def orthogonal(g):
        if g.ndim < 2:
            return g
        scale = _matrices.shape_factor(shape_scale, g, matrix_axes)
        return scale * _matrices.map_matrices(polar_factor, g, matrix_axes)

    def update(updates, state):
        return jax.tree.map(orthogonal, updates), state

    return transform(init, update)
