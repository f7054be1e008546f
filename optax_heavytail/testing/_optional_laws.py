"""The laws that hold for some transforms only, for ``laws=``."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from optax_heavytail.testing import _compare, _inputs
from optax_heavytail.testing._compare import Broken
from optax_heavytail.testing._jax_laws import derivative_by_all
from optax_heavytail.testing._run import close_updates, law
from optax_heavytail.testing._trial import Trial

_NARROW = (jnp.float16, jnp.bfloat16, jnp.float32)


@law
def check_grad_at_zero(trial: Trial) -> None:
    """The derivative of `check_grad` is finite at zero gradients too."""
    derivative = derivative_by_all(trial)
    zeros = jax.tree.map(jnp.zeros_like, trial.wide)
    out = derivative([zeros, zeros], trial.wide)
    _compare.finite(out, "at zero gradients, the derivative by (grads, params)")


@law
def check_mixed_dtypes(trial: Trial) -> None:
    """Parameters of one dtype, gradients of another: types never change.

    For each pair of float16, bfloat16 and float32, updates have the gradients' dtype,
    and the state keeps its own.
    """
    for params_dtype, grads_dtype in itertools.product(_NARROW, _NARROW):
        params = _inputs.cast(trial.params, params_dtype)
        grads = _inputs.cast(trial.params, grads_dtype)
        state = jax.eval_shape(trial.tx.init, params)
        updates, new = jax.eval_shape(trial.update, grads, state, params)
        names = f"{jnp.dtype(params_dtype)} params, {jnp.dtype(grads_dtype)} gradients"
        _compare.same_types(updates, grads, f"with {names}, update")
        _compare.same_types(new, state, f"with {names}, state")


@law
def check_float16(trial: Trial) -> None:
    """All in float16: gradients from 6e-8 to 65504 leave updates and state finite.

    And a large gradient, whose square is no number any more, is not lost: where the
    update is 0 in all entries, so is that of a smaller multiple of the gradients.
    """
    params = _inputs.cast(trial.params, jnp.float16)
    _assert_finite(trial, params, (0.0, 1.0, 300.0, -65504.0, 6e-8), keeps_large=True)


@law
def check_huge(trial: Trial) -> None:
    """Float32 gradients of 1e30 and 1e-30 leave updates and state finite.

    And a large gradient is not lost, as in `check_float16`.
    """
    values = (0.0, 1.0, 1e30, -1e30, 1e-30)
    _assert_finite(trial, trial.wide, values, keeps_large=True)


@law
def check_inf(trial: Trial) -> None:
    """An inf among the gradients leaves updates and state finite, then and later."""
    _assert_finite(trial, trial.wide, (0.0, 1.0, float("inf"), float("-inf")))


@law
def check_nan(trial: Trial) -> None:
    """A NaN among the gradients leaves updates and state finite, then and later."""
    _assert_finite(trial, trial.wide, (0.0, 1.0, float("nan")))


def _assert_finite(trial, params, values, *, keeps_large=False):
    def holds(grads):
        start = trial.tx.init(params)
        history = trial.history(grads, params)
        for updates, state in history:
            _compare.finite(updates, "update")
            _compare.finite(state, "state", start)
        if keeps_large:
            _assert_not_lost(trial, params, grads, history)

    trial.search(holds, params, 2, values=values)


def _assert_not_lost(trial, params, grads, history):
    """Breaks if an update is 0 because the gradient is large."""
    is_zero = [not np.any(_entries(updates)) for updates, _ in history]
    largest = max(float(np.max(np.abs(_entries(g)), initial=0)) for g in grads)
    if largest <= 1 or not any(is_zero):
        return
    # A power of 2, so that the digits stay.
    scale = 2.0 ** -np.ceil(np.log2(largest))
    smaller = [jax.tree.map(lambda x: (x * scale).astype(x.dtype), g) for g in grads]
    for k, (updates, _) in enumerate(trial.history(smaller, params)):
        if is_zero[k] and np.any(_entries(grads[k])) and np.any(_entries(updates)):
            raise Broken(
                f"update after step {k + 1} is 0 everywhere, and is not for gradients "
                f"{scale:g} times as large: they are too large, and lost"
            )


def _entries(tree):
    leaves = [_compare.numbers(x).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros(0), *leaves])


@law
def check_never_increases_norm(trial: Trial) -> None:
    r"""No update is longer than its gradient.

    .. math:: \lVert u_k \rVert_2 \leq \lVert g_k \rVert_2,

    with the norm over all entries of all leaves; for gradients as they were drawn, and
    for 1000 times smaller and larger ones.
    """

    def holds(grads):
        for size in (1.0, 1e-3, 1e3):
            sized = [jax.tree.map(lambda x, size=size: size * x, g) for g in grads]
            for g, (updates, _) in zip(
                sized, trial.history(sized, trial.wide), strict=True
            ):
                longest, length = _norm(g), _norm(updates)
                if not length <= longest * (1 + trial.rtol):
                    raise Broken(f"a gradient of norm {longest:g} became {length:g}")

    trial.search(holds, trial.wide)


def _norm(tree):
    leaves = jax.tree.leaves(tree)
    return float(np.sqrt(sum(np.sum(_compare.numbers(x) ** 2) for x in leaves)))


@law
def check_odd(trial: Trial) -> None:
    r"""A reflected run gives reflected updates.

    .. math:: u_k(-g, -w) = -u_k(g, w).
    """
    _assert_equivariant(trial, jnp.negative, jnp.negative, "reflected")


@law
def check_scale_equivariant(trial: Trial) -> None:
    r"""Gradients that are all 4 times as large give updates that are, too.

    .. math:: u_k(4 g, w) = 4 u_k(g, w).
    """
    _assert_equivariant(trial, lambda g: 4 * g, lambda w: w, "scaled by 4")


@law
def check_permutation_equivariant(trial: Trial) -> None:
    r"""The order of the entries of a leaf means nothing.

    .. math:: u_k(P g, P w) = P u_k(g, w)

    for the cyclic shift of each leaf's entries and the exchange of its first two; the
    two make up every permutation.
    """
    for change in (_shift, _exchange):
        _assert_equivariant(trial, change, change, "permuted")


def _shift(leaf):
    return jnp.roll(leaf.ravel(), 1).reshape(leaf.shape)


def _exchange(leaf):
    flat = leaf.ravel()
    return jnp.concatenate([flat[:2][::-1], flat[2:]]).reshape(leaf.shape)


def _assert_equivariant(trial, of_gradients, of_params, what):
    params = jax.tree.map(of_params, trial.wide)

    def holds(grads):
        changed = [jax.tree.map(of_gradients, g) for g in grads]
        got = trial.history(changed, params)
        plain = trial.history(grads, trial.wide)
        want = [(jax.tree.map(of_gradients, u), state) for u, state in plain]
        close_updates(got, want, trial.tolerance, f"{what}, update")

    trial.search(holds, trial.wide)


@law
def check_leaf_separable(trial: Trial) -> None:
    """Each leaf gets the update that it gets alone, when all others are ``None``.

    For the first, the middle and the last leaf.
    """
    count = len(jax.tree.leaves(trial.wide))

    def holds(grads):
        together = trial.history(grads, trial.wide)
        for k in sorted({0, count // 2, count - 1}):
            alone = trial.history([_only(g, k) for g in grads], _only(trial.wide, k))
            want = [(_only(u, k), state) for u, state in together]
            close_updates(alone, want, trial.tolerance, "alone, update")

    trial.search(holds, trial.wide)


def _only(tree, k):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([x if i == k else None for i, x in enumerate(leaves)])
