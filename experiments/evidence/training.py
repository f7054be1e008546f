"""Trainings of one network by many optimizers, tuned and with fresh seeds.

The grid of an optimizer and its seeds are lanes of one compiled program: learning rates
and thresholds are traced. A lane has initial weights and batches of its seed, the same
for every optimizer.
"""

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import plan
from experiments.evidence import study

LOST = 100.0  # the loss of a run that is not finite, far above any other
MOVES = 4  # of a grid whose best point is on its edge

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
    # (gradients, count of steps) -> gradients
    corrupt: Callable[[PyTree, jax.Array], PyTree] | None = None
    evaluations: int = 50
    side_by_side: bool = False  # lanes that are too small to keep the cores busy


class Protocol(NamedTuple):
    """How thoroughly optimizers are tuned and compared."""

    points: int  # of every grid: rates alone, or as many rates as thresholds
    rate_factor: float  # from one rate to the next where there is no threshold
    tuning_seeds: tuple[int, ...]
    fresh_seeds: tuple[int, ...]


class Point(NamedTuple):
    """Of a grid."""

    rate: float
    threshold: float | None


class Curves(NamedTuple):
    """What lanes have shown: (points, seeds, evaluations) each."""

    losses: np.ndarray
    accuracies: np.ndarray
    seen: dict[str, np.ndarray]


class Tuned(NamedTuple):
    """What a search has found."""

    rates: tuple[float, ...]
    thresholds: tuple[float, ...]
    losses: np.ndarray  # of all points, the mean over the seeds
    best: Point
    is_inside: bool  # of the grid


Run = Callable[[Sequence[Point], Sequence[int]], Curves]
Shown = tuple[jax.Array, jax.Array, dict[str, jax.Array]]  # loss, accuracy, observed


def around(middle: float, number: int, factor: float) -> tuple[float, ...]:
    """An odd number of values, each ``factor`` times the one before."""
    half = number // 2
    return tuple(middle * factor**i for i in range(-half, half + 1))


def grid(
    contestant: Contestant, protocol: Protocol
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rates and thresholds around the middle: equally many points for all."""
    factor = protocol.rate_factor
    if contestant.threshold is None:
        return around(contestant.rate, protocol.points, factor), ()
    side = round(protocol.points**0.5)
    # As wide as the others' line where that is longer than the side by the square root.
    rates = around(contestant.rate, side, factor**3 if side > 3 else factor**2)
    return rates, around(contestant.threshold, side, 4.0)


def points(rates: Sequence[float], thresholds: Sequence[float]) -> list[Point]:
    """All points of a grid."""
    return [Point(*p) for p in itertools.product(rates, thresholds or (None,))]


def tune(contestant: Contestant, run: Run, protocol: Protocol) -> Tuned:
    """Finds the best point of the grid, which is moved if that is on an edge."""
    known: dict[str, float] = {}
    tuned, moved = _search(contestant, run, protocol, known)
    for _ in range(MOVES):
        if tuned.is_inside:
            break
        tuned, moved = _search(moved, run, protocol, known)
    return tuned


def _search(
    contestant: Contestant, run: Run, protocol: Protocol, known: dict[str, float]
) -> tuple[Tuned, Contestant]:
    """One grid, whose new points are added to ``known``, and where the next one is."""
    rates, thresholds = grid(contestant, protocol)
    found = points(rates, thresholds)
    new = [point for point in found if _name(point) not in known]
    if new:
        last = run(new, protocol.tuning_seeds).losses[..., -1].mean(axis=1)
        known |= zip(map(_name, new), last, strict=True)
    losses = np.array([known[_name(point)] for point in found])
    best = found[int(np.argmin(losses))]
    moved = contestant._replace(
        rate=_moved(best.rate, rates),
        threshold=best.threshold and _moved(best.threshold, thresholds),
    )
    return Tuned(rates, thresholds, losses, best, moved == contestant), moved


def _name(point: Point) -> str:
    """The same for points that a moved grid has again, but for rounding."""
    return ", ".join(f"{x:.6g}" for x in point if x is not None)


def _moved(best: float, values: Sequence[float]) -> float:
    """The middle of a grid that has ``best`` inside."""
    return best if best in (values[0], values[-1]) else values[len(values) // 2]


def tune_and_run(
    contestant: Contestant, problem: Problem, protocol: Protocol
) -> dict[str, Any]:
    """The best point of the grid, and what fresh seeds give there, as JSON."""
    run = runner(contestant, problem)
    tuned = tune(contestant, run, protocol)
    best = tuned.best
    curves = run([best], protocol.fresh_seeds)
    losses, accuracies = curves.losses[0], curves.accuracies[0]
    return {
        "rates": study.rounded(tuned.rates),
        "thresholds": study.rounded(tuned.thresholds),
        "tuning_losses": study.rounded(tuned.losses),
        "rate": study.rounded([best.rate])[0],
        "threshold": best.threshold and study.rounded([best.threshold])[0],
        "is_inside": tuned.is_inside,
        "losses": study.rounded(losses[:, -1]),
        "accuracies": study.rounded(accuracies[:, -1]),
        "loss_curves": [study.rounded(curve) for curve in losses],
        "accuracy_curves": [study.rounded(curve) for curve in accuracies],
        "seen": {k: study.rounded(v[0].mean(axis=0)) for k, v in curves.seen.items()},
        "evaluated_at": evaluation_steps(problem).tolist(),
    }


def evaluation_steps(problem: Problem) -> np.ndarray:
    """Steps after which the network is evaluated, evenly spaced up to the last."""
    number = min(problem.evaluations, problem.steps)
    return np.linspace(0, problem.steps, number + 1).round().astype(int)[1:]


def runner(contestant: Contestant, problem: Problem) -> Run:
    """A function that trains lanes, which compiles once for each number of them."""
    has_threshold = contestant.threshold is not None
    data = jax.tree.map(jnp.asarray, problem.data)
    train = (_side_by_side if problem.side_by_side else _in_turn)(contestant, problem)

    def run(grid_points: Sequence[Point], seeds: Sequence[int]) -> Curves:
        rates = jnp.asarray([point.rate for point in grid_points])
        thresholds = (
            jnp.asarray([p.threshold for p in grid_points]) if has_threshold else None
        )
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
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
            pairs = zip(keys, batches, strict=True)
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

        def gradient(params: PyTree) -> tuple[PyTree, PyTree]:
            grads, after = jax.grad(problem.loss, has_aux=True)(
                params, model_state, data, batch
            )
            corrupt = problem.corrupt
            return corrupt(grads, count) if corrupt else grads, after

        grads, after = gradient(params)
        updates, state = transform(rate, threshold).update(
            grads, state, params, grad_fn=lambda params: gradient(params)[0]
        )
        return optax.apply_updates(params, updates), after, state

    def show(carry: Any, data: Any) -> Shown:
        params, model_state, state = carry
        found = contestant.read(state, params) if contestant.read else params
        loss, accuracy = problem.evaluate(found, model_state, data)
        return loss, accuracy, contestant.observe(state) if contestant.observe else {}

    return _Lane(start, step, show)
