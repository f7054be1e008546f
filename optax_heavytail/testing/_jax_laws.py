"""The default laws about what JAX does to a transform."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail.testing import _compare, _inputs
from optax_heavytail.testing._run import close, law
from optax_heavytail.testing._trial import Trial, steps


@law
def check_jit(trial: Trial) -> None:
    """Updates and states are the same with and without ``jit``.

    Up to the tolerance that ``rtol`` gives, on the parameters in float32.
    """

    def holds(grads):
        state = trial.tx.init(trial.wide)
        eager = steps(trial.update, grads, state, trial.wide)
        compiled = steps(trial.jitted, grads, state, trial.wide)
        close(compiled, eager, trial.tolerance, "under jit")

    trial.search(holds, trial.wide, 2, at_least=2, is_eager=True)


@law
def check_scan(trial: Trial) -> None:
    """``jax.lax.scan`` over the steps gives what a loop over them gives."""

    @jax.jit
    def scanned(state, grads):
        def step(state, g):
            updates, state = trial.update(g, state, trial.wide)
            return state, updates

        return jax.lax.scan(step, state, grads)

    def holds(grads):
        state, updates = scanned(trial.tx.init(trial.wide), _stack(grads))
        history = trial.history(grads, trial.wide)
        want = [u for u, _ in history]
        got = [jax.tree.map(lambda x, k=k: x[k], updates) for k in range(len(want))]
        _compare.close(got, want, trial.tolerance, "in scan, update")
        _compare.close(
            [state], [history[-1][1]], trial.tolerance, "in scan, the last state"
        )

    trial.search(holds, trial.wide, 2, at_least=2)


@law
def check_vmap(trial: Trial) -> None:
    """``jax.vmap`` over two runs gives what the two give one after the other.

    One of the runs is at its first step, the other at its second.
    """
    batched = jax.jit(jax.vmap(trial.update))

    def holds(grads):
        first, second = grads
        fresh = trial.tx.init(trial.wide)
        _, later = trial.jitted(first, fresh, trial.wide)
        lanes = [(first, fresh, trial.wide), (second, later, trial.wide)]
        together = batched(*_stack(lanes))
        for k, lane in enumerate(lanes):
            got = jax.tree.map(lambda x, k=k: x[k], together)
            close([got], [trial.jitted(*lane)], trial.tolerance, "in vmap")

    trial.search(holds, trial.wide, 2, at_least=2)


def _stack(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@law
def check_grad(trial: Trial) -> None:
    r"""``jax.grad`` goes through two steps, and its result is finite.

    With :math:`w_k = w_{k-1} + u_k`, the derivative of a smooth function of
    :math:`w_2` by the gradients and by :math:`w_0`. All gradients are away from 0; see
    `check_grad_at_zero`. Their entries are changed by up to a tenth, so that none
    cancels another.
    """
    derivative = derivative_by_all(trial)

    def holds(grads):
        _compare.finite(
            derivative(grads, trial.wide), "the derivative by (grads, params)"
        )

    trial.search(
        holds, trial.wide, 2, at_least=2, values=_inputs.NONZERO, change=_inputs.tilted
    )


def derivative_by_all(trial: Trial) -> Callable[..., Any]:
    """The function behind `check_grad`, of gradients and parameters."""

    def value(grads, params):
        state = trial.tx.init(params)
        for g in grads:
            updates, state = trial.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(params))

    return jax.jit(jax.grad(value, argnums=(0, 1)))
