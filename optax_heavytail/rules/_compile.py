"""Gradient transformations out of rules."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._transform import wrapper
from optax_heavytail.rules import _values, _vocabulary
from optax_heavytail.rules._check import kind
from optax_heavytail.rules._expression import Call, Name, Rule, walk
from optax_heavytail.rules._parse import as_rule
from optax_heavytail.rules._vocabulary import ARRAY, BELLO, LEAF, Vocabulary


class RuleState(NamedTuple):
    """State of `transform`: of each rule what it needs, and no more."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    #: by name: ``m``, ``v``, ``gamma``, and the text of each ``ema``, like the
    #: parameters in float32 or wider, or one number where the average is of one; of
    #: each transform among the operands its state
    memory: dict[str, Any]
    key: jax.Array | None  #: (2,), uint32, of a rule with noise; else ``None``


def transform(
    rule: str | Rule,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    b3: jax.typing.ArrayLike = 0.999,
    delta: jax.typing.ArrayLike = 1e-8,
    total_steps: jax.typing.ArrayLike | None = None,
    seed: int = 0,
    vocabulary: Vocabulary = BELLO,
    operands: Mapping[str, optax.GradientTransformation] | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Computes the update that one line of text describes.

    Elementwise, with :math:`m_0 = v_0 = \gamma_0 = 0` and updates :math:`t \geq 1`, the
    operands are, beside the gradient :math:`g` and its powers,

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad
        \gamma_t = \beta_3 \gamma_{t-1} + (1 - \beta_3) g_t^3, \\
        \text{adam} &= \hat m_t / (\sqrt{\hat v_t} + \delta), \qquad
        \text{rmsprop} = g_t / (\sqrt{\hat v_t} + \delta),

    where ``m``, ``v`` and ``gamma`` stand for the corrected averages, such as
    :math:`\hat m_t = m_t / (1 - \beta_1^t)`. The page on rules has the table of all
    names. The update has the gradient's sign, as that of every ``scale_by_x``: chain it
    with `scale_by_learning_rate`.

    Args:
      rule: its text, such as ``"g * exp(sign(g) * sign(m))"``, or a tree of `parse`.
      b1: :math:`\beta_1` in [0, 1), per update.
      b2: :math:`\beta_2` in [0, 1), per update.
      b3: :math:`\beta_3` in [0, 1), per update.
      delta: :math:`\delta` in [0, inf). In `BELLO` also what a quotient adds to its
        divisor.
      total_steps: how many updates there are to be, in [1, inf); needed by ``ld``,
        ``cd`` and ``rd``, and by nothing else.
      seed: of the random numbers, for a rule with ``noise``, ``anneal`` or ``drop``.
      vocabulary: `BELLO` or `EXTENDED`.
      operands: further transforms by the names that the rule has for their updates.
        They see the gradients, and the parameters, as they come.
      axis_name: for parameters sharded by hand inside ``shard_map`` or ``pmap``: the
        mesh axis to take norms over, a tuple of axes, or a tree prefix of these with
        ``None`` for leaves that are replicated. Random numbers differ between shards.

    Returns:
      A transform with a `RuleState`. Updates keep the gradients' structure, shapes and
      dtypes; the arithmetic is float32 or wider. Its ``update`` needs the parameters if
      ``w`` occurs. What zero, huge, inf and NaN gradients do is up to the rule: a
      logarithm of 0 is -inf, an exponential overflows from 89 on, an average keeps an
      inf or NaN for good. A quotient by 0 is 0.

    Raises:
      RuleError: the text is no rule of the vocabulary; one line, with the column.
      ValueError: a concrete number is outside its range, a tree is no rule of the
        vocabulary, or ``total_steps`` is missing.
      TypeError: a parameter or gradient is not real floating-point, or an operand is no
        transform.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.rules.transform("g * exp(sign(g) * sign(m))")  # PowerSign
      >>> twin = oht.scale_by_powersign()
      >>> grads, state = jnp.array([1.0, -2.0]), twin.init(jnp.zeros(2))
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> bool(jnp.all(updates == twin.update(grads, state)[0]))
      True

    References:
      The language is after Bello et al., `Neural optimizer search with reinforcement
      learning <https://arxiv.org/abs/1709.07417>`_, 2017.
    """
    for name, decay in (("b1", b1), ("b2", b2), ("b3", b3)):
        _base.check_range(name, decay, 0.0, 1.0, high_open=True)
    _base.check_range("delta", delta, 0.0, float("inf"))
    if total_steps is not None:
        _base.check_range("total_steps", total_steps, 1.0, float("inf"))
    _base.check_static_integer("seed", seed, 0)
    inner = _operands(operands, vocabulary)
    tree = as_rule(rule, vocabulary, inner)
    _check_steps(tree, total_steps)
    names = {node.name for node in walk(tree) if isinstance(node, Name)}
    inner = {name: tx for name, tx in inner.items() if name in names}
    decays = {"m": b1, "v": b2, "gamma": b3}
    settings = _values.Settings(decays, delta, total_steps, axis_name)

    def init(params):
        memory = {name: _zeros(k, params) for name, k in _averages(tree).items()}
        memory |= {name: tx.init(params) for name, tx in inner.items()}
        key = jax.random.key_data(jax.random.key(seed, impl=_values.KEY))
        return RuleState(
            jnp.zeros([], jnp.int32), memory, key if _is_random(tree) else None
        )

    def update(updates, state, params, **extra_args):
        for name, k in _averages(tree).items():
            if k != _vocabulary.NUMBER:
                _base.check_alike(state.memory[name], updates, f"the average {name}")
        found, states = {}, {}
        for name, tx in inner.items():
            made, states[name] = tx.update(
                updates, state.memory[name], params, **extra_args
            )
            found[name] = jax.tree.leaves(_tree.at_least_float32(made))
        grads, weights = map(_tree.at_least_float32, (updates, params))
        step = _values.Step(vocabulary, settings, grads, weights, state, found)
        new_updates = step.whole(tree)
        new_state = RuleState(step.count, step.memory | states, step.key)
        new_state = _tree.cast_like(new_state, state)
        return _tree.cast_like(new_updates, updates), new_state

    return wrapper(init, update, needs_params="w" in names)


def _operands(operands, vocabulary) -> dict[str, Any]:
    operands = {} if operands is None else dict(operands)
    for name, tx in operands.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"the name of an operand must be a word, got {name!r}.")
        if name in {*vocabulary.operands, *vocabulary.functions}:
            raise ValueError(f"{name} has a meaning in {vocabulary.name} already.")
        _base.check_transform(f"operands[{name!r}]", tx)
    return {name: optax.with_extra_args_support(tx) for name, tx in operands.items()}


def _check_steps(tree: Rule, total_steps: Any) -> None:
    scheduled = [
        node
        for node in walk(tree)
        if getattr(node, "name", "") in _vocabulary.SCHEDULED
        or getattr(node, "function", "") in _vocabulary.SCHEDULED
    ]
    if scheduled and total_steps is None:
        raise ValueError(f"total_steps must be given, as the rule has {scheduled[0]}.")


def _is_random(tree: Rule) -> bool:
    return any(
        getattr(node, "name", "") in _vocabulary.RANDOM
        or getattr(node, "function", "") in _vocabulary.RANDOM
        for node in walk(tree)
    )


def _averages(tree: Rule) -> dict[str, str]:
    """The averages that a rule keeps, with the kind of each."""
    kept = {}
    for node in walk(tree):
        if isinstance(node, Name):
            kept |= dict.fromkeys(_values.AVERAGES.get(node.name, ()), ARRAY)
        elif isinstance(node, Call) and node.function in ("ema", "ema_hat"):
            kept[_values.memory_of(node)] = kind(node)
    return kept


def _zeros(kind_: str, params: Any) -> Any:
    if kind_ == ARRAY:
        return _tree.zeros_like(params)
    if kind_ == LEAF:
        return jax.tree.map(lambda p: jnp.zeros([], _tree.wide_dtype(p)), params)
    return jnp.zeros([], jnp.result_type(jnp.float32, *jax.tree.leaves(params)))


def cost(rule: Rule) -> tuple[int, int]:
    """What a rule costs.

    Args:
      rule: a tree of `parse`.

    Returns:
      Its nodes, and the arrays of the parameters' shapes that its state has, without
      those of transforms among its operands.

    Example:
      >>> import optax_heavytail as oht
      >>> oht.rules.cost(oht.rules.parse("adam * exp(sign(g) * sign(m))"))
      (8, 2)
    """
    return rule.nodes, sum(k == ARRAY for k in _averages(rule).values())
