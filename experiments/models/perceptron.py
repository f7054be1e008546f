"""A multi-layer perceptron."""

import itertools

import jax
from flax import nnx


class Perceptron(nnx.Module):
    """Hidden layers of one width with ReLU, and a linear output."""

    def __init__(
        self, num_in: int, width: int, num_layers: int, num_out: int, *, rngs: nnx.Rngs
    ):
        sizes = [num_in] + [width] * num_layers
        self.hidden = nnx.List(
            nnx.Linear(n_in, n_out, rngs=rngs)
            for n_in, n_out in itertools.pairwise(sizes)
        )
        self.output = nnx.Linear(sizes[-1], num_out, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps (batch, ...) images to (batch, num_out) logits.

        Args:
          images: all their axes but the first are flattened.
          train: makes no difference here; other models need to know.
        """
        del train
        x = images.reshape(len(images), -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.output(x)
