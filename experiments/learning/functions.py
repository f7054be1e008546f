"""Families of functions that an LSTM is trained on, and what it is compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.tasks import problems

DIMENSION = 10
BATCH = 128  # images of a step
HIDDEN = 20  # units of the network on images


class Family(NamedTuple):
    """Functions that are drawn, all of one shape, as pure functions."""

    draw: Callable[[jax.Array], Any]  # key -> a function's numbers
    start: Callable[[jax.Array], jax.Array]  # key -> where it is begun, (n,)
    loss: Callable[..., jax.Array]  # (point, numbers, key of a batch) -> ()
    arguments: dict[str, Any]  # of `scale_by_lstm`


def quadratics() -> Family:
    """``|W x - y|^2`` in 10 dimensions, W and y normal, from near 0."""

    def draw(key):
        of_matrix, of_vector = jax.random.split(key)
        matrix = jax.random.normal(of_matrix, (DIMENSION, DIMENSION))
        return matrix, jax.random.normal(of_vector, (DIMENSION,))

    def start(key):
        return 0.01 * jax.random.normal(key, (DIMENSION,))

    def loss(point, numbers, key):
        del key
        matrix, vector = numbers
        return jnp.sum(jnp.square(matrix @ point - vector))

    return Family(draw, start, loss, {"preprocess": "none", "output_scale": 1.0})


def network(activation: Callable[[jax.Array], jax.Array]) -> Family:
    """One hidden layer of 20 units on scikit-learn's digits, in MNIST's place."""
    data = problems.digits_data()
    problem = problems.network(
        data, (HIDDEN,), activation, problems.no_noise, batch=BATCH
    )

    def loss(point, numbers, key):
        del numbers
        return problem.loss(point, key)

    return Family(
        lambda key: (),
        problem.init,
        loss,
        {"preprocess": "log", "output_scale": 0.1},
    )


FAMILIES: dict[str, Callable[[], Family]] = {
    "quadratics": quadratics,
    "digits_sigmoid": lambda: network(jax.nn.sigmoid),
    "digits_relu": lambda: network(jax.nn.relu),
}


class Rival(NamedTuple):
    """An optimizer to be tuned."""

    make: Callable[[Any], optax.GradientTransformation]
    of_quadratics: float  # middle of its rates there
    of_networks: float

    def middle(self, family: str) -> float:
        """The middle of its rates on a family of that name."""
        return self.of_quadratics if family == "quadratics" else self.of_networks


RIVALS = {
    "sgd": Rival(optax.sgd, 0.01, 0.5),
    "rmsprop": Rival(lambda rate: optax.rmsprop(rate, decay=0.9), 0.02, 0.01),
    "adam": Rival(optax.adam, 0.1, 0.03),
    "nesterov": Rival(
        lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True), 0.004, 0.1
    ),
}


def losses(
    family: Family, tx: Any, steps: int, number: int, key: jax.Array
) -> jax.Array:
    """Of each step from the start on, of so many functions: (number, steps + 1).

    ``tx`` gives what is added to the point, as every optimizer of Optax does.
    """

    def one(key):
        of_function, of_start, of_batches = jax.random.split(key, 3)
        numbers, point = family.draw(of_function), family.start(of_start)

        def step(carry, t):
            point, state = carry
            of_batch = jax.random.fold_in(of_batches, t)
            value, grads = jax.value_and_grad(family.loss)(point, numbers, of_batch)
            updates, state = tx.update(grads, state, point)
            return (point + updates, state), value

        return jax.lax.scan(step, (point, tx.init(point)), jnp.arange(steps + 1))[1]

    return jax.vmap(one)(jax.random.split(key, number))
