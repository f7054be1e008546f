"""Many small trainings on scikit-learn's digits at once, tuned and with fresh seeds.

The grid of an optimizer and all seeds are lanes of one compiled program: learning rates
and thresholds are traced. Each lane has initial weights, batches and label noise of its
seed, the same for every optimizer.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import plan
from experiments.data import digits
from experiments.evidence import study
from experiments.models.perceptron import Perceptron

TUNING_SEEDS = (0, 1, 2)
FRESH_SEEDS = (10, 11, 12, 13, 14)
POINTS = 25  # of every grid: rates alone, or 5 rates with 5 thresholds each
EVALUATIONS = 50
LOST = 100.0  # the loss of a run that is not finite, far above any other
MOVES = 4  # of a grid whose best point is on its edge

Params = Any


class Contestant(NamedTuple):
    """An optimizer, and where the middle of its grid is."""

    make: Callable[
        ..., optax.GradientTransformation
    ]  # (rate, [threshold]) -> transform
    rate: float
    threshold: float | None = None
    read: Callable[[Any, Params], Params] | None = None  # (state, params) -> result


class Setup(NamedTuple):
    """What a network is trained under."""

    steps: int = 1000
    batch_size: int = 64
    label_noise: float = 0.0  # share of training labels drawn anew
    spike_every: int = 0  # steps from one gradient times ``spike`` to the next
    spike: float = 1e4


class Point(NamedTuple):
    """Of a grid."""

    rate: float
    threshold: float | None


def grid(contestant: Contestant) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rates and thresholds around the middle: 25 points for every optimizer."""
    if contestant.threshold is None:
        return around(contestant.rate, POINTS, 2**0.5), ()
    return around(contestant.rate, 5, 2**1.5), around(contestant.threshold, 5, 4.0)


def around(middle: float, number: int, factor: float) -> tuple[float, ...]:
    """An odd number of values, each ``factor`` times the one before."""
    half = number // 2
    return tuple(middle * factor**i for i in range(-half, half + 1))


def points(rates: Sequence[float], thresholds: Sequence[float]) -> list[Point]:
    """All points of a grid."""
    return [Point(*p) for p in itertools.product(rates, thresholds or (None,))]


class Tuned(NamedTuple):
    """What a search has found."""

    rates: tuple[float, ...]
    thresholds: tuple[float, ...]
    losses: np.ndarray  # of all points, the mean over the seeds
    best: Point
    is_inside: bool  # of the grid


def tune(contestant: Contestant, setup: Setup, moves: int = MOVES) -> Tuned:
    """Finds the best point of the grid, which is moved if that is on an edge."""
    rates, thresholds = grid(contestant)
    found = points(rates, thresholds)
    losses = run(contestant, setup, found, TUNING_SEEDS)[0][..., -1].mean(axis=1)
    best = found[int(np.argmin(losses))]
    moved = contestant._replace(
        rate=_moved(best.rate, rates),
        threshold=best.threshold and _moved(best.threshold, thresholds),
    )
    if moved != contestant and moves:
        return tune(moved, setup, moves - 1)
    return Tuned(rates, thresholds, losses, best, moved == contestant)


def tune_and_run(contestant: Contestant, setup: Setup) -> dict[str, Any]:
    """The best point of the grid, and what fresh seeds give there, as JSON."""
    tuned = tune(contestant, setup)
    best = tuned.best
    losses, accuracies = (x[0] for x in run(contestant, setup, [best], FRESH_SEEDS))
    return {
        "rates": study.rounded(tuned.rates),
        "thresholds": study.rounded(tuned.thresholds),
        "tuning_losses": study.rounded(tuned.losses),
        "rate": study.rounded([best.rate])[0],
        "threshold": best.threshold and study.rounded([best.threshold])[0],
        "is_inside": tuned.is_inside,
        "losses": study.rounded(losses[:, -1]),
        "accuracies": study.rounded(accuracies[:, -1]),
        "loss_curve": study.rounded(losses.mean(axis=0)),
        "evaluated_at": evaluation_steps(setup).tolist(),
    }


def _moved(best: float, values: Sequence[float]) -> float:
    """The middle of a grid that has ``best`` inside."""
    return best if best in (values[0], values[-1]) else values[len(values) // 2]


def evaluation_steps(setup: Setup) -> np.ndarray:
    """Steps after which the network is evaluated, evenly spaced up to the last."""
    number = min(EVALUATIONS, setup.steps)
    return np.linspace(0, setup.steps, number + 1).round().astype(int)[1:]


def run(
    contestant: Contestant,
    setup: Setup,
    grid_points: Sequence[Point],
    seeds: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Validation loss and accuracy: (points, seeds, evaluations) each."""
    (images, labels), validation = load()
    batches = jnp.asarray([batch_indices(setup, len(images), s) for s in seeds])
    labels = jnp.asarray([noisy_labels(labels, setup, s) for s in seeds])
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    rates = jnp.asarray([point.rate for point in grid_points])
    has_threshold = contestant.threshold is not None
    thresholds = (
        jnp.asarray([p.threshold for p in grid_points]) if has_threshold else None
    )
    data = jax.tree.map(jnp.asarray, (images, validation))
    train = functools.partial(_train, contestant, setup, *data)
    of_seeds = jax.vmap(train, (None, None, 0, 0, 0))
    of_points = jax.vmap(of_seeds, (0, 0 if has_threshold else None, None, None, None))
    losses, accuracies = jax.jit(of_points)(rates, thresholds, keys, labels, batches)
    losses = np.asarray(losses, np.float64)
    return np.where(np.isfinite(losses), np.minimum(losses, LOST), LOST), np.asarray(
        accuracies, np.float64
    )


def _train(
    contestant: Contestant,
    setup: Setup,
    images: Any,
    validation: Any,
    rate: jax.Array,
    threshold: jax.Array | None,
    key: jax.Array,
    labels: jax.Array,
    batches: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One lane: loss and accuracy at every evaluation."""
    factor = plan.schedule(setup.steps, 0.1)
    arguments = (lambda count: rate * factor(count),)
    arguments += () if threshold is None else (threshold,)
    tx: Any = optax.with_extra_args_support(contestant.make(*arguments))
    apply, params = _model(key)

    def step(count: Any, carry: Any) -> Any:
        params, state = carry
        rows = batches[count]

        def gradient(params: Params) -> Params:
            grads = jax.grad(_loss)(params, apply, images[rows], labels[rows])
            return _spiked(grads, count, setup)

        updates, state = tx.update(gradient(params), state, params, grad_fn=gradient)
        return optax.apply_updates(params, updates), state

    def to_next_evaluation(carry: Any, span: Any) -> Any:
        params, state = jax.lax.fori_loop(span[0], span[1], step, carry)
        found = contestant.read(state, params) if contestant.read else params
        logits = apply(found, validation[0])
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == validation[1])
        return (params, state), (_loss(found, apply, *validation), accuracy)

    stops = evaluation_steps(setup)
    spans = jnp.asarray([0, *stops[:-1]]), jnp.asarray(stops)
    return jax.lax.scan(to_next_evaluation, (params, tx.init(params)), spans)[1]


def _spiked(grads: Params, count: Any, setup: Setup) -> Params:
    if not setup.spike_every:
        return grads
    # In the middle of each interval: neither first nor last step.
    is_spike = count % setup.spike_every == setup.spike_every // 2
    return jax.tree.map(lambda g: jnp.where(is_spike, setup.spike * g, g), grads)


def _model(key: jax.Array) -> tuple[Callable[[Params, Any], jax.Array], Params]:
    model = Perceptron(digits.SIZE**2, 64, 2, digits.NUM_CLASSES, rngs=nnx.Rngs(key))
    graph, params = nnx.split(model, nnx.Param)
    return (lambda params, images: nnx.merge(graph, params)(images)), params


def _loss(params: Params, apply: Any, images: Any, labels: Any) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(
        apply(params, images), labels
    )
    return jnp.mean(losses)


@functools.cache
def load() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images from 0 to 1 and labels, for training and for validation."""
    pixels, labels, _ = digits.load()
    images = pixels.reshape(len(pixels), -1).astype(np.float32) / digits.LARGEST_PIXEL
    train, held_out = digits.split(len(images), seed=0)
    return (images[train], labels[train]), (images[held_out], labels[held_out])


def batch_indices(setup: Setup, num_images: int, seed: int) -> np.ndarray:
    """Rows of each step, (steps, batch size): whole passes in random order."""
    rng = np.random.default_rng([seed, 1])
    wanted = setup.steps * setup.batch_size
    passes = [rng.permutation(num_images) for _ in range(-(-wanted // num_images))]
    rows = np.concatenate(passes)[:wanted]
    return rows.reshape(setup.steps, setup.batch_size)


def noisy_labels(labels: np.ndarray, setup: Setup, seed: int) -> np.ndarray:
    """Labels of which a share is drawn anew from all classes."""
    rng = np.random.default_rng([seed, 2])
    drawn = rng.integers(digits.NUM_CLASSES, size=len(labels))
    return np.where(rng.random(len(labels)) < setup.label_noise, drawn, labels)
