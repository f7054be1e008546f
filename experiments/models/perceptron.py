"""A multi-layer perceptron."""

import itertools

import jax
from flax import nnx

NUM_PIXELS = 64


class Perceptron(nnx.Module):
    """Hidden layers of one width with ReLU, and a linear output."""

    def __init__(self, width: int, num_layers: int, num_out: int, *, rngs: nnx.Rngs):
        sizes = [NUM_PIXELS] + [width] * num_layers
        self.hidden = nnx.List(
            nnx.Linear(n_in, n_out, rngs=rngs)
            for n_in, n_out in itertools.pairwise(sizes)
        )
        self.output = nnx.Linear(sizes[-1], num_out, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (batch, 64) images to (batch, num_out) logits."""
        x = images
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.output(x)
