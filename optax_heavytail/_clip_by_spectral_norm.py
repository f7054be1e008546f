"""Clipping of singular values: a spike in one direction leaves the others alone."""

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _matrices, _norms, _tree
from optax_heavytail._gclip import ClipByNormState
from optax_heavytail._transform import transform


def clip_by_spectral_norm(
    threshold: _base.ScalarOrSchedule,
    *,
    soft: bool = True,
    steps: int = 12,
    matrix_axes: tuple[int, int] = (-2, -1),
    shape_scale: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Bounds the singular values of each matrix by a threshold.

    With :math:`g = U \operatorname{diag}(\sigma_i) V^\top`,

    .. math::
        u = U \operatorname{diag}(h(\sigma_i)) V^\top, \qquad
        h(\sigma) = \frac{\sigma}{\sqrt{1 + \sigma^2 / c^2}} \quad \text{or} \quad
        h(\sigma) = \min(\sigma, c).

    A gradient that is huge in one direction loses that direction's length alone, where
    `clip_by_norm` shortens all of it. Leaves with fewer than two axes have one
    :math:`\sigma`, their norm.

    It is computed by products alone: the soft form is the part of :math:`c` times the
    polar factor of :math:`[g, c I]` that belongs to :math:`g`, whose smallest singular
    value is known to be :math:`c`; the hard one joins :math:`g` and its polar
    factor by the sign of the matrix whose eigenvalues are
    :math:`(\sigma_i^2 - c^2) / (\sigma_i^2 + c^2)`.

    Args:
      threshold: :math:`c` in (0, inf), in the updates' units, or a schedule of the
        count from 0.
      soft: True for the first :math:`h`, False for the second.
      steps: iterations, a Python integer of at least 1. With :math:`R =
        \sqrt{\lVert g \rVert_F^2 / c^2 + n}`, n the smaller side, 8 are enough for R
        up to 1e3, 12 up to 1e4 and 16 up to 1e5. With fewer, small singular
        values are lost behind the spike; none gets too large.
      matrix_axes: the axes of inputs and outputs, as for `orthogonalize`.
      shape_scale: as for `orthogonalize`; applied after the clip.

    Returns:
      A transform with a `ClipByNormState`. Updates keep their structure, shapes and
      dtypes. Without a ``shape_scale`` no singular value grows by more than rounding.
      What has a Frobenius norm within the threshold passes the hard form bit for
      bit; zero stays zero. In float32 the hard form has an error of 3e-7 of the largest
      singular value, the soft one of 1e-8 of it and of 1e-6 of the threshold. An inf or
      NaN entry makes its matrix NaN, and no other.

    Raises:
      ValueError: an argument is outside its range, or ``matrix_axes`` are no two axes
        of a leaf.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> grads = jnp.diag(jnp.array([3.0, 0.5]))
      >>> for soft in (True, False):
      ...     tx = oht.clip_by_spectral_norm(1.0, soft=soft)
      ...     updates, _ = tx.update(grads, tx.init(grads))
      ...     print([round(u, 4) for u in jnp.diag(updates).tolist()])
      [0.9487, 0.4472]
      [1.0, 0.5]

    References:
      `SPECTRA <https://arxiv.org/abs/2603.14315>`_, 2026, for the soft form; there
      small singular values are lost behind a spike, and the clip of vectors jumps at
      the threshold.
    """
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    _base.check_flag("soft", soft)
    _base.check_static_integer("steps", steps, 1)
    _matrices.check_axes(matrix_axes)
    _base.check_choice("shape_scale", shape_scale, _matrices.SHAPE_SCALES)
    clip_matrices, clip_vector = (
        (_soft_matrices, _soft_vector) if soft else (_hard_matrices, _hard_vector)
    )

    def init(params):
        del params
        return ClipByNormState(jnp.zeros([], jnp.int32))

    def clip(g, limit):
        limit = jnp.asarray(limit, g.dtype)
        # A schedule's bad threshold is loud.
        limit = _tree.nan_unless(limit > 0, limit)
        if g.ndim < 2:
            return clip_vector(g, limit)
        scale = _matrices.shape_factor(shape_scale, g, matrix_axes)
        clipped = _matrices.map_matrices(
            lambda x: clip_matrices(x, limit, steps), g, matrix_axes
        )
        return scale * clipped

    def update(updates, state):
        limit = _base.at_count(threshold, state.count)
        clipped = jax.tree.map(lambda g: clip(g, limit), updates)
        return clipped, ClipByNormState(optax.safe_increment(state.count))

    return transform(init, update)


def _polar(x: jax.Array, steps: int) -> jax.Array:
    return _matrices.polar(x, _matrices.POLAR_EXPRESS, steps)


def _identities(x: jax.Array) -> jax.Array:
    """An identity for each matrix, of the size of its smaller side."""
    rows = x.shape[-2]
    return jnp.broadcast_to(jnp.eye(rows, dtype=x.dtype), (*x.shape[:-1], rows))


def _compressed(x: jax.Array, limit: jax.Array, steps: int) -> jax.Array:
    """The soft clip over the threshold: every singular value is below 1."""
    both = jnp.concatenate([x, limit * _identities(x)], axis=-1)
    return _polar(_matrices.unit_matrices(both), steps)[..., : x.shape[-1]]


def _soft_matrices(x: jax.Array, limit: jax.Array, steps: int) -> jax.Array:
    return limit * _compressed(x, limit, steps)


def _hard_matrices(x: jax.Array, limit: jax.Array, steps: int) -> jax.Array:
    small = _compressed(x, limit, steps)
    eye = _identities(x)
    # Where a singular value is near the threshold its sign has not converged, and does
    # not matter: both results are the same there.
    sign = _polar(2 * _matrices.matmul(small, small.mT) - eye, steps)
    above = (eye + sign) / 2
    inside = x - _matrices.matmul(above, x)
    clipped = inside + limit * _matrices.matmul(above, _polar(small, steps))
    norm = jax.lax.stop_gradient(_frobenius(x))
    return jnp.where(norm <= limit, x, clipped)


def _frobenius(x: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(x), (-2, -1), keepdims=True, initial=0)
    scaled = x / jnp.where(largest == 0, 1, largest)
    return largest * jnp.sqrt(jnp.sum(jnp.square(scaled), (-2, -1), keepdims=True))


def _soft_vector(x: jax.Array, limit: jax.Array) -> jax.Array:
    norm = _norms.global_norm(x)
    shorter = _tree.minimum(norm.value, limit)
    ratio = shorter / _tree.maximum(norm.value, limit)
    length = shorter / jnp.sqrt(1 + jnp.square(ratio))
    return _norms.apply_factors(_norms.clip_factors(norm, length), x)


def _hard_vector(x: jax.Array, limit: jax.Array) -> jax.Array:
    return _norms.apply_factors(_norms.clip_factors(_norms.global_norm(x), limit), x)
