"""What the names of a rule mean: the two vocabularies, in tables."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_heavytail import _tree

ARRAY, LEAF, NUMBER = "array", "leaf", "number"  # kinds of a value, the widest first


class Literal(NamedTuple):
    """What a last argument that is written as a number may be."""

    name: str
    high: float  # from 0
    high_open: bool = False


class Function(NamedTuple):
    """A function of a vocabulary."""

    arity: int
    #: of its values, elementwise; ``None`` where it needs more than these
    apply: Callable[..., Any] | None = None
    literal: Literal | None = None  #: its last argument, if that is a constant
    wants_array: bool = False  #: whether its first argument must be one
    kind: str | None = None  #: of its value; ``None``: the widest of its arguments


class Vocabulary(NamedTuple):
    """The names that a rule may have."""

    name: str
    functions: Mapping[str, Function]
    operands: Mapping[str, str]  #: the kind of each
    is_bello: bool  #: whether constants are those of the paper, and quotients damped


def log_abs(x: Any) -> jax.Array:
    """The logarithm of the size; -inf at 0."""
    return jnp.log(jnp.abs(x))


def sqrt_abs(x: Any) -> jax.Array:
    """The root of the size, with a slope of 0 at 0."""
    return _tree.safe_sqrt(jnp.abs(x))


def power(x: Any, y: Any) -> Any:
    """``x^y``, a number also for a negative ``x``: where y is not whole, of x's sign.

    A whole constant is multiplied out.
    """
    if isinstance(y, float) and y.is_integer() and y <= 8:
        return jax.lax.integer_pow(jnp.asarray(x), int(y))
    y = jnp.asarray(y)
    sign = jnp.where(y % 2 == 0, 1.0, jnp.sign(x))
    return sign * jnp.abs(x) ** y


def clip(x: Any, limit: Any) -> jax.Array:
    """Entries within ``[-limit, limit]``."""
    return jnp.clip(x, -limit, limit)


def left(x: Any, y: Any) -> Any:
    """The first argument."""
    del y
    return x


_ARITHMETIC = {
    "+": Function(2, operator.add),
    "-": Function(2, operator.sub),
    "*": Function(2, operator.mul),
    "/": Function(2),  # damped in one vocabulary, and exact in the other
    "^": Function(2, power),
    "neg": Function(1, operator.neg),
}
# After Bello et al. 2017 (arXiv:1709.07417), section 4.1, as remembered: the tables
# were not compared with the paper line by line.
_BELLO_FUNCTIONS = _ARITHMETIC | {
    "exp": Function(1, jnp.exp),
    "log": Function(1, log_abs),
    "sqrt": Function(1, sqrt_abs),
    "sign": Function(1, jnp.sign),
    "clip": Function(2, clip, Literal("the limit", float("inf"))),
    "drop": Function(2, literal=Literal("the probability", 1.0), wants_array=True),
    "left": Function(2, left),
    "cd": Function(1, literal=Literal("the number of periods", float("inf"))),
    "rd": Function(1, literal=Literal("the number of periods", float("inf"))),
}
_BELLO_OPERANDS = dict.fromkeys(
    ("g", "g2", "g3", "m", "v", "gamma", "noise", "w", "adam", "rmsprop", "anneal"),
    ARRAY,
) | {"ld": NUMBER}
_DECAY = Literal("the decay", 1.0, high_open=True)
_EXTENDED_FUNCTIONS = _BELLO_FUNCTIONS | {
    "abs": Function(1, jnp.abs),
    "square": Function(1, jnp.square),
    "max": Function(2, _tree.maximum),
    "min": Function(2, _tree.minimum),
    "tanh": Function(1, jnp.tanh),
    "ema": Function(2, literal=_DECAY),
    "ema_hat": Function(2, literal=_DECAY),
    "prev": Function(1),
    "norm": Function(1, wants_array=True, kind=NUMBER),
    "norm_leaf": Function(1, wants_array=True, kind=LEAF),
    "rms": Function(1, wants_array=True, kind=LEAF),
}

#: After Bello et al. 2017, section 4.1: the operands, functions and constants of their
#: search. ``x / y`` is ``x / (y + delta)``.
BELLO = Vocabulary("BELLO", _BELLO_FUNCTIONS, _BELLO_OPERANDS, is_bello=True)

#: All of `BELLO` with any constants, more functions, averages and norms. ``x / y`` is
#: the quotient itself, and 0 where y is 0.
EXTENDED = Vocabulary("EXTENDED", _EXTENDED_FUNCTIONS, _BELLO_OPERANDS, is_bello=False)

NUMBERS = (1.0, 2.0)  # of BELLO
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # times w
SCHEDULED = ("ld", "cd", "rd")  # need the number of steps
RANDOM = ("noise", "anneal", "drop")  # need a key
