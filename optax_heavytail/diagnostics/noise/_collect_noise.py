"""The noise of the gradients of many batches, gone through twice."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail import _base
from optax_heavytail.diagnostics.noise._noise import WHOLE, LayerNoise, Noise

Progress = Callable[[int, int], None]


class Batches(Protocol):
    """What can be counted, and gone through again and again."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """From the first one."""
        ...


# Inner products are exact for smaller layers; their error in larger ones, relative to
# the product of the norms, is at most about 1 / sqrt(2048) = 2%.
_SKETCH_SIZE = 2048
# Of the largest norm: more than rounding in another order makes.
_REPEATS = 1e-3
# Of each layer, at random places that are the same in all draws.
_MOST_COORDINATES = 256


def collect_noise(
    grad_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Batches,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Noise:
    r"""Measures how far the gradient of each batch is from the mean of all.

    With :math:`g_i` the gradient of batch i of n,

    .. math:: \bar g = \frac 1 n \sum_i g_i, \qquad
        \varepsilon_i = g_i - \bar g.

    The batches are gone through twice, for :math:`\bar g` and for the noise; between
    them no gradient is kept. Memory on the host: :math:`\bar g` in float64, and per
    layer an n x n matrix and n x 2,048 numbers.

    Args:
      grad_fn: (params, batch) -> gradient, a pytree of whatever ``np.asarray`` takes:
        arrays of NumPy or JAX, tensors of another framework on the host, and ``None``
        for what has no gradient in any batch. It must return the same for the same
        batch; it is called as it is, so compile it yourself.
      params: handed to ``grad_fn``, never looked at.
      batches: 2 or more of one size, drawn independently; a list, or anything with a
        length that gives the same batches each time it is gone through.
      seed: of the random coordinates and sketches; 0 or more.
      progress: called with (done, of how many) after every gradient.

    Returns:
      A `Noise`. A gradient with an inf or NaN is counted in its layer, whose arrays,
      like those of the whole, are then NaN; other layers stay as they are.

    Raises:
      ValueError: fewer than 2 batches, no entries, or leaves that change between
        batches.
      TypeError: ``batches`` cannot be gone through twice, or a leaf is not real.

    Example:
      >>> import numpy as np
      >>> batches = np.random.default_rng(0).normal(size=(100, 8, 3))
      >>> noise = collect_noise(lambda w, x: {"w": (x - w).mean(0)}, 0.0, batches)
      >>> [layer.name for layer in noise.layers], noise.num_batches
      (['w'], 100)
      >>> bool(abs(noise.whole.variance - 3 / 8) < 0.1)
      True
    """
    _base.check_integer("seed", seed, 0)
    try:
        num_batches = len(batches)
    except TypeError:
        raise TypeError(
            "batches must have a length and be there twice, such as a list, got "
            f"{type(batches).__name__}."
        ) from None
    if num_batches < 2:
        raise ValueError(f"at least 2 batches are needed, got {num_batches}.")

    def gradients(offset: int):
        count = 0
        for count, batch in enumerate(batches, 1):
            if count > num_batches:
                break
            yield count - 1, _leaves(grad_fn(params, batch))
            if progress is not None:
                progress(offset + count, 2 * num_batches)
        if count != num_batches:
            raise ValueError(
                f"batches must be there twice, {num_batches} of them: there were "
                f"{count}{' or more' if count > num_batches else ''}."
            )

    first = _first_pass(gradients(0), num_batches)
    layers = _second_pass(gradients(num_batches), first, num_batches, seed)
    return Noise(layers, _whole(layers, seed))


@dataclasses.dataclass
class _Sums:
    """What the first pass adds up, by layer."""

    mean: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    eps: dict[str, float]


def _leaves(grads: Any) -> dict[str, np.ndarray]:
    """The gradient's leaves by path, each as one vector."""
    if grads is None:
        raise ValueError("grad_fn returned None and no gradient.")
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "parameters"
        if name in leaves:
            raise ValueError(f"two leaves of the gradient are called {name!r}.")
        array = np.asarray(leaf)
        is_real = array.dtype.kind in "fiu" or array.dtype.name.startswith("bfloat")
        if not is_real:
            raise TypeError(f"gradient {name} must be real, has dtype {array.dtype}.")
        leaves[name] = array.reshape(-1)
    return leaves


def _first_pass(gradients: Any, num_batches: int) -> _Sums:
    sums = _Sums({}, {}, {})
    for i, leaves in gradients:
        if i == 0:
            if not any(x.size for x in leaves.values()):
                raise ValueError(
                    "grad_fn returned a gradient without entries; None is no leaf."
                )
            sums.mean = {name: np.zeros(x.size) for name, x in leaves.items()}
            sums.norms = {name: np.zeros(num_batches) for name in leaves}
            sums.eps = {name: _eps(x.dtype) for name, x in leaves.items()}
        _check_same(sums.mean, leaves, i)
        for name, narrow in leaves.items():
            x = narrow.astype(np.float64)
            # An inf or NaN is counted and told; NumPy's warning would add nothing.
            with np.errstate(invalid="ignore", over="ignore"):
                sums.mean[name] += x / num_batches
                sums.norms[name][i] = np.linalg.norm(x)
    return sums


def _eps(dtype: Any) -> float:
    """The unit roundoff of a floating dtype; integers are not rounded."""
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def _check_same(
    mean: dict[str, np.ndarray], leaves: dict[str, np.ndarray], i: int
) -> None:
    old = {name: x.size for name, x in mean.items()}
    new = {name: x.size for name, x in leaves.items()}
    changed = sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n))
    if changed:
        raise ValueError(
            f"the gradient of batch {i} has other leaves: {changed[:4]}; None is no "
            "leaf."
        )


def _check_repeats(name: str, i: int, norm: Any, norms: np.ndarray) -> None:
    """A reshuffled loader, or a function that sums up, has no mean to differ from."""
    room = _REPEATS * np.max(norms, where=np.isfinite(norms), initial=0)
    if np.isfinite(norm) and np.isfinite(norms[i]) and abs(norm - norms[i]) > room:
        raise ValueError(
            f"batch {i} has another gradient of {name} the second time: batches and "
            "grad_fn must give the same again."
        )


class _Layer:
    """What the second pass gathers of one layer."""

    def __init__(self, mean, gradient_norms: np.ndarray, rng: np.random.Generator):
        n, self.size = len(gradient_norms), mean.size
        self.mean, self.gradient_norms = mean, gradient_norms
        self.places = np.sort(
            rng.choice(self.size, min(self.size, _MOST_COORDINATES), replace=False)
        )
        width = min(self.size, _SKETCH_SIZE)
        self.signs = rng.choice(np.array([-1.0, 1.0]), self.size)
        # So that neither tiny nor huge gradients leave the range of float32.
        self.scale = float(np.max(gradient_norms)) or 1.0
        self.sketches = np.zeros((n, width), np.float32)
        self.norms, self.mean_products = np.zeros(n), np.zeros(n)
        self.coordinates = np.zeros((n, len(self.places)))

    def add(self, i: int, gradient: np.ndarray) -> None:
        noise = gradient - self.mean
        self.norms[i] = np.linalg.norm(noise)
        self.mean_products[i] = noise @ self.mean
        self.coordinates[i] = noise[self.places]
        self.sketches[i] = self._sketch(noise / self.scale)

    def _sketch(self, noise: np.ndarray) -> np.ndarray:
        width = self.sketches.shape[1]
        if self.size == width:
            return noise
        # Strides, so that the entries of one row of a matrix do not meet.
        padded = np.zeros(-(-self.size // width) * width)
        padded[: self.size] = noise * self.signs
        return padded.reshape(-1, width).sum(0)

    def result(self, name: str, eps: float) -> LayerNoise:
        n, bad = len(self.norms), ~np.isfinite(self.gradient_norms)
        if bad.any():
            gram = np.full((n, n), np.nan)
        else:
            wide = self.sketches.astype(np.float64)
            gram = (wide @ wide.T) * self.scale**2
            np.fill_diagonal(gram, self.norms**2)
        gradient_norm = float(np.linalg.norm(self.mean))
        return LayerNoise(
            name=name,
            size=self.size,
            num_nonfinite=int(bad.sum()),
            gradient_norm=gradient_norm,
            rounding=eps * gradient_norm,
            norms=self.norms,
            gradient_norms=self.gradient_norms,
            mean_products=self.mean_products,
            gram=gram,
            coordinates=self.coordinates,
            mean_coordinates=self.mean[self.places],
        )


def _second_pass(
    gradients: Any, first: _Sums, num_batches: int, seed: int
) -> tuple[LayerNoise, ...]:
    rng = np.random.default_rng(seed)
    layers = {
        name: _Layer(mean, first.norms[name], rng) for name, mean in first.mean.items()
    }
    for i, leaves in gradients:
        _check_same(first.mean, leaves, i)
        for name, narrow in leaves.items():
            x = narrow.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                _check_repeats(name, i, np.linalg.norm(x), first.norms[name])
                layers[name].add(i, x)
    return tuple(layer.result(name, first.eps[name]) for name, layer in layers.items())


def _whole(layers: tuple[LayerNoise, ...], seed: int) -> LayerNoise:
    """All layers as one vector, whose coordinates are those of the layers by size."""
    rng, size = np.random.default_rng(seed), sum(layer.size for layer in layers)
    columns = []
    for layer in layers:
        there = layer.coordinates.shape[1]
        wanted = min(round(_MOST_COORDINATES * layer.size / size), there)
        columns.append(rng.choice(there, wanted, replace=False))
    bad = [~np.isfinite(layer.gradient_norms) for layer in layers]

    def joined(of: Callable[[LayerNoise], np.ndarray]) -> np.ndarray:
        pairs = zip(layers, columns, strict=True)
        return np.concatenate([of(layer)[..., c] for layer, c in pairs], axis=-1)

    def norm(of: Callable[[LayerNoise], Any]) -> np.ndarray:
        return np.sqrt(np.sum([np.square(of(layer)) for layer in layers], axis=0))

    return LayerNoise(
        name=WHOLE,
        size=size,
        num_nonfinite=int(np.logical_or.reduce(bad).sum()),
        gradient_norm=float(norm(lambda layer: layer.gradient_norm)),
        rounding=float(norm(lambda layer: layer.rounding)),
        norms=norm(lambda layer: layer.norms),
        gradient_norms=norm(lambda layer: layer.gradient_norms),
        mean_products=np.sum([layer.mean_products for layer in layers], axis=0),
        gram=np.sum([layer.gram for layer in layers], axis=0),
        coordinates=joined(lambda layer: layer.coordinates),
        mean_coordinates=joined(lambda layer: layer.mean_coordinates),
    )
