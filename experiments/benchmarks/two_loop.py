r"""Neumann's inner loop against conjugate gradients: cost and direction.

    python -m experiments.benchmarks.two_loop \
        --output=experiments/results/bench_two_loop_cpu

takes a small perceptron on random data, partly trained, and the damped Newton direction
(H + d I)^-1 g from its dense Hessian. `neumann_inner_loop` with these curvature bounds
and K steps, with gradients at displaced points or with Hessian-vector products, and
conjugate gradients with K iterations are timed and compared with that direction.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import optax_heavytail as oht
from experiments.benchmarks import common
from experiments.common import markdown
from experiments.models.losses import cross_entropy

WIDTHS = (64, 32, 10)  # 8 x 8 images, 10 classes
WARM_UP_STEPS = 50
OUTER_LEARNING_RATE = 0.1
RELATIVE_DAMPING = (
    0.1  # of the largest eigenvalue: then K of 10 to 50 makes a difference
)
CG_TOLERANCE = 1e-7  # relative, of the residual
METHODS = ("neumann, gradients", "neumann, HVP", "conjugate gradients")
HEADINGS = (
    "K",
    "method",
    "gradient evaluations",
    "step / gradient",
    "cosine with damped Newton",
)


class Problem(NamedTuple):
    """A point, its gradient function, and the exact direction there."""

    params: Any
    grad_fn: Callable[[Any], Any]
    bounds: tuple[float, float]  # of the curvature: minus the damping, the largest
    direction: np.ndarray  # damped Newton, float64, flat
    smallest: float  # eigenvalue


def make_problem(batch_size: int, widths: Sequence[int]) -> Problem:
    """A perceptron after some steps of momentum SGD on labels of a random one."""
    rng = np.random.default_rng(0)
    images = jnp.array(rng.random((batch_size, widths[0])), jnp.float32)
    labels = jnp.argmax(jax.jit(_logits)(_init(rng, widths), images), axis=-1)

    def loss(params):
        logits = _logits(params, images)
        return jnp.mean(cross_entropy(logits, labels))

    grad_fn = jax.grad(loss)
    params = _warm_up(grad_fn, _init(rng, widths))
    flat, unravel = ravel_pytree(params)

    def flat_grad(x):
        return ravel_pytree(grad_fn(unravel(x)))[0]

    @jax.jit
    def dense_hessian(x):
        def column(v):
            return jax.jvp(flat_grad, (x,), (v,))[1]

        return jax.lax.map(column, jnp.eye(x.size), batch_size=128)

    hessian = np.asarray(dense_hessian(flat), np.float64)
    hessian = (hessian + hessian.T) / 2
    eigenvalues = np.linalg.eigvalsh(hessian)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    damping = max(RELATIVE_DAMPING * largest, -1.1 * smallest)
    damped = hessian + damping * np.eye(flat.size)
    gradient = np.asarray(jax.jit(flat_grad)(flat), np.float64)
    direction = np.linalg.solve(damped, gradient)
    # Rounding must not put an eigenvalue above the bound.
    return Problem(params, grad_fn, (-damping, 1.001 * largest), direction, smallest)


def _init(rng: np.random.Generator, widths: Sequence[int]) -> Any:
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        kernel = rng.normal(0.0, np.sqrt(2 / n_in), (n_in, n_out))
        layers.append({"kernel": kernel, "bias": np.zeros(n_out)})
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), layers)


def _logits(layers: Any, x: jax.Array) -> jax.Array:
    *hidden, last = layers
    for layer in hidden:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    return x @ last["kernel"] + last["bias"][None]


def _warm_up(grad_fn: Callable[[Any], Any], params: Any) -> Any:
    tx = optax.sgd(0.1, momentum=0.9)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grad_fn(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=WARM_UP_STEPS)[0][0]


# Directions: functions of the parameters and the gradient there, approximately
# (H + d I)^-1 g times a factor.


def neumann_direction(
    problem: Problem, steps: int, use_hvp: bool
) -> Callable[..., Any]:
    """The direction by `neumann_inner_loop`."""
    tx = oht.neumann_inner_loop(1.0, steps, convexify=problem.bounds, use_hvp=use_hvp)

    def direction(params, gradient):
        state = tx.init(params)
        return tx.update(gradient, state, params, grad_fn=problem.grad_fn)[0]

    return direction


def cg_direction(problem: Problem, steps: int) -> Callable[..., Any]:
    """The direction by conjugate gradients, which stop where float32 ends.

    Going on from an exact solution would divide 0 by 0.
    """
    damping = -problem.bounds[0]

    def direction(params, gradient):
        def damped_hvp(v):
            product = jax.jvp(problem.grad_fn, (params,), (v,))[1]
            return jax.tree.map(lambda h, x: h + damping * x, product, v)

        return jax.scipy.sparse.linalg.cg(
            damped_hvp, gradient, tol=CG_TOLERANCE, maxiter=steps
        )[0]

    return direction


def directions(problem: Problem, steps: int) -> dict[str, Callable[..., Any]]:
    """The methods' directions with K = ``steps``."""
    chosen = (
        neumann_direction(problem, steps, use_hvp=False),
        neumann_direction(problem, steps, use_hvp=True),
        cg_direction(problem, steps),
    )
    return dict(zip(METHODS, chosen, strict=True))


def evaluations(method: str, steps: int) -> str:
    """What a step evaluates, the outer gradient first."""
    return {
        METHODS[0]: f"{1 + steps}",
        METHODS[1]: f"1 + {steps} HVP",
        # One more for the residual of the start.
        METHODS[2]: f"1 + at most {steps + 1} HVP",
    }[method]


def cosine(approximate: Any, exact: np.ndarray) -> float:
    """The cosine of the angle between a direction and the exact one."""
    flat = np.asarray(ravel_pytree(approximate)[0], np.float64)
    return float(flat @ exact / (np.linalg.norm(flat) * np.linalg.norm(exact)))


def outer_step(problem: Problem, direction: Callable[..., Any]) -> Callable[..., Any]:
    """Gradient, direction, and a step along it; returns the parameters, and those."""

    @jax.jit
    def step(params):
        moves = direction(params, problem.grad_fn(params))
        new = jax.tree.map(lambda w, u: w - OUTER_LEARNING_RATE * u, params, moves)
        return new, moves

    return step


def measure(
    problem: Problem, inner_steps: Sequence[int], repeats: int
) -> list[common.Record]:
    """Timings and cosines of every method and K."""

    def timer(function):
        return lambda: common.seconds(lambda: function(problem.params))

    gradient = jax.jit(problem.grad_fn)
    records = []
    for steps in inner_steps:
        programs = {
            name: outer_step(problem, direction)
            for name, direction in directions(problem, steps).items()
        }
        timers = {name: timer(program) for name, program in programs.items()}
        times = common.interleave(timers | {"gradient": timer(gradient)}, repeats)
        for name, program in programs.items():
            _, moves = program(problem.params)
            records.append(
                {
                    "kind": "two_loop",
                    "inner_steps": steps,
                    "method": name,
                    "seconds": times[name],
                    "gradient_seconds": times["gradient"],
                    "cosine": cosine(moves, problem.direction),
                }
            )
        print(f"K = {steps}: done", flush=True)
    return records


def row(record: common.Record) -> list[str]:
    """A row of the table."""
    ratio = common.paired_ratio(record["seconds"], record["gradient_seconds"])
    return [
        str(record["inner_steps"]),
        record["method"],
        evaluations(record["method"], record["inner_steps"]),
        str(ratio),
        f"{record['cosine']:.4f}",
    ]


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__, repeats=51)
    parser.add_argument(
        "--inner_steps",
        type=lambda text: common.several(text, common.positive),
        default=[1, 2, 5, 10, 20, 50],
        help="Values of K (1,2,5,10,20,50).",
    )
    parser.add_argument(
        "--batch_size", type=common.positive, default=1024, help="Images (%(default)s)."
    )
    parser.add_argument(
        "--width",
        type=common.positive,
        default=WIDTHS[1],
        help="Hidden units (%(default)s).",
    )
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    problem = make_problem(flags.batch_size, (WIDTHS[0], flags.width, WIDTHS[2]))
    records = measure(problem, flags.inner_steps, flags.repeats)
    low, high = problem.bounds
    gradient = common.summarize(
        [t for record in records for t in record["gradient_seconds"]]
    )
    explanation = (
        f"A perceptron of {problem.direction.size:,} parameters on "
        f"{flags.batch_size:,} random images after {WARM_UP_STEPS} steps of momentum "
        f"SGD; eigenvalues of its Hessian from {problem.smallest:.3g} to {high:.3g}, "
        f"damping {-low:.3g}. The time is that of an outer step (gradient, direction, "
        f"new parameters) by that of one gradient, {gradient.median * 1e3:.3g} ms: the "
        f"median of {flags.repeats} rounds with quartiles. HVP: a Hessian-vector "
        "product, as the derivative of the gradient along a vector. Conjugate "
        f"gradients stop before K at a relative residual of {CG_TOLERANCE:g}."
    )
    table = markdown.table(HEADINGS, [row(record) for record in records])
    common.write(flags.output, "Neumann two-loop", [explanation, table], records)


if __name__ == "__main__":
    common.run(main)
