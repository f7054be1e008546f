"""The default laws about what one step leaves behind: values, types and traces."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from optax_heavytail.testing import _compare, _inputs
from optax_heavytail.testing._compare import Broken
from optax_heavytail.testing._run import Skipped, Trial, law, steps


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
        later = [s for _, s in steps(trial.update, grads, state, trial.params)]
        for name, tree in [("init's state", state)] + [
            ("update's state", s) for s in later
        ]:
            for path, leaf in _compare.with_paths(tree):
                if not isinstance(leaf, jax.Array):
                    raise Broken(
                        f"{name}{path} is a {type(leaf).__name__} and not a jax array"
                    )

    trial.search(holds, trial.params)


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
    def update(grads, state, params):
        if not isinstance(jax.tree.leaves(grads)[0], jax.core.Tracer):
            raise Skipped("needs jit, which is turned off here")
        traces.append(_strict_types(state))
        return trial.update(grads, state, params)

    state = trial.tx.init(trial.params)
    steps(update, _inputs.fixed_gradients(trial.params, 3), state, trial.params)
    if len(traces) != 1:
        changed = sorted(set(traces[1].items()) - set(traces[0].items()))
        why = "".join(
            f"; state{path} was {traces[0].get(path, 'absent')}, then {then}"
            for path, then in changed[:1]
        )
        raise Broken(f"three steps were traced {len(traces)} times{why}")


def _strict_types(state):
    types = ((path, jax.typeof(x)) for path, x in _compare.with_paths(state))
    return {
        path: f"{'weak ' * x.weak_type}{x.dtype}{list(x.shape)}" for path, x in types
    }


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
        start = trial.tx.init(params)
        for updates, state in trial.history([zeros, zeros], params):
            _compare.finite(updates, f"at zero gradients and {name}, update")
            _compare.finite(state, f"at zero gradients and {name}, state", start)
