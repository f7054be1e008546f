"""What the nodes of a rule are in one update."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _norms, _tree
from optax_heavytail.rules._expression import Call, Name, Number, Rule

KEY = "threefry2x32"
_NOISE = 0.01  # standard deviation

# The averages of powers of the gradient that an operand needs.
AVERAGES = {
    "m": ("m",),
    "v": ("v",),
    "gamma": ("gamma",),
    "adam": ("m", "v"),
    "rmsprop": ("v",),
}
_ORDERS = {"m": 1, "v": 2, "gamma": 3}


class Settings(NamedTuple):
    """The numbers of a rule that are not in its text."""

    decays: dict[str, Any]  # of m, v and gamma
    delta: Any
    total_steps: Any
    axis_name: Any


class Step:
    """One update: values by node, each a list over leaves or one number.

    A node that occurs twice is evaluated once. ``memory`` is filled on the way.
    """

    def __init__(self, vocabulary, settings, grads, params, state, operands):
        self.vocabulary = vocabulary
        self.settings: Settings = settings
        self.grads, self.treedef = jax.tree.flatten(grads)
        self.params = jax.tree.leaves(params)
        self.state = state
        self.count = optax.safe_increment(state.count)
        self.memory: dict[str, Any] = {}
        self.operands: dict[str, list[jax.Array]] = operands
        self.done: dict[Rule, Any] = {}
        self.key = None
        if state.key is not None:
            key, self.now = jax.random.split(
                jax.random.wrap_key_data(state.key, impl=KEY)
            )
            self.key = jax.random.key_data(key)

    def value(self, node: Rule) -> Any:
        """A list over the leaves, of arrays or of numbers, or one number."""
        if node not in self.done:
            self.done[node] = self._value(node)
        return self.done[node]

    def _value(self, node: Rule) -> Any:
        if isinstance(node, Number):
            return node.value
        if isinstance(node, Name):
            if node.name in self.operands:
                return self.operands[node.name]
            return _OPERANDS[node.name](self)
        special = _FUNCTIONS.get(node.function)
        if special is not None:
            return special(self, node)
        apply = self.vocabulary.functions[node.function].apply
        return self.map(apply, *map(self.value, node.args))

    def whole(self, rule: Rule) -> Any:
        """The update of each leaf, in the structure of the gradients."""
        update = self.value(rule)
        spread = self.map(lambda g, u: jnp.broadcast_to(u, g.shape), self.grads, update)
        return self.treedef.unflatten(spread)

    def map(self, function: Callable[..., Any], *args: Any) -> Any:
        """Leaf by leaf where one of the arguments has leaves."""
        if not any(isinstance(arg, list) for arg in args):
            return function(*args)
        return [
            function(*(arg[i] if isinstance(arg, list) else arg for arg in args))
            for i in range(len(self.grads))
        ]

    def average(self, name: str, x: Any, decay: Any) -> Any:
        """The average of that name in the memory, moved towards ``x``."""
        if name not in self.memory:
            old = self.past(name, x)
            new = self.map(lambda m, now: (1 - decay) * now + decay * m, old, x)
            is_list = isinstance(x, list)
            self.memory[name] = self.treedef.unflatten(new) if is_list else new
        new = self.memory[name]
        return jax.tree.leaves(new) if isinstance(x, list) else new

    def past(self, name: str, like: Any) -> Any:
        """What the memory was before this update: a list where ``like`` is one."""
        old = self.state.memory[name]
        return jax.tree.leaves(old) if isinstance(like, list) else old

    def moment(self, name: str) -> list[jax.Array]:
        """A running average of a power of the gradient, not corrected."""
        if name not in self.memory:
            order, decay = _ORDERS[name], self.settings.decays[name]
            old = jax.tree.leaves(self.state.memory[name])
            new = optax.tree.update_moment(self.grads, old, decay, order)
            self.memory[name] = self.treedef.unflatten(new)
        return jax.tree.leaves(self.memory[name])

    def corrected(self, name: str) -> list[jax.Array]:
        """The same, corrected for its start at 0."""
        average, decay = self.moment(name), self.settings.decays[name]
        if name == "m":  # bits of `ema` and `scale_by_adam`
            return optax.tree.bias_correction(average, decay, self.count)
        return optax.tree.scale(1 / _tree.debias_weight(decay, self.count), average)

    def time(self) -> Any:
        """The share of the steps that is over."""
        total = jnp.asarray(self.settings.total_steps, jnp.result_type(float))
        return self.state.count / total

    def draw(self, name: str, sample: Callable[[jax.Array, Any], jax.Array]) -> Any:
        """Random numbers of each leaf, others for each name, leaf and update."""
        key = jax.random.fold_in(self.now, zlib.crc32(name.encode()) % 2**31)
        axes = _norms.leaf_axes(self.settings.axis_name, self.grads_tree())
        drawn = []
        for i, (g, axis) in enumerate(zip(self.grads, axes, strict=True)):
            own = jax.random.fold_in(key, i)
            if axis is not None:  # other numbers in each shard
                own = jax.random.fold_in(own, jax.lax.axis_index(axis))
            drawn.append(sample(own, g.shape).astype(g.dtype))
        return drawn

    def grads_tree(self) -> Any:
        """The gradients with their structure."""
        return self.treedef.unflatten(self.grads)

    def norms(self, x: list[jax.Array]) -> list[Any]:
        """The norm of each leaf."""
        tree = self.treedef.unflatten(x)
        norms = _norms.leaf_norms(tree, self.settings.axis_name)
        return [n.value for n in jax.tree.leaves(norms, is_leaf=_norms.is_norm)]


def _power_of(order: int) -> Callable[[Step], list[jax.Array]]:
    return lambda step: [jax.lax.integer_pow(g, order) for g in step.grads]


def _adam(step):
    return _tree.divide_by_root(
        step.corrected("m"), step.corrected("v"), step.settings.delta
    )


def _rmsprop(step):
    return _tree.divide_by_root(step.grads, step.corrected("v"), step.settings.delta)


def _normal(key, shape):
    return jax.random.normal(key, shape, jnp.float32)


def _uniform(key, shape):
    return jax.random.uniform(key, shape, jnp.float32)


def _anneal(step):
    size = (1 + jnp.asarray(step.state.count, jnp.result_type(float))) ** (-0.55 / 2)
    return [size * x for x in step.draw("anneal", _normal)]


_OPERANDS: dict[str, Callable[[Step], Any]] = {
    "g": _power_of(1),
    "g2": _power_of(2),
    "g3": _power_of(3),
    "m": lambda step: step.corrected("m"),
    "v": lambda step: step.corrected("v"),
    "gamma": lambda step: step.corrected("gamma"),
    "w": lambda step: step.params,
    "adam": _adam,
    "rmsprop": _rmsprop,
    "noise": lambda step: [_NOISE * x for x in step.draw("noise", _normal)],
    "anneal": _anneal,
    "ld": lambda step: 1 - jnp.minimum(step.time(), 1),
}


def memory_of(node: Call) -> str:
    """The name of the average that an ``ema`` or ``ema_hat`` keeps."""
    return str(Call("ema", node.args))


def _ema(step: Step, node: Call) -> Any:
    return step.average(memory_of(node), *map(step.value, node.args))


def _ema_hat(step: Step, node: Call) -> Any:
    factor = 1 / _tree.debias_weight(step.value(node.args[1]), step.count)
    return step.map(lambda x: x * factor, _ema(step, node))


def _prev(step: Step, node: Call) -> Any:
    average: Any = node.args[0]  # an `ema`, as is checked
    now = step.value(average)  # kept for the next update
    return step.past(memory_of(average), now)


def _divide(step: Step, node: Call) -> Any:
    delta = step.settings.delta if step.vocabulary.is_bello else None

    def quotient(a, b):
        b = jnp.asarray(b)
        return _tree.safe_divide(a, b if delta is None else b + delta)

    return step.map(quotient, *map(step.value, node.args))


def _drop(step: Step, node: Call) -> Any:
    x, probability = map(step.value, node.args)
    drawn = step.draw(str(node), _uniform)
    return step.map(lambda a, u: jnp.where(u >= probability, a, 0), x, drawn)


def _norm(step: Step, node: Call) -> Any:
    tree = step.treedef.unflatten(step.value(node.args[0]))
    return _norms.global_norm(tree, step.settings.axis_name).value


def _norm_leaf(step: Step, node: Call) -> Any:
    return step.norms(step.value(node.args[0]))


def _rms(step: Step, node: Call) -> Any:
    tree = step.grads_tree()
    axes = _norms.leaf_axes(step.settings.axis_name, tree)
    norms = step.norms(step.value(node.args[0]))
    return [
        _tree.safe_divide(
            norm, _norms.psum(jnp.asarray(g.size, norm.dtype), axis) ** 0.5
        )
        for norm, g, axis in zip(norms, step.grads, axes, strict=True)
    ]


def _cd(step: Step, node: Call) -> Any:
    turns = step.value(node.args[0]) * jnp.minimum(step.time(), 1)
    return (1 + jnp.cos(2 * jnp.pi * turns)) / 2


def _rd(step: Step, node: Call) -> Any:
    return (1 + jnp.cos(jnp.pi * (step.value(node.args[0]) * step.time() % 1))) / 2


_FUNCTIONS: dict[str, Callable[[Step, Call], Any]] = {
    "/": _divide,
    "drop": _drop,
    "cd": _cd,
    "rd": _rd,
    "ema": _ema,
    "ema_hat": _ema_hat,
    "prev": _prev,
    "norm": _norm,
    "norm_leaf": _norm_leaf,
    "rms": _rms,
}
