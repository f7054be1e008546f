"""A small network as a plain tree, cheap to compile and to run in many lanes."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Layers = list[tuple[jax.Array, jax.Array]]  # (kernel, bias) of each


def init(key: jax.Array, sizes: Sequence[int]) -> Layers:
    """Kernels of variance 2 / n_in, the last a tenth as large; biases of zero."""
    keys = jax.random.split(key, len(sizes) - 1)
    layers = [
        (jax.random.normal(k, (n_in, n_out)) * (2 / n_in) ** 0.5, jnp.zeros(n_out))
        for k, (n_in, n_out) in zip(keys, itertools.pairwise(sizes), strict=True)
    ]
    kernel, bias = layers[-1]
    return [*layers[:-1], (0.1 * kernel, bias)]


def apply(layers: Layers, x: jax.Array) -> jax.Array:
    """(n, n_in) to (n, n_out), with ReLU between the layers."""
    for kernel, bias in layers[:-1]:
        x = jax.nn.relu(x @ kernel + bias)
    kernel, bias = layers[-1]
    return x @ kernel + bias
