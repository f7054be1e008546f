"""Transforms that break one law each, as users do."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


def stateless(update):
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda g, s, p=None: (update(g, p), s)
    )


def each_leaf(update):
    return stateless(lambda grads, params: jax.tree.map(update, grads))


def counting(start, following, factor=lambda count: 1.0):
    """Its state is ``start``, then what ``following`` makes of it."""

    def update(grads, state, params=None):
        scaled = jax.tree.map(lambda g: (g * factor(state)).astype(g.dtype), grads)
        return scaled, following(state)

    return optax.GradientTransformation(lambda params: start(), update)


def impure():
    calls = []

    def update(grads, params):
        calls.append(1)
        return jax.tree.map(lambda g: g * len(calls), grads)

    return stateless(update)


def changes_its_arguments():
    def update(grads, params):
        grads["bias"] = -grads["bias"]
        return dict(grads)

    return stateless(update)


def widens():
    return each_leaf(lambda g: g.astype(jnp.float32))


def branches():
    return each_leaf(lambda g: g / 2 if jnp.max(jnp.abs(g)) > 1 else g)


def numpy_later():
    def following(count):
        traced = isinstance(count, jax.core.Tracer)
        return count + 1 if traced or count == 0 else np.int32(count) + 1

    return counting(lambda: jnp.zeros([], jnp.int32), following)


def differs_under_jit():
    return each_leaf(lambda g: 2 * g if isinstance(g, jax.core.Tracer) else g)


def grows():
    return counting(lambda: jnp.zeros(1), lambda s: jnp.append(s, 1.0))


def on_the_host():
    def halve(g):
        out = jax.ShapeDtypeStruct(g.shape, g.dtype)
        return jax.pure_callback(lambda x: x / 2, out, g)

    return each_leaf(halve)


def loops():
    def until_small(g):
        big = lambda x: jnp.max(jnp.abs(x)) > 1  # noqa: E731
        return jax.lax.while_loop(big, lambda x: x / 2, g)

    return each_leaf(until_small)


def reads_in_init():
    def init(params):
        return jnp.asarray(float(sum(jnp.sum(p) for p in jax.tree.leaves(params))))

    return optax.GradientTransformation(init, lambda g, s, p=None: (g, s))


def needs_a_number(learning_rate=0.1):
    return optax.scale(-learning_rate if learning_rate > 0 else 0.0)


def changes_what_it_is_given(learning_rate=0.1):
    arrays = isinstance(learning_rate, jax.Array)
    return optax.scale(-2 * learning_rate if arrays else -learning_rate)


def by_name():
    names = ("bias", "kernel", "scale")
    return stateless(lambda grads, _: {name: grads[name] / 2 for name in names})


def by_largest():
    def update(grads, params):
        peaks = jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(grads)])
        return jax.tree.map(lambda g: g / (1 + jnp.max(peaks).astype(g.dtype)), grads)

    return stateless(update)


def by_rows():
    def update(grads, params):
        rows = jax.tree.leaves(grads)[0].shape[0]
        return jax.tree.map(lambda g: g / rows, grads)

    return stateless(update)


def strict_arguments():
    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, *, value=0.0: (updates, state),
    )


def decays_blindly():
    def update(grads, params):
        return jax.tree.map(lambda g, p: g + 0.1 * p, grads, params)

    return stateless(update)


def forgets_to_decay():
    def update(grads, params):
        params = grads if params is None else params
        return jax.tree.map(lambda g, p: g + 0.1 * p, grads, params)

    return stateless(update)


@jax.tree_util.register_pytree_node_class
class StaticCount:
    """A count that is no leaf, so no checkpoint holds it."""

    def __init__(self, count):
        self.count = count

    def tree_flatten(self):
        return (), self.count

    @classmethod
    def tree_unflatten(cls, count, leaves):
        return cls(count)


def counts_in_the_structure():
    return counting(
        lambda: StaticCount(0),
        lambda s: StaticCount(s.count + 1),
        lambda s: 0.5**s.count,
    )


def on_the_first_device():
    def init(params):
        return jax.device_put(optax.tree.zeros_like(params), jax.devices()[0])

    return optax.GradientTransformation(
        init, lambda g, m, p=None: (g, jax.tree.map(jnp.add, g, m))
    )


def gathers():
    """The right numbers, but every device holds all of them."""

    def init(params):
        return jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)

    return optax.GradientTransformation(
        init, lambda g, m, p=None: (g, jax.tree.map(jnp.add, g, m))
    )


def normalizes():
    return each_leaf(lambda g: g / jnp.linalg.norm(g.astype(jnp.float32)))


def root_of_square():
    return each_leaf(lambda g: g + jnp.sqrt(g * g))


def squares():
    return each_leaf(lambda g: g * g)


def by_position():
    return each_leaf(lambda g: g * jnp.arange(1, g.size + 1.0).reshape(g.shape))


def keeps_the_start():
    """The state begins as the parameters themselves."""
    return optax.GradientTransformation(
        lambda params: params, lambda g, start, p=None: (g, start)
    )


def keeps_a_key_of_its_own():
    """One array for all states: donated with the first, it is gone."""
    key = jax.random.key_data(jax.random.key(0))
    return optax.GradientTransformation(
        lambda params: {"key": key}, lambda g, s, p=None: (g, s)
    )


def keeps_zeros_twice():
    def init(params):
        zeros = optax.tree.zeros_like(params)
        return zeros, zeros

    return optax.GradientTransformation(init, lambda g, s, p=None: (g, s))


def fails_from_step_5():
    def update(grads, count, params=None):
        factor = jnp.where(count < 5, 1.0, jnp.nan)
        scaled = jax.tree.map(lambda g: (g * factor).astype(g.dtype), grads)
        return scaled, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)


def counts_in(dtype):
    return counting(lambda: jnp.zeros([], dtype), lambda s: s + jnp.ones([], dtype))


def remembers_the_last_init():
    kept = {}

    def init(params):
        kept["start"] = params
        return optax.EmptyState()

    def update(grads, state, params=None):
        return jax.tree.map(lambda g, w: g - w, grads, kept["start"]), state

    return optax.GradientTransformation(init, update)


def remembers_the_first_sizes():
    kept = {}

    def update(grads, params):
        sizes = jax.tree.map(jnp.size, grads)
        kept.setdefault(jax.tree.structure(sizes), sizes)
        kept_sizes = kept[jax.tree.structure(sizes)]
        return jax.tree.map(lambda g, n: g / max(n, 1), grads, kept_sizes)

    return stateless(update)


class Fault(NamedTuple):
    law: str
    make: object
    says: str  # a part of the message
    kwargs: dict | None = None


FAULTS = [
    Fault("pure", impure, "second update"),
    Fault("pure", changes_its_arguments, "changed its arguments in place"),
    Fault("arrays", lambda: counting(lambda: 0, lambda s: s + 1), "is a int and not"),
    Fault("arrays", numpy_later, "update's state is a int32 and not a jax array"),
    Fault("stable", widens, "update['bias'] is float32[2] and not bfloat16[2]"),
    Fault("stable", grows, "state is float32[2] and not float32[1]"),
    Fault(
        "one_trace",
        lambda: counting(lambda: jnp.asarray(0.0), lambda s: s + jnp.float32(1)),
        "were traced 2 times; state was weak float32[], then float32[]",
    ),
    Fault("jit", branches, "raised TracerBoolConversionError"),
    Fault("jit", differs_under_jit, "under jit, update['"),
    Fault("scan", grows, "raised TypeError: scan body function carry"),
    Fault("vmap", on_the_host, "raised NotImplementedError: vmap is only"),
    Fault("grad", loops, "raised ValueError: Reverse-mode differentiation"),
    Fault("abstract", reads_in_init, "raised ConcretizationTypeError"),
    Fault("injected", needs_a_number, "raised TracerBoolConversionError", {}),
    Fault(
        "injected",
        changes_what_it_is_given,
        "injected, update['",
        {},
    ),
    Fault("masked", by_name, "raised TypeError"),
    Fault("partition", by_name, "raised TypeError"),
    Fault("none", by_name, "raised TypeError: unsupported operand type(s) for /"),
    Fault("empty", by_largest, "on the tree {}: raised ValueError"),
    Fault("scalar", by_rows, "raised IndexError: tuple index out of range"),
    Fault("extra_args", strict_arguments, "unexpected keyword argument"),
    Fault(
        "missing_params", decays_blindly, "raised ValueError: pytree structure error"
    ),
    Fault("missing_params", forgets_to_decay, "without params, update['"),
    Fault("multi_steps", grows, "raised TypeError: cond branches must have equal"),
    Fault(
        "numpy", counts_in_the_structure, "after numpy, state has the tree structure"
    ),
    Fault("donated", keeps_the_start, "is the same array as params['bias']"),
    Fault("donated", keeps_a_key_of_its_own, "as init's state['key']: they cannot"),
    Fault("donated", keeps_zeros_twice, "init's state[1]['bias'] is the same array as"),
    Fault(
        "many_steps", fails_from_step_5, "after step 6 of 300, update['bias'] is not"
    ),
    Fault(
        "many_steps", lambda: counts_in(jnp.bfloat16), "stands still at 256 after 300"
    ),
    Fault("many_steps", lambda: counts_in(jnp.int8), "in int8, and is -128 after 128"),
    Fault(
        "two_models", remembers_the_last_init, "with another model between the steps"
    ),
    Fault("two_models", remembers_the_first_sizes, "updates of the second model", {}),
    Fault("sharding", on_the_first_device, "incompatible devices"),
    Fault("sharding", gathers, "has SingleDeviceSharding"),
    Fault("zero", normalizes, "is [nan, nan], which is not finite"),
    Fault("grad_at_zero", root_of_square, "[nan, nan], which is not finite"),
    Fault("mixed_dtypes", decays_blindly, "update['bias'] is float32[2] and not"),
    Fault("float16", squares, "which is not finite"),
    Fault("huge", squares, "which is not finite"),
    *(
        Fault(
            law, lambda: optax.clip_by_global_norm(1.0), "is 0 everywhere, and is not"
        )
        for law in ("float16", "huge")
    ),
    Fault("inf", optax.identity, "which is not finite"),
    Fault("nan", optax.identity, "which is not finite"),
    Fault(
        "never_increases_norm",
        lambda: optax.scale(2.0),
        "a gradient of norm 1 became 2",
    ),
    Fault("odd", squares, "reflected, update['"),
    Fault("scale_equivariant", lambda: optax.clip(1.0), "scaled by 4, update"),
    Fault("permutation_equivariant", by_position, "permuted, update"),
    Fault("leaf_separable", lambda: optax.clip_by_global_norm(1.0), "alone, update"),
]
