"""The trainings that the MLP learns from: drawn anew for each episode, of fixed shapes.

A training is a function of its key alone. So a worker keeps how far it is and no more.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks import problems
from optax_heavytail import learned

RMS = 0.3  # of the updates of a leaf
_WIDTHS = (64, 32, 32, 10)
_SIZE = 64  # of a quadratic
_SPIKE, _EVERY = 1e4, 50
# What a key of an episode is folded with: its function, its start, its setting, steps.
_FUNCTION, _START, _SETTING, _STEPS = range(4)
_LARGEST, _OFFSET = 5.0, 1e-3  # of a loss under its logarithm


class Setting(NamedTuple):
    """What an episode has beside its function."""

    horizon: jax.Array  # (), int32, steps
    rate: jax.Array  # ()
    is_cosine: jax.Array  # ()
    units: jax.Array  # (n,): a parameter times this is the function's argument
    has_pareto: jax.Array  # ()
    has_spikes: jax.Array  # ()
    tail: jax.Array  # ()
    noise: jax.Array  # (), size of the noise


class Family(NamedTuple):
    """Functions of one shape."""

    leaves: tuple[int, ...]  # sizes, of which the argument is made
    draw: Callable[[jax.Array], Any]  # key -> a function's numbers
    start: Callable[[jax.Array], jax.Array]  # key -> where it is begun, (n,)
    loss: Callable[..., jax.Array]  # (argument, numbers, key of a batch) -> ()


def networks() -> Family:
    """Perceptrons on the digits: one or two layers, two activations, wrong labels."""
    data = problems.digits_data()
    shapes = [(a + 1, b) for a, b in itertools.pairwise(_WIDTHS)]
    ends = np.cumsum([math.prod(shape) for shape in shapes])

    def draw(key):
        keys = jax.random.split(key, 5)
        is_deep, is_tanh = (jax.random.bernoulli(k) for k in keys[:2])
        share = 0.4 * jax.random.uniform(keys[2]) * jax.random.bernoulli(keys[3])
        of_rows, of_labels = jax.random.split(keys[4])
        labels = jnp.asarray(data.labels)
        drawn = jax.random.randint(of_labels, labels.shape, 0, data.classes)
        is_wrong = jax.random.uniform(of_rows, labels.shape) < share
        return is_deep, is_tanh, jnp.where(is_wrong, drawn, labels)

    def start(key):
        return problems.initial_layers(key, shapes)

    def loss(weights, numbers, key):
        is_deep, is_tanh, labels = numbers
        rows = jax.random.randint(key, (problems.BATCH,), 0, len(labels))
        first, second, third = (
            weights[end - math.prod(shape) : end].reshape(shape)
            for shape, end in zip(shapes, ends, strict=True)
        )

        def active(x, layer):
            x = x @ layer[:-1] + layer[-1:]
            return jnp.where(is_tanh, jnp.tanh(x), jnp.maximum(x, 0))

        x = active(jnp.asarray(data.inputs)[rows], first)
        x = jnp.where(is_deep, active(x, second), x)
        return problems.cross_entropy(x @ third[:-1] + third[-1:], labels[rows])

    leaves = tuple(size for a, b in shapes for size in ((a - 1) * b, b))
    return Family(leaves, draw, start, loss)


def quadratics() -> Family:
    """Separable quadratics of conditions from 1 to 1e4, of log 10 at the start."""

    def draw(key):
        of_condition, of_spectrum = jax.random.split(key)
        condition = 4 * jax.random.uniform(of_condition)
        powers = -condition * jax.random.uniform(of_spectrum, (_SIZE,))
        curvatures = 10.0**powers
        return curvatures * math.log(10) / jnp.sum(curvatures)

    def start(key):
        return jnp.sign(jax.random.normal(key, (_SIZE,)))

    def loss(point, numbers, key):
        del key
        return jnp.sum(numbers * jnp.square(point))

    return Family((_SIZE,), draw, start, loss)


def setting(family: Family, key: jax.Array, longest: int) -> Setting:
    """The setting of an episode, of a horizon of at most ``longest`` steps."""
    keys = jax.random.split(jax.random.fold_in(key, _SETTING), 9)
    u = [jax.random.uniform(k) for k in keys]
    shortest = min(100, longest)
    horizon = shortest * (longest / shortest) ** u[0]
    size = sum(family.leaves)
    of_leaf = jax.random.uniform(keys[7], (len(family.leaves),))
    exponents = jnp.repeat(of_leaf, np.array(family.leaves), total_repeat_length=size)
    exponents = jnp.where(u[8] < 0.5, exponents, u[7])
    return Setting(
        horizon.astype(jnp.int32),
        10.0 ** (-3 + 2 * u[1]),
        u[2] < 0.5,
        10.0 ** (2 * exponents - 1),
        (u[3] >= 0.5) & (u[3] < 0.875),
        u[3] >= 0.875,
        jnp.array([1.2, 1.5, 2.0])[jnp.minimum(3 * u[4], 2).astype(int)],
        10.0 ** (-3 + 1.5 * u[5]),
    )


def steps(
    family: Family,
    weights: learned.MLPWeights,
    key: jax.Array,
    chosen: Setting,
    carry: tuple[jax.Array, Any],
    times: jax.Array,
) -> tuple[tuple[jax.Array, Any], jax.Array]:
    """Some steps of an episode, from parameters and state; and the losses before each.

    Args:
      family: of the function.
      weights: of the optimizer.
      key: of the episode.
      chosen: its setting.
      carry: parameters, in their units, and the optimizer's state.
      times: (steps,), the steps from the start of the episode.
    """
    numbers = family.draw(jax.random.fold_in(key, _FUNCTION))
    tx = learned.scale_by_mlp(weights, rms=RMS)

    def step(carry, t):
        params, state = carry
        of_batch, of_noise = jax.random.split(jax.random.fold_in(key, _STEPS + t))
        loss, grads = jax.value_and_grad(family.loss)(
            chosen.units * params, numbers, of_batch
        )
        grads = chosen.units * _noisy(chosen, grads, of_noise, t)
        updates, state = tx.update(grads, state)
        now = jnp.where(
            chosen.is_cosine, (1 + jnp.cos(jnp.pi * t / chosen.horizon)) / 2, 1.0
        )
        params = params - chosen.rate * now * by_leaf(family.leaves, updates)
        return (params, state), loss

    return jax.lax.scan(step, carry, times)


def begin(family: Family, key: jax.Array, chosen: Setting) -> tuple[jax.Array, Any]:
    """Parameters and state of an episode before its first step."""
    params = family.start(jax.random.fold_in(key, _START)) / chosen.units
    tx = learned.scale_by_mlp(learned.init_mlp(jax.random.key(0)), rms=RMS)
    return params, tx.init(params)


def score(losses: jax.Array) -> jax.Array:
    """The mean logarithm of losses: so that each phase counts, and no disaster rules.

    A loss that is not finite is the largest one that counts.
    """
    kept = jnp.where(losses < _LARGEST, losses, _LARGEST)
    return jnp.mean(jnp.log(kept + _OFFSET))


def by_leaf(leaves: tuple[int, ...], updates: Any) -> jax.Array:
    """Updates with the root mean square that `scale_by_mlp` gives each leaf.

    Here all leaves are one array: a program for each would take long to compile.
    """
    ends = np.cumsum(leaves)
    parts = []
    for end, size in zip(ends, leaves, strict=True):
        part = updates[end - size : end]
        square = jnp.mean(jnp.square(part))
        is_zero = square == 0
        factor = RMS / jnp.sqrt(jnp.where(is_zero, 1, square))
        parts.append(jnp.where(is_zero, 0, part * factor))
    return jnp.concatenate(parts)


def _noisy(chosen: Setting, grads: jax.Array, key: jax.Array, t: jax.Array):
    """Pareto noise by the inverse of its distribution: no draw is ever rejected."""
    u = jax.random.uniform(key, grads.shape, minval=-1.0, maxval=1.0)
    size = (1 - jnp.abs(u) * (1 - 1e-6)) ** (-1 / chosen.tail) - 1
    noise = chosen.noise * jnp.sign(u) * size
    is_spike = chosen.has_spikes & (t % _EVERY == _EVERY // 2)
    grads = grads + jnp.where(chosen.has_pareto, noise, 0)
    return jnp.where(is_spike, _SPIKE * grads, grads)
