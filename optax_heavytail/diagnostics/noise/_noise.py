"""Gradient noise of a model at one point of training, layer by layer."""

import dataclasses

import numpy as np

WHOLE = "all layers"
_MOST_NUMBERS = 2**22  # drawn at a time: 48 MiB with their squares


@dataclasses.dataclass(frozen=True, eq=False)
class LayerNoise:
    r"""Noise of one layer, or of all: :math:`\varepsilon_i = g_i - \bar g`, i = 1..n.

    All arrays are NumPy's, in float64. Of a layer with an inf or NaN they are NaN.

    Attributes:
      name: path of the leaf, its parts joined by "/"; "all layers" for the whole.
      size: number of coordinates, d.
      num_nonfinite: batches whose gradient has an inf or NaN here.
      gradient_norm: :math:`\lVert \bar g \rVert`.
      rounding: that norm times the machine epsilon of the gradient's dtype.
      norms: (n,) :math:`\lVert \varepsilon_i \rVert`.
      gradient_norms: (n,) :math:`\lVert g_i \rVert`.
      mean_products: (n,) :math:`\langle \varepsilon_i, \bar g \rangle`.
      gram: (n, n) :math:`\langle \varepsilon_i, \varepsilon_j \rangle`, off the
        diagonal from random sketches where d is above 2,048.
      coordinates: (n, c) noise of c coordinates, the same random ones in each draw.
      mean_coordinates: (c,) :math:`\bar g` there.
    """

    name: str
    size: int
    num_nonfinite: int
    gradient_norm: float
    rounding: float
    norms: np.ndarray = dataclasses.field(repr=False)
    gradient_norms: np.ndarray = dataclasses.field(repr=False)
    mean_products: np.ndarray = dataclasses.field(repr=False)
    gram: np.ndarray = dataclasses.field(repr=False)
    coordinates: np.ndarray = dataclasses.field(repr=False)
    mean_coordinates: np.ndarray = dataclasses.field(repr=False)

    @property
    def variance(self) -> float:
        r"""Unbiased estimate of :math:`E \lVert g - E g \rVert^2`."""
        return float(np.sum(self.norms**2) / (len(self.norms) - 1))

    @property
    def signal_to_noise(self) -> float:
        r"""Estimate of :math:`\lVert E g \rVert / \sqrt{E \lVert g - E g \rVert^2}`.

        0 if the mean gradient is no longer than the mean of pure noise would be, NaN
        without noise.
        """
        variance = self.variance
        if variance == 0:
            return float("nan")
        signal = self.gradient_norm**2 - variance / len(self.norms)
        return float(np.sqrt(max(signal, 0.0) / variance))

    def empirical_variance(self) -> np.ndarray:
        """(n,) mean of the squared norms of the first 1, 2, ..., n draws.

        It settles if the variance is finite, and jumps upwards for ever if it is not.
        """
        return np.cumsum(self.norms**2) / np.arange(1, len(self.norms) + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """Noise of all the layers of a model, from n batches at the same parameters.

    Attributes:
      layers: one entry per leaf of the gradients.
      whole: all of them as one vector.
    """

    layers: tuple[LayerNoise, ...]
    whole: LayerNoise

    @property
    def num_batches(self) -> int:
        """n."""
        return len(self.whole.norms)


def gaussian_norms(
    grams: list[np.ndarray], num_draws: int, seed: int
) -> list[np.ndarray]:
    r"""Norms of Gaussian noise with the covariance of the noise that was measured.

    A Gaussian vector with the covariance :math:`\frac 1 n \sum_i \varepsilon_i
    \varepsilon_i^T` is :math:`n^{-1/2} \sum_i z_i \varepsilon_i`, and its squared norm
    :math:`z^T G z / n`, that is :math:`\sum_j \lambda_j w_j^2 / n` with the eigenvalues
    of the Gram matrix and independent standard normal :math:`w_j`.

    Returns:
      For each matrix (num_draws, n): as many norms as there are batches, in each row.
    """
    n = len(grams[0])
    # Without the smallest ones, which the sketches and rounding make negative.
    spectra = np.stack([np.clip(np.linalg.eigvalsh(g), 0, None) for g in grams], 1)
    rng = np.random.default_rng(seed)
    out = np.empty((num_draws, n, len(grams)))
    flat = out.reshape(-1, len(grams))  # each norm has its n numbers
    step = max(1, _MOST_NUMBERS // n)
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        normal = rng.standard_normal((len(part), n), np.float32)
        part[:] = np.sqrt(np.square(normal, dtype=np.float64) @ spectra / n)
    return list(np.moveaxis(out, -1, 0))
