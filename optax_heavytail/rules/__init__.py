"""Update rules as one line of text.

.. code-block:: python

    from optax_heavytail import rules

    tx = rules.transform("g * exp(sign(g) * sign(m))")  # PowerSign

A rule is an expression in the gradient ``g``, its averages and the parameters. `parse`
reads it, `transform` makes an ordinary transform of it, and `fingerprint` tells whether
two rules do the same. `BELLO` and `EXTENDED` are the names that a rule may have, and
`KNOWN` are rules that are transforms under other names.
"""

from optax_heavytail.rules._compile import RuleState, cost, transform
from optax_heavytail.rules._expression import Call, Name, Number
from optax_heavytail.rules._fingerprint import fingerprint, fingerprints
from optax_heavytail.rules._known import KNOWN, Known
from optax_heavytail.rules._parse import RuleError, parse
from optax_heavytail.rules._program import (
    PROGRAM_BINARY,
    PROGRAM_OPERANDS,
    PROGRAM_UNARY,
    InterpretState,
    decode,
    encode,
    interpret,
)
from optax_heavytail.rules._vocabulary import BELLO, EXTENDED, Vocabulary

__all__ = [
    "BELLO",
    "EXTENDED",
    "KNOWN",
    "PROGRAM_BINARY",
    "PROGRAM_OPERANDS",
    "PROGRAM_UNARY",
    "Call",
    "InterpretState",
    "Known",
    "Name",
    "Number",
    "RuleError",
    "RuleState",
    "Vocabulary",
    "cost",
    "decode",
    "encode",
    "fingerprint",
    "fingerprints",
    "interpret",
    "parse",
    "transform",
]
