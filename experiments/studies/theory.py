"""Do clipped methods converge as the theorems say, and the unclipped one not?

Quadratics and a non-convex sum, with noise whose moments of order just above a are
infinite, so that the theorems for order a apply.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.integrate

import optax_heavytail as oht
from experiments.studies import intervals, study, theory_tables
from experiments.studies.study import Cell, Study

ORDERS = (1.1, 1.3, 1.5, 1.8, 2.0)
MARGIN = 0.05  # of the noise's tail index above the order of the moment that is finite
NOISES = ("symmetric Pareto", "skewed Pareto", "Student-t")
CLIPPED = ("gclip", "cclip")
METHODS = ("sgd", *CLIPPED, "acclip")
DIMENSION, MOST_CURVED = 10, 2.0  # eigenvalues from 1, the modulus of convexity
CHECKPOINTS = tuple(np.geomspace(500, 20_000, 13).round().astype(int).tolist())
HORIZONS = (500, 1189, 2828, 6727, 16_000)
SMALLEST = {"equal": 1.0, "unequal": 0.01}
DIMENSIONS = (10, 100, 1000, 10_000)
SMOOTHNESS = 8.0  # of the non-convex objective
RUNS = {"cpu": 256, "gpu": 4096}

Noise = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def noise(kind: str, order: float) -> Noise:
    """Independent entries of mean 0 whose moment of ``order`` is finite, barely."""
    tail = order + MARGIN

    def sample(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if kind == "Student-t":  # Bailey's formula: exact, and without rejections
            keys = jax.random.split(key)
            length = jnp.expm1(jax.random.exponential(keys[0], shape) * 2 / tail)
            turn = jax.random.uniform(keys[1], shape, maxval=2 * math.pi)
            return jnp.sqrt(tail * length) * jnp.cos(turn)
        one_sided = jax.random.pareto(key, tail, shape)
        if kind == "skewed Pareto":
            return one_sided - tail / (tail - 1)
        return one_sided * jax.random.rademacher(jax.random.fold_in(key, 1), shape)

    return sample


def moment(kind: str, order: float) -> float:
    """E|x|^a of one entry."""
    tail = order + MARGIN
    if kind == "symmetric Pareto":
        return tail / (tail - order)
    if kind == "Student-t":
        gammas = math.gamma((order + 1) / 2) * math.gamma((tail - order) / 2)
        return tail ** (order / 2) * gammas / math.sqrt(math.pi) / math.gamma(tail / 2)
    center = tail / (tail - 1)

    def integrand(log_survival: float) -> float:
        """Over the logarithm of P(X > x), in which the far tail is an exponential."""
        value = math.exp(-log_survival / tail)
        return abs(value - center) ** order * math.exp(log_survival)

    # Beyond, there is less than 1e-13 of it.
    return scipy.integrate.quad(integrand, -700, 0, limit=1000)[0]


def transform(method: str, order: float, bounds: Any, steps: int = 0) -> Any:
    """A method with the constants of the theorems.

    Args:
      method: its name.
      order: a.
      bounds: of E|g_i|^a, to the power 1/a, for each coordinate.
      steps: the horizon of theorem 2; 0: theorems 1 and 3, strongly convex.
    """
    whole = (bounds**order).sum() ** (1 / order)
    if steps:
        # At the shortest horizon half the largest step that descends without noise.
        power = order / (3 * order - 2)
        rate = oht.nonconvex_step(HORIZONS[0] ** power / SMOOTHNESS / 2, steps, order)

        def threshold(bound: Any) -> Any:
            return oht.nonconvex_threshold(bound.max(), steps, order)  # all are equal
    else:
        rate = oht.strongly_convex_step(mu=1.0)

        def threshold(bound: Any) -> Any:
            return oht.clipping_threshold(bound, order)

    if method == "sgd":
        return optax.sgd(rate)
    if method == "gclip":
        return oht.gclip(rate, threshold(whole), b1=0.0)
    if method == "cclip":
        return oht.cclip(rate, threshold(bounds.astype(np.float32)), b1=0.0)
    # No theorem says what to multiply its threshold with.
    return oht.acclip(rate, b1=0.0, alpha=order, eps=1e-8, weight_decay=0.0)


def simulate(
    tx: Any,
    gradient: Callable[[jax.Array], jax.Array],
    sample: Noise,
    start: jax.Array,
    stops: Sequence[int],
    measure: Callable[[Any, jax.Array], jax.Array],
    runs: int,
) -> np.ndarray:
    """``measure`` of the state after each of ``stops`` steps: (runs, stops)."""

    def one_run(key: jax.Array) -> jax.Array:
        def step(count: Any, carry: Any) -> Any:
            x, state = carry
            shake = sample(jax.random.fold_in(key, count), x.shape)
            updates, state = tx.update(gradient(x) + shake, state, x)
            return optax.apply_updates(x, updates), state

        def to_next_stop(carry: Any, span: Any) -> Any:
            x, state = jax.lax.fori_loop(span[0], span[1], step, carry)
            return (x, state), measure(state, x)

        spans = jnp.array((0, *stops[:-1])), jnp.array(stops)
        return jax.lax.scan(to_next_stop, (start, tx.init(start)), spans)[1]

    keys = jax.random.split(jax.random.key(0), runs)
    # A run that has left the range of float32 is as far away as can be.
    ends = np.asarray(jax.jit(jax.vmap(one_run))(keys), np.float64)
    return np.where(np.isfinite(ends), np.minimum(ends, 1e30), 1e30)


def rate(kind: str, order: float, method: str, runs: int) -> dict[str, Any]:
    """Errors of the weighted average on a strongly convex quadratic."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))
    spectrum = np.geomspace(1.0, MOST_CURVED, DIMENSION)
    hessian = jnp.asarray(basis @ np.diag(spectrum) @ basis.T, jnp.float32)
    start = jnp.asarray(rng.normal(size=DIMENSION), jnp.float32)  # the minimum is at 0

    def error(state: Any, x: jax.Array) -> jax.Array:
        mean = oht.weighted_iterate_average_eval_params(state, x)
        return 0.5 * mean @ hessian @ mean

    bounds = np.full(DIMENSION, moment(kind, order) ** (1 / order))
    tx = oht.weighted_iterate_average(transform(method, order, bounds))
    errors = simulate(
        tx, lambda x: hessian @ x, noise(kind, order), start, CHECKPOINTS, error, runs
    )
    median = np.median(errors[:, -1])
    return {
        "steps": CHECKPOINTS,
        "mean": study.rounded(errors.mean(axis=0)),
        "median": study.rounded(np.median(errors, axis=0)),
        "quantile_99": study.rounded(np.quantile(errors, 0.99, axis=0)),
        "slope": study.rounded(intervals.fitted_exponent(CHECKPOINTS, errors)),
        "share_above_10_medians": float(np.mean(errors[:, -1] > 10 * median)),
    }


def horizon(
    kind: str, order: float, method: str, steps: int, runs: int
) -> dict[str, Any]:
    """Mean squared gradient over a whole run on a smooth function with many minima."""
    bounds = np.full(DIMENSION, moment(kind, order) ** (1 / order))

    def gradient(x: jax.Array) -> jax.Array:  # of the sum of x^2 + 3 sin^2 x
        return 2 * x + 3 * jnp.sin(2 * x)

    tx = optax.chain(transform(method, order, bounds, steps), _mean_square(gradient))
    squares = simulate(
        tx,
        gradient,
        noise(kind, order),
        jnp.full(DIMENSION, 3.0),
        (steps,),
        lambda state, x: state[-1][1],
        runs,
    )[:, 0]
    return {"squares": study.rounded(squares)}


def _mean_square(gradient: Callable[[jax.Array], jax.Array]) -> Any:
    """Passes updates, and keeps the mean of the squared norms of exact gradients."""

    def init(params: Any) -> Any:
        return jnp.zeros([], jnp.int32), jnp.zeros([])

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        count, mean = state
        square = jnp.sum(gradient(params) ** 2)
        return updates, (count + 1, mean + (square - mean) / (count + 1))

    return optax.GradientTransformation(init, update)


def dimension(
    scales: str, number: int, method: str, steps: int, runs: int
) -> dict[str, Any]:
    """Errors in many dimensions, with noise of one scale or of scales 1 to 1/100."""
    order, kind = 1.5, "symmetric Pareto"
    own = np.geomspace(1.0, SMALLEST[scales], number)
    sample = noise(kind, order)

    def error(state: Any, x: jax.Array) -> jax.Array:
        mean = oht.weighted_iterate_average_eval_params(state, x)
        return 0.5 * jnp.sum(mean**2)

    bounds = own * moment(kind, order) ** (1 / order)
    errors = simulate(
        oht.weighted_iterate_average(transform(method, order, bounds)),
        lambda x: x,
        lambda key, shape: sample(key, shape) * own.astype(np.float32),
        jnp.zeros(number),
        (steps,),
        error,
        runs,
    )
    return {"errors": study.rounded(errors[:, 0])}


def cells(scale: str, data: Path) -> list[Cell]:
    """All measurements."""
    runs = RUNS[scale]
    cells = [
        _cell(rate, kind=kind, order=order, method=method, runs=runs)
        for kind in NOISES
        for order in ORDERS
        for method in METHODS
    ]
    cells += [
        _cell(horizon, kind=kind, order=order, method=method, steps=steps, runs=runs)
        for kind in NOISES[:2]
        for order in ORDERS
        for method in METHODS[:3]
        for steps in HORIZONS
    ]
    # Of a long vector there is no need for many runs.
    cells += [
        _cell(dimension, **about, number=number, steps=2000, runs=runs // 8)
        for about in ({"scales": s, "method": m} for s in SMALLEST for m in CLIPPED)
        for number in DIMENSIONS
    ]
    return cells


def _cell(measure: Callable[..., dict[str, Any]], **settings: Any) -> Cell:
    named = {"part": measure.__name__, **settings}
    return Cell(named, functools.partial(measure, **settings))


STUDY = Study(cells, theory_tables.tables, theory_tables.pictures)
