"""The default laws about what one step leaves behind: values, types and traces."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from optax_heavytail.testing import _compare
from optax_heavytail.testing._compare import Broken
from optax_heavytail.testing._run import Skipped, law
from optax_heavytail.testing._trial import Trial


@law
def check_pure(trial: Trial) -> None:
    """Equal calls give equal bits, and what is passed in is left as it was.

    For ``init`` and, at each of three steps, ``update``: two calls with the same
    arguments agree in every bit, and the containers passed to it hold the same leaves
    afterwards.
    """
    start = trial.eager[0].before
    _compare.same_bits(trial.tx.init(trial.params), start, "init's second state")
    for step in trial.eager:
        if not step.left_arguments:
            raise Broken("update changed its arguments in place")
        second = trial.update(step.grads, step.before, trial.params)
        _compare.same_bits(second[0], step.updates, "the same call's second update")
        _compare.same_bits(second[1], step.after, "the same call's second state")


@law
def check_arrays(trial: Trial) -> None:
    """Every leaf of the state is a jax array, after ``init`` and after ``update``.

    Python numbers, NumPy arrays and other objects change their type at the first step
    under ``jit``, and cannot be placed on devices.
    """
    states = [("init's state", trial.eager[0].before)]
    states += [("update's state", step.after) for step in trial.eager]
    for name, tree in states:
        for path, leaf in _compare.with_paths(tree):
            if not isinstance(leaf, jax.Array):
                raise Broken(
                    f"{name}{path} is a {type(leaf).__name__} and not a jax array"
                )


@law
def check_stable(trial: Trial) -> None:
    """Structure, shapes and dtypes never change.

    The state's are those of ``init`` after every step, the updates' are the gradients'.
    That their shardings stay too belongs to `check_sharding`.
    """
    for step in trial.eager:
        _compare.same_types(step.updates, step.grads, "update")
        _compare.same_types(step.after, trial.eager[0].before, "state")


@law
def check_one_trace(trial: Trial) -> None:
    """Under ``jit`` the update is traced once for all steps.

    A second trace compiles the training step once more. It comes from a state whose
    types, or whose weakness of type, differ after the first step.
    """
    if _jit_is_off():
        raise Skipped("needs jit, which is turned off here")
    state, seen = trial.tx.init(trial.params), []
    for grads in trial.fixed:
        types = _strict_types(state)
        if types not in seen:
            seen.append(types)
        _, state = trial.jitted(grads, state, trial.params)
    if len(seen) != 1:
        changed = sorted(set(seen[1].items()) - set(seen[0].items()))
        why = "".join(
            f"; state{path} was {seen[0].get(path, 'absent')}, then {then}"
            for path, then in changed[:1]
        )
        raise Broken(f"three steps were traced {len(seen)} times{why}")


def _jit_is_off():
    seen = []
    jax.jit(lambda x: seen.append(isinstance(x, jax.core.Tracer)))(0)
    return not seen[0]


def _strict_types(state):
    types = ((path, jax.typeof(x)) for path, x in _compare.with_paths(state))
    return {
        path: f"{'weak ' * x.weak_type}{x.dtype}{list(x.shape)}" for path, x in types
    } | {"'s structure": str(jax.tree.structure(state))}


@law
def check_abstract(trial: Trial) -> None:
    """``jax.eval_shape`` of ``init`` and ``update`` knows the types without numbers.

    A training program needs this to lay out a state, or to restore one, before it
    exists.
    """
    state = jax.eval_shape(trial.tx.init, trial.params)
    step = trial.eager[0]
    _compare.same_types(state, step.before, "init's abstract state")
    abstract = jax.eval_shape(trial.update, step.grads, state, trial.params)
    _compare.same_types(abstract[0], step.updates, "the abstract update")
    _compare.same_types(abstract[1], step.after, "the abstract new state")


@law
def check_donated(trial: Trial) -> None:
    """Parameters and state can be donated to a step under ``jit``.

    Training programs pass both with ``donate_argnums``, so that the new ones take the
    memory of the old. No leaf of a state that ``init`` makes may be the very array that
    a parameter, another leaf, or a leaf of a second state is, as after
    ``state = State(start=params)``: copy it.
    """
    first = ("init's state", trial.tx.init(trial.params))
    second = ("a second init's state", trial.tx.init(trial.params))
    names: dict[int, str] = {}
    for what, tree in (("params", trial.params), first, second):
        for path, leaf in _compare.with_paths(tree):
            for place in _memory(leaf):
                if place in names:
                    raise Broken(
                        f"{what}{path} is the same array as {names[place]}: they "
                        "cannot both be donated"
                    )
                names[place] = f"{what}{path}"


def _memory(leaf):
    """Where an array lies, if it has entries."""
    if not isinstance(leaf, jax.Array) or not leaf.size:
        return []
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]


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

    trial.search(holds, trial.params, 2, at_least=2, is_eager=True)


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
