"""A search for update rules by evolution, with chance as its control.

Command: python -m experiments.search_rules \
    --config=experiments/configs/search_rules.py --workdir=runs/search_rules
Hardware: CPU cores.
Expected: not measured yet: whether evolution is below chance after as many rules.
"""

from ml_collections import ConfigDict

from experiments.common.errors import UserError
from experiments.common.fields import Field, choice, integer, number, several, text
from experiments.common.types import Config

VARIANTS = ("full", "short", "smoke")
_TIER = {
    "steps": integer(1, 10**6),
    "rates": several(number(-20, 20), least=3),
    "seeds": integer(1, 100),
}
FIELDS: dict[str, Field] = {
    "methods": several(choice("evolution", "random", "enumerate", "given"), least=1),
    "seeds": several(integer(0), least=1),
    "evaluations": integer(1),
    "slots": integer(1, 16),
    "chunk": integer(1, 4096),
    "second": integer(1),
    "third": integer(1),
    "held": integer(1, 1000),
    "given": text(),
    "evolution.population": integer(1),
    "evolution.sample": integer(1),
    **{f"tier{i}.{name}": field for i in (1, 2, 3) for name, field in _TIER.items()},
}


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``short`` is the whole of it with few rules."""
    if variant not in VARIANTS:
        raise UserError(
            f"config variant {variant}: must be {', '.join(VARIANTS[:-1])} or "
            f"{VARIANTS[-1]}"
        )
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
