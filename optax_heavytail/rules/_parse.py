"""From text to trees, with errors that point at a character."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from optax_heavytail.rules._check import Fault, faults
from optax_heavytail.rules._expression import (
    LARGEST,
    MAX_DEPTH,
    Call,
    Name,
    Number,
    Rule,
)
from optax_heavytail.rules._vocabulary import BELLO, Vocabulary

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign>\*\*|[-+*/^(),]))"
)
_SUMS, _PRODUCTS = ("+", "-"), ("*", "/")


class RuleError(ValueError):
    """What is wrong with the text of a rule: one line, with the column, from 1."""

    def __init__(self, column: int, problem: str):
        super().__init__(f"column {column}: {problem}")
        self.column = column


class _Token(NamedTuple):
    kind: str  # "number", "name", "sign" or "end"
    text: str
    column: int


def parse(
    text: str, *, vocabulary: Vocabulary = BELLO, operands: Iterable[str] = ()
) -> Rule:
    r"""Reads a rule.

    The grammar is that of arithmetic, with Python's precedence and ``^`` for a power,
    which groups to the right: ``-g^2`` is ``-(g^2)``.

    Args:
      text: the rule, such as ``"g * exp(sign(g) * sign(m))"``.
      vocabulary: the names that it may have, `BELLO` or `EXTENDED`.
      operands: further names, of transforms that `transform` gets.

    Returns:
      A tree of `Number`, `Name` and `Call`. Its ``str`` is the canonical text: the
      fewest parentheses, the shortest decimals, the arguments of ``+`` and ``*`` in one
      order. ``parse(str(rule)) == rule``.

    Raises:
      RuleError: a `ValueError` of one line, with the column: the text is no rule, has
        an unknown name, a wrong count of arguments, a constant that is not finite in
        float32, or more than 64 levels.
      TypeError: ``text`` is no string.

    Example:
      >>> import optax_heavytail as oht
      >>> rule = oht.rules.parse("(1 + sign(m)*sign(g)) * g")
      >>> str(rule)
      'g * (1 + sign(g) * sign(m))'
      >>> try:
      ...     oht.rules.parse("g * sgn(m)")
      ... except oht.rules.RuleError as error:
      ...     print(error)
      column 5: unknown name 'sgn'; did you mean 'sign'?
    """
    if not isinstance(text, str):
        raise TypeError(f"a rule must be a string, got {text!r}.")
    parser = _Parser(list(_tokens(text)))
    rule = parser.whole()
    found = faults(rule, vocabulary, frozenset(operands))
    placed = [(parser.columns[id(fault.node)], fault) for fault in found]
    if placed:
        column, fault = min(placed, key=lambda pair: pair[0])
        raise RuleError(column, fault.problem)
    return rule


def as_rule(rule: str | Rule, vocabulary: Vocabulary, operands: Iterable[str]) -> Rule:
    """A rule from its text; of a tree the check is made without columns."""
    if isinstance(rule, Number | Name | Call):
        found: list[Fault] = faults(rule, vocabulary, frozenset(operands))
        if found:
            raise ValueError(f"{found[0].node}: {found[0].problem}")
        return rule
    return parse(rule, vocabulary=vocabulary, operands=operands)


def _tokens(text: str):
    place, end = 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            place += len(text[place:]) - len(text[place:].lstrip())
            raise RuleError(place + 1, f"unexpected character {text[place]!r}")
        kind = match.lastgroup or ""
        column = match.start(kind) + 1
        if match[kind] == "**":
            raise RuleError(column, "a power is written ^")
        yield _Token(kind, match[kind], column)
        place = match.end()
    yield _Token("end", "the end", end + 1)


class _Parser:
    """Recursive descent. ``columns`` has the place of each node, by its ``id``."""

    def __init__(self, tokens: list[_Token]):
        self.tokens = tokens
        self.place = 0
        self.nesting = 0
        self.columns: dict[int, int] = {}

    @property
    def now(self) -> _Token:
        return self.tokens[self.place]

    def take(self) -> _Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def at(self, signs: tuple[str, ...]) -> bool:
        return self.now.kind == "sign" and self.now.text in signs

    def whole(self) -> Rule:
        if self.now.kind == "end":
            raise RuleError(1, "the rule is empty")
        rule = self.sum()
        if self.now.kind != "end":
            raise self.unexpected("an operator or the end")
        return rule

    def sum(self) -> Rule:
        return self.chain(_SUMS, self.product)

    def product(self) -> Rule:
        return self.chain(_PRODUCTS, self.unary)

    def chain(self, signs, operand) -> Rule:
        rule = operand()
        while self.at(signs):
            sign = self.take()
            rule = self.call(sign.text, (rule, operand()), sign.column)
        return rule

    def unary(self) -> Rule:
        if not self.at(("-",)):
            return self.power()
        sign = self.deeper()
        rule = self.call("neg", (self.unary(),), sign.column)
        self.nesting -= 1
        return rule

    def power(self) -> Rule:
        base = self.atom()
        if not self.at(("^",)):
            return base
        sign = self.deeper()
        rule = self.call("^", (base, self.unary()), sign.column)
        self.nesting -= 1
        return rule

    def atom(self) -> Rule:
        token = self.now
        if token.kind == "number":
            return self.number(self.take())
        if token.kind == "name":
            self.take()
            if self.at(("(",)):
                return self.call(token.text, self.arguments(), token.column)
            return self.placed(Name(token.text), token.column)
        if self.at(("(",)):
            self.deeper()
            rule = self.sum()
            self.close()
            return rule
        raise self.unexpected("a number, a name or (")

    def arguments(self) -> tuple[Rule, ...]:
        self.deeper()
        if self.at((")",)):
            self.close()
            return ()
        args = [self.sum()]
        while self.at((",",)):
            self.take()
            args.append(self.sum())
        self.close()
        return tuple(args)

    def number(self, token: _Token) -> Rule:
        if not float(token.text) <= LARGEST:
            raise RuleError(
                token.column,
                f"{token.text} is not finite in float32, at most {LARGEST}",
            )
        return self.placed(Number(float(token.text)), token.column)

    def call(self, function: str, args: tuple[Rule, ...], column: int) -> Rule:
        try:
            return self.placed(Call(function, args), column)
        except ValueError as error:
            raise RuleError(column, str(error)) from None

    def placed(self, rule: Rule, column: int) -> Rule:
        self.columns[id(rule)] = column
        return rule

    def deeper(self) -> _Token:
        """Takes what opens a level: also parentheses that leave none in the tree."""
        self.nesting += 1
        if self.nesting > MAX_DEPTH:
            raise RuleError(
                self.now.column, f"a rule may be {MAX_DEPTH} levels deep, not more"
            )
        return self.take()

    def close(self) -> None:
        if not self.at((")",)):
            raise self.unexpected("an operator, a comma or )")
        self.take()
        self.nesting -= 1

    def unexpected(self, wanted: str) -> RuleError:
        found = self.now.text if self.now.kind == "end" else repr(self.now.text)
        return RuleError(self.now.column, f"expected {wanted}, found {found}")
