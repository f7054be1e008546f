"""Rules as arrays of integers, and one program that runs any of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._transform import transform as as_transform
from optax_heavytail.rules import _vocabulary
from optax_heavytail.rules._expression import Call, Rule
from optax_heavytail.rules._parse import as_rule, parse
from optax_heavytail.rules._vocabulary import BELLO

#: What a row can name: all of `BELLO` that is no schedule and not random.
PROGRAM_OPERANDS = tuple(
    parse(text)
    for text in (
        *("g", "g2", "g3", "m", "v", "gamma", "sign(g)", "sign(m)", "1", "2"),
        *("adam", "rmsprop", "1e-4 * w", "1e-3 * w", "1e-2 * w", "1e-1 * w"),
    )
)
#: The functions of one argument, ``x`` for none.
PROGRAM_UNARY = (
    "x",
    "neg",
    "exp",
    "log",
    "sqrt",
    "clip 1e-5",
    "clip 1e-4",
    "clip 1e-3",
    "sign",
)
#: The functions of two arguments, ``left`` for the first of them.
PROGRAM_BINARY = ("+", "-", "*", "/", "^", "left")
_IDENTITY, _LEFT = PROGRAM_UNARY.index("x"), PROGRAM_BINARY.index("left")


def encode(rule: str | Rule, slots: int) -> np.ndarray:
    """A rule as an array of integers.

    A row (op1, op2, u1, u2, b) is ``b(u1(op1), u2(op2))``. The operands are
    `PROGRAM_OPERANDS` and, behind them, the results of the rows above; the last row is
    the update. Rows that are not needed are at the top, and compute ``g``.

    Args:
      rule: a text of `BELLO`, or its tree, without ``noise``, ``anneal``, ``drop`` and
        schedules, and with the constants of `PROGRAM_OPERANDS`.
      slots: rows of the array, 1 or more.

    Returns:
      (slots, 5), int32. `decode` gives the rule back.

    Raises:
      ValueError: the rule takes more rows, or has what no row can say.

    Example:
      >>> import optax_heavytail as oht
      >>> oht.rules.encode("g * exp(sign(g) * sign(m))", slots=2).tolist()
      [[6, 7, 0, 0, 2], [0, 16, 0, 2, 2]]
    """
    _base.check_static_integer("slots", slots, 1)
    tree = as_rule(rule, BELLO, ())
    rows: list[tuple[int, ...]] = []
    places: dict[Rule, int] = {}
    if _place(tree, rows, places) < len(PROGRAM_OPERANDS):  # an operand by itself
        rows.append((places[tree], 0, _IDENTITY, _IDENTITY, _LEFT))
    if len(rows) > slots:
        raise ValueError(f"{tree}: takes {len(rows)} rows, and slots is {slots}")
    unused = slots - len(rows)
    moved = [
        tuple(
            x + unused if i < 2 and x >= len(PROGRAM_OPERANDS) else x
            for i, x in enumerate(r)
        )
        for r in rows
    ]
    filler = [(0, 0, _IDENTITY, _IDENTITY, _LEFT)] * unused
    return np.array([*filler, *moved], np.int32)


def decode(program: Any) -> Rule:
    """The rule of an array of `encode`, without what its update does not use.

    Args:
      program: (slots, 5), integers.

    Returns:
      Its tree.

    Raises:
      ValueError: it is no such array.

    Example:
      >>> import optax_heavytail as oht
      >>> str(oht.rules.decode([[10, 0, 0, 0, 5]]))
      'adam'
    """
    rows = np.asarray(program)
    if rows.ndim != 2 or rows.shape[1] != 5 or not len(rows) or rows.dtype.kind != "i":
        raise ValueError(f"a program is (slots, 5), of integers, got {rows!r}")
    bank: list[Rule] = list(PROGRAM_OPERANDS)
    for row in rows.tolist():
        op1, op2, u1, u2, b = row
        limits = (
            len(bank),
            len(bank),
            len(PROGRAM_UNARY),
            len(PROGRAM_UNARY),
            len(PROGRAM_BINARY),
        )
        if any(not 0 <= x < limit for x, limit in zip(row, limits, strict=True)):
            raise ValueError(f"row {row} of a program must be below {limits}")
        left = _with_unary(bank[op1], u1)
        right = _with_unary(bank[op2], u2)
        bank.append(left if b == _LEFT else Call(PROGRAM_BINARY[b], (left, right)))
    return bank[-1]


def _with_unary(rule: Rule, unary: int) -> Rule:
    name, *limit = PROGRAM_UNARY[unary].split()
    if unary == _IDENTITY:
        return rule
    return Call(name, (rule, *map(_number, limit)))


def _number(text: str) -> Rule:
    """The constant that a text is, also outside of `BELLO`."""
    return parse(text, vocabulary=_vocabulary.EXTENDED)


_UNARY_CALLS = {
    str(_with_unary(PROGRAM_OPERANDS[0], i)): i
    for i in range(len(PROGRAM_UNARY))
    if i != _IDENTITY
}


def _unary_of(rule: Rule) -> tuple[int, Rule] | None:
    """The unary function that a call is, and its argument."""
    if not isinstance(rule, Call):
        return None
    with_g = Call(rule.function, (PROGRAM_OPERANDS[0], *rule.args[1:]))
    found = _UNARY_CALLS.get(str(with_g))
    return None if found is None else (found, rule.args[0])


def _place(rule: Rule, rows: list[tuple[int, ...]], places: dict[Rule, int]) -> int:
    """Where the value of a rule is, in rows that are added for it."""
    if rule in PROGRAM_OPERANDS:
        places[rule] = PROGRAM_OPERANDS.index(rule)
    if rule not in places:
        unary = _unary_of(rule)
        if unary is not None:
            u1, inner = unary
            row = (_place(inner, rows, places), 0, u1, _IDENTITY, _LEFT)
        elif isinstance(rule, Call) and rule.function in PROGRAM_BINARY:
            row = _binary_row(rule, rows, places)
        else:
            raise ValueError(f"{rule}: is not among the operands of a program")
        rows.append(row)
        places[rule] = len(PROGRAM_OPERANDS) + len(rows) - 1
    return places[rule]


def _binary_row(rule, rows, places):
    sides = []
    for arg in rule.args:
        unary = None if arg in PROGRAM_OPERANDS or arg in places else _unary_of(arg)
        u, inner = (_IDENTITY, arg) if unary is None else unary
        sides.append((_place(inner, rows, places), u))
    (op1, u1), (op2, u2) = sides
    return (op1, op2, u1, u2, PROGRAM_BINARY.index(rule.function))


class InterpretState(NamedTuple):
    """State of `interpret`: the averages of all operands."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    m: Any  #: like the parameters, not corrected, as the next two
    v: Any
    gamma: Any


def interpret(
    program: Any,
    *,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    b3: jax.typing.ArrayLike = 0.999,
    delta: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Computes the update of a rule that is an array, which may be traced.

    One compiled program serves for all rules of a number of rows: to evaluate many,
    ``jax.lax.map`` over their arrays, where each step takes its branches alone, or
    ``jax.vmap``, where all branches are computed. A single rule is faster as
    `transform`, and takes less memory: here all averages are kept.

    Args:
      program: (slots, 5), int32, of `encode`.
      b1: decay of ``m``, in [0, 1).
      b2: decay of ``v``, in [0, 1).
      b3: decay of ``gamma``, in [0, 1).
      delta: what a quotient adds to its divisor, in [0, inf).

    Returns:
      A transform with an `InterpretState`. Its ``update`` needs the parameters. The
      update is that of `transform` up to rounding.

    Raises:
      ValueError: a concrete number is outside its range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> texts = ("g", "-sign(g)", "g * exp(sign(g) * sign(m))")
      >>> programs = jnp.stack([oht.rules.encode(text, slots=2) for text in texts])
      >>> def first_update(program):
      ...     tx, g = oht.rules.interpret(program), jnp.array([2.0])
      ...     return tx.update(g, tx.init(g), g)[0]
      >>> [round(u, 3) for u in jax.lax.map(first_update, programs).ravel().tolist()]
      [2.0, -1.0, 5.437]
    """
    for name, decay in (("b1", b1), ("b2", b2), ("b3", b3)):
        _base.check_range(name, decay, 0.0, 1.0, high_open=True)
    _base.check_range("delta", delta, 0.0, float("inf"))
    decays = {"m": b1, "v": b2, "gamma": b3}

    def init(params):
        zeros = _tree.zeros_like(params)
        return InterpretState(jnp.zeros([], jnp.int32), zeros, zeros, zeros)

    def update(grads, state, params):
        count = optax.safe_increment(state.count)
        averages = {
            name: optax.tree.update_moment(grads, getattr(state, name), decay, order)
            for order, (name, decay) in enumerate(decays.items(), 1)
        }
        weights = {n: 1 / _tree.debias_weight(d, count) for n, d in decays.items()}
        hats = {n: optax.tree.scale(weights[n], tree) for n, tree in averages.items()}

        def run(g, w, m, v, gamma):
            bank = _operand_values(g, w, m, v, gamma, delta)
            return _run_rows(program, bank, delta)

        updates = jax.tree.map(run, grads, params, *hats.values())
        return updates, InterpretState(count, **averages)

    return as_transform(init, update, needs_params=True)


def _operand_values(g, w, m, v, gamma, delta) -> list[jax.Array]:
    """Those of `PROGRAM_OPERANDS`, in their order."""
    root = _tree.safe_sqrt(v) + delta
    one = jnp.ones_like(g)
    signs = [jnp.sign(g), jnp.sign(m)]
    adaptive = [_tree.safe_divide(m, root), _tree.safe_divide(g, root)]
    decays = [scale * w for scale in _vocabulary.DECAYS]
    return [g, g**2, g**3, m, v, gamma, *signs, one, 2 * one, *adaptive, *decays]


def _functions(
    delta,
) -> tuple[Sequence[Callable[..., Any]], Sequence[Callable[..., Any]]]:
    table = _vocabulary.BELLO.functions

    def unary(text):
        name, *limit = text.split()
        if name == "x":
            return lambda x: x
        apply: Any = table[name].apply
        return lambda x: apply(x, *map(float, limit))

    def quotient(x, y):
        return _tree.safe_divide(x, y + delta)

    binary: list[Any] = [
        quotient if name == "/" else table[name].apply for name in PROGRAM_BINARY
    ]
    return list(map(unary, PROGRAM_UNARY)), binary


def _run_rows(program, operands, delta):
    unary, binary = _functions(delta)
    bank = jnp.stack(operands)
    for i in range(program.shape[0]):
        op1, op2, u1, u2, b = (program[i, k] for k in range(5))
        left = jax.lax.switch(u1, unary, bank[op1])
        right = jax.lax.switch(u2, unary, bank[op2])
        result = jax.lax.switch(b, binary, left, right)
        bank = jnp.concatenate([bank, result[None]])
    return bank[-1]
