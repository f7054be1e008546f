"""The default laws about what Optax does with a transform."""

import functools

import jax
import jax.numpy as jnp
import optax

from optax_heavytail.testing import _compare
from optax_heavytail.testing._run import (
    Skipped,
    close_updates,
    law,
)
from optax_heavytail.testing._trial import Trial, steps


@law
def check_injected(trial: Trial) -> None:
    """Hyperparameters may be arrays of the state.

    ``optax.inject_hyperparams(factory, static_args)(**kwargs)`` gives the updates of
    ``tx``, under ``jit``, with hyperparameters in float32. What is no such
    hyperparameter, a size for example, is named in ``static_args``. Needs ``factory``.
    """
    if trial.factory is None:
        raise Skipped("needs factory= (and kwargs=) to build the transform again")
    make = optax.inject_hyperparams(
        trial.factory, trial.static_args, hyperparam_dtype=jnp.float32
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
    step = trial.eager[0]
    update = optax.with_extra_args_support(trial.tx).update
    got = update(
        step.grads,
        step.before,
        trial.params,
        **trial.extra_args,
        unknown_extra_argument=1.0,
    )
    _compare.same_bits(got[0], step.updates, "with an unknown argument, update")
    _compare.same_bits(got[1], step.after, "with an unknown argument, state")


@law
def check_missing_params(trial: Trial) -> None:
    """Without parameters the update is the same, or a ``ValueError`` about them.

    A transform that needs ``params`` says so. It neither fails in the middle nor leaves
    a part of its work out.
    """
    step = trial.eager[0]
    try:
        got = trial.update(step.grads, step.before, None)
    except ValueError as error:
        if "param" in str(error).lower():
            return
        raise
    _compare.same_bits(got[0], step.updates, "without params, update")


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
