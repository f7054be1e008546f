"""The laws that every transform should keep; `check_transformation` checks them all."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_heavytail.testing import _compare, _inputs
from optax_heavytail.testing._compare import Broken
from optax_heavytail.testing._run import (
    Skipped,
    Trial,
    close,
    close_updates,
    law,
    steps,
)


@law
def check_pure(trial: Trial) -> None:
    """Equal calls give equal bits, and what is passed in is left as it was.

    For ``init`` and, at every step, ``update``: two calls with the same arguments agree
    in every bit, and the containers passed to it hold the same leaves afterwards.
    """

    def holds(grads):
        state = trial.tx.init(trial.params)
        _compare.same_bits(trial.tx.init(trial.params), state, "init's second state")
        for g in grads:
            arguments = (g, state, trial.params)
            before = jax.tree.flatten(arguments)
            first = trial.update(*arguments)
            after = jax.tree.flatten(arguments)
            unchanged = all(a is b for a, b in zip(before[0], after[0], strict=False))
            if before[1] != after[1] or not unchanged:
                raise Broken("update changed its arguments in place")
            second = trial.update(*arguments)
            _compare.same_bits(second[0], first[0], "the same call's second update")
            _compare.same_bits(second[1], first[1], "the same call's second state")
            state = first[1]

    trial.search(holds, trial.params)


@law
def check_arrays(trial: Trial) -> None:
    """Every leaf of the state is a jax array, after ``init`` and after ``update``.

    Python numbers, NumPy arrays and other objects change their type at the first step
    under ``jit``, and cannot be placed on devices.
    """

    def holds(grads):
        state = trial.tx.init(trial.params)
        _, new_state = trial.update(grads[0], state, trial.params)
        for when, tree in (("init's state", state), ("update's state", new_state)):
            for path, leaf in _compare.with_paths(tree):
                if not isinstance(leaf, jax.Array):
                    raise Broken(
                        f"{when}{path} is a {type(leaf).__name__} and not a jax array"
                    )

    trial.search(holds, trial.params, 1)


@law
def check_stable(trial: Trial) -> None:
    """Structure, shapes and dtypes never change.

    The state's are those of ``init`` after every step, the updates' are the gradients'.
    That their shardings stay too belongs to `check_sharding`.
    """

    def holds(grads):
        state = trial.tx.init(trial.params)
        for g, (updates, new) in zip(
            grads, steps(trial.update, grads, state, trial.params), strict=True
        ):
            _compare.same_types(updates, g, "update")
            _compare.same_types(new, state, "state")

    trial.search(holds, trial.params)


@law
def check_one_trace(trial: Trial) -> None:
    """Under ``jit`` the update is traced once for all steps.

    A second trace compiles the training step once more. It comes from a state whose
    types, or whose weakness of type, differ after the first step.
    """
    traces = []

    @jax.jit
    def update(*args):
        traces.append(args)
        return trial.update(*args)

    state = trial.tx.init(trial.params)
    steps(update, _inputs.fixed_gradients(trial.params, 3), state, trial.params)
    if len(traces) != 1:
        raise Broken(f"three steps of equal types were traced {len(traces)} times")


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

    trial.search(holds, trial.wide)


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


@law
def check_grad(trial: Trial) -> None:
    r"""``jax.grad`` goes through two steps, and its result is finite.

    With :math:`w_k = w_{k-1} + u_k`, the derivative of a smooth function of
    :math:`w_2` by the gradients and by :math:`w_0`. All gradients are away from 0; see
    `check_grad_at_zero`.
    """
    derivative = derivative_by_all(trial)

    def holds(grads):
        _compare.finite(
            derivative(grads, trial.wide), "the derivative by (grads, params)"
        )

    trial.search(holds, trial.wide, 2, at_least=2, values=_inputs.NONZERO)


def derivative_by_all(trial: Trial) -> Callable[..., Any]:
    """The function behind `check_grad`, of gradients and parameters."""

    def value(grads, params):
        state = trial.tx.init(params)
        for g in grads:
            updates, state = trial.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(params))

    return jax.jit(jax.grad(value, argnums=(0, 1)))


@law
def check_abstract(trial: Trial) -> None:
    """``jax.eval_shape`` of ``init`` and ``update`` knows the types without numbers.

    A training program needs this to lay out a state, or to restore one, before it
    exists.
    """
    state = jax.eval_shape(trial.tx.init, trial.params)
    _compare.same_types(state, trial.tx.init(trial.params), "init's abstract state")
    grads = _inputs.fixed_gradients(trial.params, 1)[0]
    abstract = jax.eval_shape(trial.update, grads, state, trial.params)
    want = trial.update(grads, trial.tx.init(trial.params), trial.params)
    _compare.same_types(abstract[0], want[0], "the abstract update")
    _compare.same_types(abstract[1], want[1], "the abstract new state")


@law
def check_injected(trial: Trial) -> None:
    """Hyperparameters may be arrays of the state.

    ``optax.inject_hyperparams(factory, static_args)(**kwargs)`` gives the updates of
    ``tx``, under ``jit``, with hyperparameters in float32. Needs ``factory``.
    """
    if trial.factory is None:
        raise Skipped("needs factory= (and kwargs=) to build the transform again")
    make = optax.inject_hyperparams(
        trial.factory, tuple(trial.static_args), hyperparam_dtype=jnp.float32
    )
    injected = make(**(trial.kwargs or {}))
    update = jax.jit(trial.bind(injected))

    def holds(grads):
        got = steps(update, grads, injected.init(trial.wide), trial.wide)
        want = trial.history(grads, trial.wide)
        close_updates(got, want, trial.tolerance, "injected, update")

    trial.search(holds, trial.wide)


@law
def check_extra_args(trial: Trial) -> None:
    """Extra arguments that the transform does not know are ignored.

    As in a chain whose other members need them: after
    ``optax.with_extra_args_support``, an unknown keyword changes no bit.
    """
    update = optax.with_extra_args_support(trial.tx).update

    def holds(grads):
        arguments = (grads[0], trial.tx.init(trial.params), trial.params)
        got = update(*arguments, **trial.extra_args, unknown_extra_argument=1.0)
        want = trial.update(*arguments)
        _compare.same_bits(got[0], want[0], "with an unknown argument, update")
        _compare.same_bits(got[1], want[1], "with an unknown argument, state")

    trial.search(holds, trial.params, 1)


@law
def check_missing_params(trial: Trial) -> None:
    """Without parameters the update is the same, or a ``ValueError`` about them.

    A transform that needs ``params`` says so. It neither fails in the middle nor leaves
    a part of its work out.
    """

    def holds(grads):
        state = trial.tx.init(trial.params)
        try:
            got = trial.update(grads[0], state, None)
        except ValueError as error:
            if "param" in str(error).lower():
                return
            raise
        want = trial.update(grads[0], state, trial.params)
        _compare.same_bits(got[0], want[0], "without params, update")

    trial.search(holds, trial.params, 1)


@law
def check_multi_steps(trial: Trial) -> None:
    """``optax.MultiSteps`` of 2 gives zeros, then the update of the mean gradient."""
    wrapped = optax.MultiSteps(trial.tx, 2)
    update = jax.jit(functools.partial(wrapped.update, **trial.extra_args))

    def holds(grads):
        got = steps(update, grads, wrapped.init(trial.wide), trial.wide)
        pairs = zip(grads[::2], grads[1::2], strict=True)
        means = [jax.tree.map(lambda a, b: a + (b - a) / 2, *pair) for pair in pairs]
        want = trial.history(means, trial.wide)
        close_updates(got[1::2], want, trial.tolerance, "in MultiSteps, update")
        for updates, _ in got[::2]:
            zeros = optax.tree.zeros_like(updates)
            _compare.same_bits(updates, zeros, "in MultiSteps, the first update of two")

    trial.search(holds, trial.wide, 4, at_least=4)


@law
def check_numpy(trial: Trial) -> None:
    """A state stored as NumPy arrays and restored goes on as if nothing had happened.

    Restored means: its leaves, in the structure of a fresh ``init``. Random keys with a
    dtype of their own are kept as they are.
    """

    def holds(grads):
        first, second = grads
        state = trial.tx.init(trial.params)
        _, state = trial.jitted(first, state, trial.params)
        stored = [_stored(x) for x in jax.tree.leaves(state)]
        structure = jax.tree.structure(trial.tx.init(trial.params))
        restored = structure.unflatten([jnp.asarray(x) for x in stored])
        got = trial.jitted(second, restored, trial.params)
        want = trial.jitted(second, state, trial.params)
        _compare.same_bits(got[0], want[0], "after numpy, update")
        _compare.same_bits(got[1], want[1], "after numpy, state")

    trial.search(holds, trial.params, 2, at_least=2)


def _stored(leaf):
    is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    return leaf if is_key else np.array(leaf)


@law
def check_zero(trial: Trial) -> None:
    """Two steps of zero gradients leave updates and state finite.

    At the parameters, and at parameters that are all 0.
    """
    zeros = jax.tree.map(jnp.zeros_like, trial.params)
    for name, params in (("the parameters", trial.params), ("zero parameters", zeros)):
        for updates, state in trial.history([zeros, zeros], params):
            _compare.finite(updates, f"at zero gradients and {name}, update")
            _compare.finite(state, f"at zero gradients and {name}, state")


def _stack(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)
