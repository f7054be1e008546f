"""A search for update rules by evolution, with chance as its control.

Command: python -m experiments.search_rules \
    --config=experiments/configs/search_rules.py --workdir=runs/search_rules
Hardware: CPU cores.
Expected: with a tenth of its rules and a smaller population evolution is not below
    chance, but for the rules that it starts with: docs/evidence/rule_search.md.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.common.fields import (
    LARGEST_SEED,
    Field,
    choice,
    each_once,
    integer,
    number,
    several,
    text,
)
from experiments.common.types import Config
from experiments.configs import variants

VARIANTS = ("full", "short", "smoke")
LARGEST_POWER = 20  # of ten: float32 ends at 38
MOST_RATES = 100


def _are_rates(value: Any) -> bool:
    if not several(number(-LARGEST_POWER, LARGEST_POWER)).accepts(value[:2]):
        return False
    return (
        len(value) == 3
        and value[0] < value[1]
        and integer(2, MOST_RATES).accepts(value[2])
    )


_TIER = {
    "steps": integer(1, 10**6),
    "rates": Field(
        f"(first, last, number): two powers of ten within {LARGEST_POWER} of 0, the "
        f"first below the last, and an integer in [2, {MOST_RATES}]",
        lambda value: isinstance(value, tuple | list) and _are_rates(value),
    ),
    "seeds": integer(1, 100),
}
FIELDS: dict[str, Field] = {
    "methods": each_once(choice("evolution", "random", "enumerate", "given")),
    "seeds": each_once(integer(0, LARGEST_SEED)),
    "evaluations": integer(1),
    "slots": integer(1, 16),
    "chunk": integer(1, 4096),
    "second": integer(1),
    "third": integer(1),
    "held": integer(1, 1000),
    "given": text(),
    "evolution.population": integer(1, 10**6),
    "evolution.sample": integer(1, 10**6),
    **{f"tier{i}.{name}": field for i in (1, 2, 3) for name, field in _TIER.items()},
}


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``short`` is the whole of it with few rules."""
    variants.check_among(variant, VARIANTS)
    config = ConfigDict()
    # Also "enumerate", all rules of one row (slots=1), and "given", those of a file.
    config.methods = ("evolution", "random")
    config.seeds = (0, 1, 2)
    config.evaluations = 2000  # distinct rules of each method and seed
    config.slots = 3  # functions of two arguments
    config.chunk = 24  # programs at a time
    config.given = ""  # a file with a rule in each line
    config.evolution = ConfigDict({"population": 256, "sample": 8})
    config.second = 60  # rules that the second tier looks at
    config.third = 10  # of them, in float64 and on the holdout
    config.held = 8  # places of a run at which the holdout is looked at
    # The first and last of the rates, as powers of ten, and their number.
    config.tier1 = ConfigDict({"steps": 40, "rates": (-4.0, 0.0, 5), "seeds": 1})
    config.tier2 = ConfigDict({"steps": 150, "rates": (-4.0, 1.0, 11), "seeds": 2})
    config.tier3 = ConfigDict({"steps": 600, "rates": (-4.0, 1.0, 11), "seeds": 3})
    if variant == "short":
        config.seeds = (0,)
        config.evaluations = 120
        config.evolution.population = 32
        config.second, config.third, config.held = 12, 4, 3
        config.tier2.rates, config.tier2.seeds = (-4.0, 0.0, 5), 1
        config.tier3 = ConfigDict({"steps": 150, "rates": (-4.0, 0.0, 5), "seeds": 1})
    if variant == "smoke":
        config.seeds = (0,)
        config.evaluations, config.chunk = 8, 4
        config.evolution = ConfigDict({"population": 4, "sample": 2})
        config.second, config.third, config.held = 2, 1, 1
        for tier in (config.tier1, config.tier2, config.tier3):
            tier.steps, tier.rates, tier.seeds = 3, (-2.0, -1.0, 2), 1
    return config
