"""The ends of a spectrum, and how the eigenvalues are spread between them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_heavytail import _base, _tree
from optax_heavytail.diagnostics.curvature._lanczos import lanczos, ritz

_REACH = 5.0  # standard deviations; 6e-7 of a normal distribution is further out


class ExtremeEigenvalues(NamedTuple):
    """The two ends of a spectrum."""

    smallest: jax.Array  #: ()
    largest: jax.Array  #: ()
    smallest_error: jax.Array  #: (), an eigenvalue is within it of `smallest`
    largest_error: jax.Array  #: (), an eigenvalue is within it of `largest`


class Spectrum(NamedTuple):
    """A spectral density as points with weights, for each probe."""

    nodes: jax.Array  #: (num_probes, num_steps), estimated eigenvalues, rising
    weights: jax.Array  #: (num_probes, num_steps), the rows add up to 1
    #: (num_probes, num_steps), an eigenvalue is within it of a node; NaN for nodes of
    #: weight 0 that stand for no step, where a probe has found all there is to find
    errors: jax.Array

    def ends(self) -> ExtremeEigenvalues:
        """The smallest and the largest node, as `extreme_eigenvalues` has them."""
        low, high = jnp.argmin(self.nodes[:, 0]), jnp.argmax(self.nodes[:, -1])
        smallest, largest = self.nodes[low, 0], self.nodes[high, -1]
        return ExtremeEigenvalues(
            smallest=smallest,
            largest=largest,
            smallest_error=self._error(low, smallest),
            largest_error=self._error(high, largest),
        )

    def _error(self, probe: jax.Array, end: jax.Array) -> jax.Array:
        """The error of the first node that is the end and stands for a step."""
        is_end = self.nodes[probe] == end
        return jnp.nanmin(jnp.where(is_end, self.errors[probe], jnp.nan))

    def grid(self, num_points: int = 512, width: float = 0.01) -> jax.Array:
        r"""Points for `density` that span the nodes, and :math:`5 \sigma` beyond.

        Args:
          num_points: at least ``1 / width + 11``: no two are then further apart than
            :math:`\sigma`.
          width: see `density`.

        Raises:
          ValueError: there are fewer points than that, or ``width`` is out of range.
        """
        _base.check_static_integer("num_points", num_points, 2)
        _base.check_range("width", width, 0.0, float("inf"), low_open=True)
        if num_points < 1 / width + 11:
            raise ValueError(
                f"num_points must be at least 1 / width + 11 = {1 / width + 11:.0f}, "
                f"got {num_points}."
            )
        sigma = self._sigma(width)
        low, high = jnp.min(self.nodes), jnp.max(self.nodes)
        low, high = low - _REACH * sigma, high + _REACH * sigma
        return low + (high - low) * jnp.linspace(0.0, 1.0, num_points)

    def density(self, grid: jax.typing.ArrayLike, width: float = 0.01) -> jax.Array:
        r"""The density on a grid, each node a normal distribution.

        .. math:: \phi(t) = \frac{1}{n} \sum_{p=1}^n \sum_j
            w_{pj} \, \mathcal{N}(t; \theta_{pj}, \sigma^2)

        Its integral is 1.

        Args:
          grid: shape (points,).
          width: :math:`\sigma` over the distance between the largest and the smallest
            node, in (0, inf). If all nodes are equal it is over their magnitude, and
            if they are all 0 it is :math:`\sigma`.

        Returns:
          Shape (points,).

        Raises:
          ValueError: ``width`` is out of range.
        """
        _base.check_range("width", width, 0.0, float("inf"), low_open=True)
        sigma = self._sigma(width)
        scaled = (jnp.asarray(grid)[:, None] - self.nodes.reshape(1, -1)) / sigma
        heights = jnp.exp(-jnp.square(scaled) / 2) / (sigma * math.sqrt(2 * math.pi))
        return jnp.sum(heights * self.weights.reshape(1, -1), axis=1) / len(self.nodes)

    def _sigma(self, width: float) -> jax.Array:
        span = jnp.max(self.nodes) - jnp.min(self.nodes)
        size = jnp.max(jnp.abs(self.nodes))
        # Equal nodes of several probes differ by their rounding.
        span = jnp.where(span > 64 * jnp.finfo(size.dtype).eps * size, span, size)
        return width * jnp.where(span == 0, 1.0, span)


def extreme_eigenvalues(
    matvec: Callable[[Any], Any], params: Any, key: jax.Array, num_steps: int = 100
) -> ExtremeEigenvalues:
    r"""The smallest and the largest eigenvalue, each with a bound of its error.

    The extreme eigenvalues :math:`\theta` of `lanczos`'s :math:`T` from a random
    start. With :math:`T`'s unit eigenvector :math:`s`, some eigenvalue
    :math:`\lambda` of :math:`H` has

    .. math:: \lvert \lambda - \theta \rvert \leq T_{m+1,m} \lvert s_m \rvert .

    The ends are approached from inside, and usually much closer than the bound says:
    its square over the distance to the next eigenvalue. It leaves out the rounding of
    ``matvec``.

    Args:
      matvec: see `lanczos`; for the Hessian of a loss
        ``lambda v: hvp(loss_fn, params, v)``.
      params: a tree of the operator's shapes; its values do not matter.
      key: of the random start.
      num_steps: :math:`m`, see `lanczos`, also for the memory. An end far from the rest
        of the spectrum takes 20 to 30; one that is the edge of a dense part takes more,
        which its error says.

    Returns:
      An `ExtremeEigenvalues`, in float32 or wider. An operator of zeros gives zeros;
      non-finite products give NaN.

    Raises:
      TypeError: see `lanczos`.
      ValueError: see `lanczos`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from optax_heavytail import diagnostics
      >>> curvature = jnp.linspace(-1.0, 3.0, 50)
      >>> found = diagnostics.extreme_eigenvalues(
      ...     lambda v: curvature * v, jnp.zeros(50), jax.random.key(0), num_steps=40
      ... )
      >>> round(float(found.smallest), 4), round(float(found.largest), 4)
      (-1.0, 3.0)
    """
    return spectral_density(matvec, params, key, num_steps, num_probes=1).ends()


def spectral_density(
    matvec: Callable[[Any], Any],
    params: Any,
    key: jax.Array,
    num_steps: int = 100,
    num_probes: int = 4,
) -> Spectrum:
    r"""How the eigenvalues are spread, by stochastic Lanczos quadrature.

    The density of :math:`H`'s eigenvalues is the mean, over random unit vectors
    :math:`v`, of what `lanczos` finds from :math:`v`: the eigenvalues :math:`\theta_j`
    of its :math:`T`, with the squared first entries of their eigenvectors as weights.
    The moments of each up to order :math:`2 m - 1` are :math:`v^T H^k v`.

    Args:
      matvec: see `extreme_eigenvalues`.
      params: see `extreme_eigenvalues`.
      key: of the random vectors.
      num_steps: :math:`m`, see `lanczos`, also for the memory: the probes are taken one
        after the other.
      num_probes: of random vectors, at least 1, static. The relative error of a mean
        over the spectrum of d eigenvalues falls as ``1 / sqrt(num_probes d)``.

    Returns:
      A `Spectrum`, in float32 or wider: `Spectrum.density` draws it, `Spectrum.ends`
      are the best that all probes have found. Non-finite products give NaN.

    Raises:
      TypeError: see `lanczos`.
      ValueError: see `lanczos`, or ``num_probes`` is out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from optax_heavytail import diagnostics
      >>> curvature = jnp.linspace(-1.0, 3.0, 500)
      >>> spectrum = diagnostics.spectral_density(
      ...     lambda v: curvature * v, jnp.zeros(500), jax.random.key(0), num_probes=8
      ... )
      >>> grid = spectrum.grid()
      >>> density = spectrum.density(grid)
      >>> round(float(jnp.trapezoid(density, grid)), 3)
      1.0

    References:
      Ghorbani, Krishnan and Xiao, `An investigation into neural net optimization via
      Hessian eigenvalue density <https://arxiv.org/abs/1901.10159>`_, 2019.
    """
    _base.check_static_integer("num_probes", num_probes, 1)

    def probe(key):
        found = lanczos(matvec, _random_like(params, key), num_steps)
        values, vectors = ritz(found)
        last = found.num_found - 1
        errors = jnp.abs(found.off_diagonal[last] * vectors[last])
        weights = jnp.square(vectors)
        beyond = jnp.arange(num_steps)[:, None] >= found.num_found
        is_padding = jnp.sum(weights * beyond, axis=0) > 0.5
        return values, weights[0], jnp.where(is_padding, jnp.nan, errors)

    return Spectrum(*jax.lax.map(probe, jax.random.split(key, num_probes)))


def _random_like(params: Any, key: jax.Array) -> Any:
    _base.check_floating(params, "parameters")
    wide = _tree.at_least_float32(params)
    leaves, treedef = jax.tree.flatten(wide)
    keys = jax.random.split(key, max(1, len(leaves)))
    pairs = zip(keys, leaves, strict=False)
    return treedef.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in pairs])
