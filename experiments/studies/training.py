"""Trainings of one network by many optimizers.

The points of an optimizer's grid and its seeds are lanes of one compiled program:
learning rates and thresholds are traced. A lane has initial weights and batches of its
seed, the same for every optimizer.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training import plan

LOST = 100.0  # the loss of a run that is not finite, far above any other

PyTree = Any


def warm_cosine(steps: int) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then a cosine to 0."""
    return plan.schedule(steps, 0.1)


class Contestant(NamedTuple):
    """An optimizer, and where the middle of its grid is."""

    # (rate, [threshold]) -> transform
    make: Callable[..., optax.GradientTransformation]
    rate: float
    threshold: float | None = None
    # (state, params) -> parameters to evaluate
    read: Callable[[Any, PyTree], PyTree] | None = None
    # state -> scalars by name, kept at every evaluation
    observe: Callable[[Any], dict[str, jax.Array]] | None = None
    # steps -> factor on the rate
    schedule: Callable[[int], optax.Schedule] = warm_cosine


class Problem(NamedTuple):
    """A network, its data, and how long it is trained."""

    steps: int
    # key -> (params, model state)
    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    # (params, model state, data, batch) -> (mean loss, model state)
    loss: Callable[..., tuple[jax.Array, PyTree]]
    # (params, model state, data) -> (loss, accuracy)
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    data: PyTree  # the same in all lanes
    batches: Callable[[int], PyTree]  # seed -> arrays (steps, ...)
    # seed -> what `init` is given: a key, or one with arrays that are the lane's own
    key: Callable[[int], PyTree] = jax.random.key
    # (gradients, count of steps) -> gradients
    corrupt: Callable[[PyTree, jax.Array], PyTree] | None = None
    # In place of the derivative of ``loss``: (params, model state, data, batch, count)
    # -> (what the transform is given, loss, model state)
    gradient: Callable[..., tuple[PyTree, jax.Array, PyTree]] | None = None
    evaluations: int = 50
    side_by_side: bool = False  # lanes that are too small to keep the cores busy


class Point(NamedTuple):
    """A point of a grid."""

    rate: float
    threshold: float | None


class Curves(NamedTuple):
    """What lanes have shown: (points, seeds, evaluations) each."""

    losses: np.ndarray
    accuracies: np.ndarray
    seen: dict[str, np.ndarray]


Run = Callable[[Sequence[Point], Sequence[int]], Curves]
Train = Callable[..., "Shown"]  # (rates, thresholds, keys, batches, data)
Shown = tuple[jax.Array, jax.Array, dict[str, jax.Array]]  # loss, accuracy, observed


def evaluation_steps(problem: Problem) -> np.ndarray:
    """Steps after which the network is evaluated, evenly spaced up to the last."""
    number = min(problem.evaluations, problem.steps)
    return np.linspace(0, problem.steps, number + 1).round().astype(int)[1:]


def trainer(contestant: Contestant, problem: Problem) -> Train:
    """What `runner` compiles: the same for problems that differ in arrays alone."""
    return (_side_by_side if problem.side_by_side else _in_turn)(contestant, problem)


def runner(contestant: Contestant, problem: Problem, train: Train | None = None) -> Run:
    """A function that trains lanes, which compiles once for each number of them.

    Args:
      contestant: the optimizer.
      problem: what it is trained on.
      train: of `trainer`, of this optimizer and a problem that differs from this one in
        ``data``, ``batches`` and ``key`` alone. ``None``: a new one.
    """
    has_threshold = contestant.threshold is not None
    data = jax.tree.map(jnp.asarray, problem.data)
    train = train or trainer(contestant, problem)

    def run(grid_points: Sequence[Point], seeds: Sequence[int]) -> Curves:
        rates = jnp.asarray([point.rate for point in grid_points])
        thresholds = (
            jnp.asarray([p.threshold for p in grid_points]) if has_threshold else None
        )
        own = [problem.key(seed) for seed in seeds]
        keys = jax.tree.map(lambda *arrays: jnp.stack(arrays), *own)
        batches = [problem.batches(seed) for seed in seeds]
        losses, accuracies, seen = jax.tree.map(
            lambda x: np.asarray(x, np.float64),
            train(rates, thresholds, keys, batches, data),
        )
        losses = np.where(np.isfinite(losses), np.minimum(losses, LOST), LOST)
        return Curves(losses, accuracies, seen)

    return run


def _side_by_side(contestant: Contestant, problem: Problem) -> Callable[..., Shown]:
    """All lanes as one program."""
    lane = _lane(contestant, problem)
    stops = evaluation_steps(problem)
    spans = jnp.asarray([0, *stops[:-1]]), jnp.asarray(stops)

    def train(
        rate: jax.Array, threshold: jax.Array | None, key: Any, batches: Any, data: Any
    ) -> Shown:
        def step(count: Any, carry: Any) -> Any:
            batch = jax.tree.map(lambda x: x[count], batches)
            return lane.step(rate, threshold, count, carry, batch, data)

        def to_next_evaluation(carry: Any, span: Any) -> Any:
            carry = jax.lax.fori_loop(span[0], span[1], step, carry)
            return carry, lane.show(carry, data)

        carry = lane.start(rate, threshold, key)
        return jax.lax.scan(to_next_evaluation, carry, spans)[1]

    of_seeds = jax.vmap(train, (None, None, 0, 0, None))
    axis = None if contestant.threshold is None else 0
    compiled = jax.jit(jax.vmap(of_seeds, (0, axis, None, None, None)))

    def run(
        rates: Any, thresholds: Any, keys: Any, batches: list[Any], data: Any
    ) -> Shown:
        return compiled(rates, thresholds, keys, _stacked(batches), data)

    return run


def _in_turn(contestant: Contestant, problem: Problem) -> Callable[..., Shown]:
    """One lane after the other, a step at a time.

    XLA's convolutions on a CPU are many times slower inside a loop of its own.
    """
    lane = _lane(contestant, problem)
    start, show = jax.jit(lane.start), jax.jit(lane.show)
    step = jax.jit(lane.step, donate_argnums=3)
    stops = set(evaluation_steps(problem).tolist())

    def train(rate: Any, threshold: Any, key: Any, batches: Any, data: Any) -> Shown:
        carry, shown = start(rate, threshold, key), []
        for count in range(problem.steps):
            batch = jax.tree.map(operator.itemgetter(count), batches)
            carry = step(rate, threshold, count, carry, batch, data)
            if count + 1 in stops:
                shown.append(jax.device_get(show(carry, data)))
        return _stacked(shown)

    def run(
        rates: Any, thresholds: Any, keys: Any, batches: list[Any], data: Any
    ) -> Shown:
        def lanes(i: int) -> Shown:
            threshold = None if thresholds is None else thresholds[i]
            own = [
                jax.tree.map(operator.itemgetter(j), keys) for j in range(len(batches))
            ]
            pairs = zip(own, batches, strict=True)
            return _stacked([train(rates[i], threshold, *pair, data) for pair in pairs])

        return _stacked([lanes(i) for i in range(len(rates))])

    return run


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *trees)


class _Lane(NamedTuple):
    """One training, as pure functions of its rate and threshold."""

    start: Callable[..., PyTree]  # (rate, threshold, key) -> carry
    step: Callable[..., PyTree]  # (rate, threshold, count, carry, batch, data) -> carry
    show: Callable[..., Shown]  # (carry, data) -> what an evaluation gives


def _lane(contestant: Contestant, problem: Problem) -> _Lane:
    factor = contestant.schedule(problem.steps)

    def transform(rate: jax.Array, threshold: jax.Array | None) -> Any:
        arguments = (lambda count: rate * factor(count),)
        arguments += () if threshold is None else (threshold,)
        return optax.with_extra_args_support(contestant.make(*arguments))

    def start(rate: jax.Array, threshold: jax.Array | None, key: jax.Array) -> PyTree:
        params, model_state = problem.init(key)
        return params, model_state, transform(rate, threshold).init(params)

    def step(
        rate: Any, threshold: Any, count: Any, carry: Any, batch: Any, data: Any
    ) -> PyTree:
        params, model_state, state = carry

        def gradient(params: PyTree) -> tuple[PyTree, jax.Array, PyTree]:
            if problem.gradient:
                return problem.gradient(params, model_state, data, batch, count)
            (loss, after), grads = jax.value_and_grad(problem.loss, has_aux=True)(
                params, model_state, data, batch
            )
            corrupt = problem.corrupt
            return corrupt(grads, count) if corrupt else grads, loss, after

        grads, loss, after = gradient(params)
        updates, state = transform(rate, threshold).update(
            grads,
            state,
            params,
            value=loss,
            grad_fn=lambda params: gradient(params)[0],
        )
        return optax.apply_updates(params, updates), after, state

    def show(carry: Any, data: Any) -> Shown:
        params, model_state, state = carry
        evaluated = contestant.read(state, params) if contestant.read else params
        loss, accuracy = problem.evaluate(evaluated, model_state, data)
        return loss, accuracy, contestant.observe(state) if contestant.observe else {}

    return _Lane(start, step, show)
