"""The default laws about long runs, and about more than one of them."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail.testing import _compare
from optax_heavytail.testing._compare import Broken
from optax_heavytail.testing._run import law
from optax_heavytail.testing._trial import Trial, steps

_MANY = 300  # a count in bfloat16 stands still at 256, one in int8 ends at 127
_COUNTED = 8  # steps that make a number of the state a count of them
_REACH = 1.0  # how far the parameters may move: what diverges stays finite


@law
def check_many_steps(trial: Trial) -> None:
    """300 steps in ``scan``, with parameters that move, stay finite, and count on.

    The gradients are of the order of 1, and every parameter stays within 1 of its
    start. A number of the state that has counted the first 8 steps must not stand
    still where its dtype has no larger whole number, nor begin anew below 0.
    """
    params = trial.params if _is_stable(trial) else trial.wide
    start = trial.tx.init(params)
    named = _compare.with_paths(start)
    numbers = [k for k, (_, x) in enumerate(named) if jnp.ndim(x) == 0 and _is_real(x)]
    began_finite = [bool(np.all(np.isfinite(_compare.numbers(x)))) for _, x in named]

    def step(carry, k):
        moved, state = carry
        grads = jax.tree.map(lambda w: _gradient(w, k), moved)
        updates, state = trial.update(grads, state, moved)
        moved = jax.tree.map(_moved, moved, updates, params)
        leaves = jax.tree.leaves(state)
        is_good = [_is_finite(x) for x in jax.tree.leaves(updates)]
        is_good += [
            _is_finite(x) for x, good in zip(leaves, began_finite, strict=True) if good
        ]
        return (moved, state), (is_good, [leaves[n] for n in numbers])

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(_MANY)))
    _, (good, values) = run((params, start))
    places = [f"update{path}" for path, _ in _compare.with_paths(params)]
    places += [
        f"state{path}"
        for (path, _), good_start in zip(named, began_finite, strict=True)
        if good_start
    ]
    for place, flags in zip(places, good, strict=True):
        bad = np.flatnonzero(~np.asarray(flags))
        if bad.size:
            raise Broken(f"after step {bad[0] + 1} of {_MANY}, {place} is not finite")
    for n, seen in zip(numbers, values, strict=True):
        path, first = named[n]
        _assert_counts(path, [first, *np.asarray(seen)], jnp.result_type(first))


def _is_stable(trial):
    """Whether ``scan`` takes the update on the parameters as they are."""
    state = jax.eval_shape(trial.tx.init, trial.params)
    updates, after = jax.eval_shape(trial.update, trial.fixed[0], state, trial.params)
    try:
        _compare.same_types(after, state, "")
        _compare.same_types(updates, trial.params, "")
    except Broken:
        return False
    return True


def _is_real(leaf):
    dtype = jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _gradient(w, k):
    """Entries between -1 and 1 that differ from each other and between steps."""
    place = jnp.arange(w.size, dtype=jnp.float32).reshape(w.shape)
    return jnp.cos(1.7 * place + 0.9 * k.astype(jnp.float32)).astype(w.dtype)


def _moved(w, u, start):
    wide = jnp.promote_types(w.dtype, jnp.float32)
    change = w.astype(wide) + u.astype(wide) - start
    return (start + jnp.clip(change, -_REACH, _REACH)).astype(w.dtype)


def _is_finite(leaf):
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return jnp.asarray(True)
    return jnp.all(jnp.isfinite(leaf))


def _assert_counts(path, seen: list[Any], dtype) -> None:
    """Breaks if a count has come to the end of its dtype."""
    values = [float(x) for x in seen]
    if values[: _COUNTED + 1] != [values[0] + k for k in range(_COUNTED + 1)]:
        return
    end = values[-1]
    if jnp.issubdtype(dtype, jnp.floating):
        largest = 2.0 / float(jnp.finfo(dtype).eps)  # from here on x + 1 is x
        if end == values[-2] == largest:
            raise Broken(
                f"state{path} counts steps in {dtype}, and stands still at {end:g} "
                f"after {len(values) - 1}"
            )
    elif min(values) < values[0]:
        step = int(np.argmax(np.less(values, values[0])))
        raise Broken(
            f"state{path} counts steps in {dtype}, and is {values[step]:g} after {step}"
        )


@law
def check_two_models(trial: Trial) -> None:
    """Two models that one transform trains in turns get what each gets alone.

    All that is kept between steps is in the state: nothing in the transform itself,
    such as the parameters that ``init`` saw first or last. With ``factory`` the second
    model, whose leaves are twice as long where they have a length, is compared with
    what a transform made for it alone does.
    """
    alone = trial.eager[:2]  # before another model is there
    other = _Other(trial, trial.again())
    own, state = trial.tx.init(trial.params), trial.tx.init(other.params)
    got = []
    for step, grads in zip(alone, other.grads, strict=True):
        updates, own = trial.update(step.grads, own, trial.params)
        what = "with another model between the steps,"
        _compare.same_bits(updates, step.updates, f"{what} update")
        _compare.same_bits(own, step.after, f"{what} state")
        updates, state = trial.jitted(grads, state, other.params)
        got.append(updates)
    if other.alone is not None:
        _compare.same_bits(got, other.alone, "updates of the second model")


class _Other:
    """A second model, and with a transform of its own what it gets alone."""

    def __init__(self, trial: Trial, fresh: Any):
        own = (trial.params, trial.fixed[:2])
        self.alone = None
        if fresh is not None:
            self.params, self.grads = jax.tree.map(_longer, own)
            with contextlib.suppress(Exception):  # it may be made for these shapes only
                self.alone = self._updates(jax.jit(trial.bind(fresh)), fresh)
                return
        self.params, self.grads = jax.tree.map(lambda x: -2 * x, own)

    def _updates(self, update, tx):
        history = steps(update, self.grads, tx.init(self.params), self.params)
        return [updates for updates, _ in history]


def _longer(leaf):
    return -2 * (jnp.concatenate([leaf, leaf]) if leaf.ndim else leaf)
