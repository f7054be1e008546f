"""Whether a tree is a rule of a vocabulary, and of what kind its values are."""

import difflib
from collections.abc import Collection
from typing import NamedTuple

from optax_heavytail.rules import _vocabulary
from optax_heavytail.rules._expression import Call, Name, Number, Rule, walk
from optax_heavytail.rules._vocabulary import ARRAY, LEAF, NUMBER, Vocabulary


class Fault(NamedTuple):
    """A node, and what is wrong with it."""

    node: Rule
    problem: str


def faults(
    rule: Rule, vocabulary: Vocabulary, operands: Collection[str]
) -> list[Fault]:
    """All that is wrong with a tree."""
    found = []
    for node in walk(rule):
        if isinstance(node, Name):
            found += _of_name(node, vocabulary, operands)
        elif isinstance(node, Call):
            found += _of_call(node, vocabulary, operands)
    if vocabulary.is_bello:
        found += _of_numbers(rule)
    return found


def kind(rule: Rule) -> str:
    """Whether the values are arrays like the leaves, one number each, or one number."""
    if isinstance(rule, Number):
        return NUMBER
    if isinstance(rule, Name):  # an unknown one is a transform's, or at fault elsewhere
        return _vocabulary.EXTENDED.operands.get(rule.name, ARRAY)
    function = _vocabulary.EXTENDED.functions.get(rule.function)
    if function is not None and function.kind is not None:
        return function.kind
    kinds = {kind(arg) for arg in rule.args}
    return next((k for k in (ARRAY, LEAF) if k in kinds), NUMBER)


def _unknown(node: Rule, name: str, others: Collection[str], where: str) -> Fault:
    extended = _vocabulary.EXTENDED
    if where == "BELLO" and name in {*extended.functions, *extended.operands}:
        return Fault(node, f"'{name}' is in the vocabulary EXTENDED, and not in BELLO")
    words = [other for other in others if other.isidentifier() and other != "neg"]
    close = difflib.get_close_matches(name, words, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(words)}"
    return Fault(node, f"unknown name '{name}'; {hint}")


def _of_name(node, vocabulary, operands):
    known = {*vocabulary.operands, *operands}
    if node.name in known:
        return []
    if node.name in vocabulary.functions:
        return [Fault(node, f"'{node.name}' is a function, and has no arguments here")]
    return [_unknown(node, node.name, sorted(known), vocabulary.name)]


def _of_call(node, vocabulary, operands):
    name = node.function
    function = vocabulary.functions.get(name)
    if function is None and name in {*vocabulary.operands, *operands}:
        return [Fault(node, f"'{name}' is no function, and takes no arguments")]
    if function is None:
        return [_unknown(node, name, list(vocabulary.functions), vocabulary.name)]
    if len(node.args) != function.arity:
        plural = "" if function.arity == 1 else "s"
        return [
            Fault(
                node,
                f"'{name}' takes {function.arity} argument{plural}, "
                f"got {len(node.args)}",
            )
        ]
    found = _of_literal(node, function.literal) if function.literal else []
    if function.wants_array and kind(node.args[0]) != ARRAY:
        found.append(
            Fault(node, f"'{name}' is of an array, and {node.args[0]} is a number")
        )
    if name == "prev" and getattr(node.args[0], "function", "") != "ema":
        found.append(Fault(node, f"'prev' is of an ema, got {node.args[0]}"))
    return found


def _of_literal(node, literal):
    last = node.args[-1]
    end = ")" if literal.high_open else "]"
    allowed = f"[0, {literal.high:g}{end}"
    if not isinstance(last, Number):
        return [
            Fault(node, f"{literal.name} must be a number in {allowed}, got {last}")
        ]
    inside = (
        last.value < literal.high if literal.high_open else last.value <= literal.high
    )
    if inside:
        return []
    return [Fault(last, f"{literal.name} must be in {allowed}, got {last}")]


def _of_numbers(rule):
    """Constants that the paper's vocabulary does not have."""
    allowed = set()  # by identity: what is allowed depends on where it stands
    for node in walk(rule):
        if isinstance(node, Call) and node.args:
            allowed |= {id(n) for n in _allowed_in(node)}
    return [
        Fault(
            node,
            f"{node} is no constant of the vocabulary BELLO, which has 1 and 2, and "
            "1e-4, 1e-3, 1e-2, 1e-1 times w; EXTENDED has all",
        )
        for node in walk(rule)
        if isinstance(node, Number)
        and node.value not in _vocabulary.NUMBERS
        and id(node) not in allowed
    ]


def _allowed_in(call):
    function = _vocabulary.BELLO.functions.get(call.function)
    last = call.args[-1]
    if function is not None and function.literal:
        yield last
    if call.function == "*" and Name("w") in call.args:
        yield from (
            a for a in call.args if getattr(a, "value", 0) in _vocabulary.DECAYS
        )
    if call.function == "^" and call.args[0] == Name("g") and last == Number(3):
        yield last
