"""How good a rule is, and the guards against rules that only look good."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks import problems
from optax_heavytail import rules

GROWTH = 1e4  # weights beyond so many times the largest one of the start are refused
PER_NODE = 0.002  # of the fitness: of two rules alike the shorter one is better
_OFFSET = 1e-2  # of a loss under its logarithm: below it there is nothing to gain
WORST = 10.0  # the fitness of what is refused


class Budget(NamedTuple):
    """How long a rule is trained, and with which rates."""

    problems: tuple[str, ...]
    steps: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]


class Outcome(NamedTuple):
    """What trainings ended with: arrays (problems, seeds, rates)."""

    loss: np.ndarray
    errors: np.ndarray
    growth: np.ndarray  # the largest weight over the largest one of the start


class Verdict(NamedTuple):
    """A fitness, the lower the better, with the reason of a refusal."""

    fitness: float
    losses: tuple[float, ...]  # of each problem, at its best rate
    rates: tuple[float, ...]
    refused: str | None


def train(problem: problems.Problem, tx: Any, rate: Any, steps: int, seed: Any) -> Any:
    """Weights after a training with a cosine to 0, and how far any ever went."""
    key = jax.random.key(seed)
    weights = problem.init(jax.random.fold_in(key, 0))
    start = jnp.max(jnp.abs(weights))

    def step(carry, t):
        w, state, farthest = carry
        of_batch, of_noise = jax.random.split(jax.random.fold_in(key, t + 1))
        grads = problem.noise(jax.grad(problem.loss)(w, of_batch), of_noise)
        updates, state = tx.update(grads, state, w)
        now = rate * (1 + jnp.cos(jnp.pi * t / steps)) / 2
        w = w - now * updates
        # Of a NaN too: neither `max` nor a comparison may lose it.
        farthest = jnp.where(jnp.abs(w) <= farthest, farthest, jnp.abs(w))
        return (w, state, farthest), None

    begin = (weights, tx.init(weights), jnp.abs(weights))
    (weights, _, farthest), _ = jax.lax.scan(step, begin, jnp.arange(steps))
    worst = jnp.max(jnp.where(jnp.isfinite(farthest), farthest, jnp.inf))
    return weights, worst / start


def outcomes(budget: Budget, as_transform: Callable[[Any], Any]) -> Callable[..., Any]:
    """One candidate on all problems, seeds and rates: what `jax.jit` compiles once."""
    rates, seeds = jnp.asarray(budget.rates), jnp.asarray(budget.seeds)

    def of_problem(problem, candidate):
        def one(seed, rate):
            tx = as_transform(candidate)
            weights, growth = train(problem, tx, rate, budget.steps, seed)
            return (*problem.validate(weights), growth)

        # The candidate is no axis: its switches stay switches.
        return jax.vmap(lambda s: jax.vmap(lambda r: one(s, r))(rates))(seeds)

    def evaluate(candidate):
        found = [of_problem(problems.named()[n], candidate) for n in budget.problems]
        return tuple(jnp.stack(x) for x in zip(*found, strict=True))

    return evaluate


class Evaluator:
    """Evaluates programs in chunks, in one compiled program for all of a length."""

    def __init__(self, budget: Budget, chunk: int):
        self.budget, self.chunk = budget, chunk
        evaluate = outcomes(budget, rules.interpret)
        # A map runs the branch of each switch that a program takes, and no other.
        self._run = jax.jit(lambda programs: jax.lax.map(evaluate, programs))

    def __call__(self, programs: Sequence[np.ndarray]) -> list[Outcome]:
        """The outcome of each program."""
        found: dict[int, Outcome] = {}
        for slots in sorted({len(program) for program in programs}):
            places = [i for i, p in enumerate(programs) if len(p) == slots]
            for start in range(0, len(places), self.chunk):
                part = places[start : start + self.chunk]
                padded = part + [part[-1]] * (self.chunk - len(part))
                chunk = jnp.asarray(np.stack([programs[i] for i in padded]))
                arrays = [np.asarray(x) for x in self._run(chunk)]
                for k, i in enumerate(part):
                    found[i] = Outcome(*(x[k] for x in arrays))
        return [found[i] for i in range(len(programs))]


def compiled(rule: str, budget: Budget, vocabulary: Any = rules.BELLO) -> Outcome:
    """The outcome of one rule as its own program: the reference, and the last tier."""
    tx = rules.transform(rule, vocabulary=vocabulary, total_steps=budget.steps)
    evaluate = jax.jit(lambda: outcomes(budget, lambda _: tx)(None))
    return Outcome(*map(np.asarray, evaluate()))


def judge(outcome: Outcome, budget: Budget, nodes: int) -> Verdict:
    """The mean over problems of the logarithm of the loss at the best rate.

    A training that diverges, or whose weights went too far, has learnt nothing. A rule
    with a loss that cannot be is refused at all rates: the others may be no better.
    """
    logs, losses, rates, has_grown = [], [], [], False
    ceilings = [problems.named()[name].ceiling for name in budget.problems]
    for name, ceiling, loss, errors, growth in zip(
        budget.problems, ceilings, *outcome, strict=True
    ):
        is_near = growth <= GROWTH
        good = np.isfinite(loss) & (loss < ceiling)
        has_grown |= bool(np.any(good & ~is_near))
        reason = _impossible(loss[good & is_near], errors[good & is_near])
        if reason is not None:
            return Verdict(WORST, (), (), f"{name}: {reason}")
        means = np.where(good & is_near, loss, ceiling).mean(axis=0)
        best = int(np.argmin(means))
        logs.append(math.log(means[best] + _OFFSET))
        losses.append(float(means[best]))
        rates.append(budget.rates[best])
    if all(x >= 0.99 * c for x, c in zip(losses, ceilings, strict=True)):
        far = f"weights beyond {GROWTH:g} times those of the start"
        return Verdict(WORST, (), (), far if has_grown else "it learns nothing")
    fitness = float(np.mean(logs)) + PER_NODE * nodes
    return Verdict(fitness, tuple(losses), tuple(rates), None)


def _impossible(loss: np.ndarray, errors: np.ndarray) -> str | None:
    """Why these cannot be losses and errors of one model; ``None`` if they can."""
    if np.any(loss < 0):
        return "a loss below 0"
    # The true class of a wrong answer has a probability of at most 1/2.
    if np.any(loss < 0.999 * errors * math.log(2)):
        return "a loss that its errors rule out"
    return None


def in_float64(rule: str, verdict: Verdict, budget: Budget) -> str | None:
    """Trains the best rule once more in float64; why its losses are not to be believed.

    What lives on rounding, or on an overflow, does not come back.
    """
    with jax.enable_x64(True):
        found = judge(compiled(rule, budget), budget, 0)
    if found.refused is not None:
        return f"in float64: {found.refused}"
    for name, single, double in zip(
        budget.problems, verdict.losses, found.losses, strict=True
    ):
        if abs(math.log((single + _OFFSET) / (double + _OFFSET))) > 0.5:
            return f"{name}: {single:.3g}, and in float64 {double:.3g}"
    return None


def mean_rate(verdict: Verdict) -> float:
    """The geometric mean of the best rates: one rate to start from."""
    return float(np.exp(np.mean(np.log(verdict.rates)))) if verdict.rates else math.nan
