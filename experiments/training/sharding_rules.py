"""Which parameters lie in parts on the devices, by their paths."""

import re
from typing import NamedTuple

from experiments.common.axes import DATA, FSDP
from experiments.common.errors import UserError
from experiments.common.types import Config


class Rule(NamedTuple):
    """Where parameters lie whose path contains the regular expression."""

    pattern: str
    spec: tuple[str | None, ...]  # a mesh axis for each axis of the parameter, or None


def build(config: Config) -> tuple[Rule, ...]:
    """The rules of ``config.sharding_rules``.

    Raises:
      UserError: one is not a regular expression and names of axes, or has the axis of
        the rows where parameters must be whole on each device.
    """
    rules = tuple(map(_rule, config.sharding_rules))
    for rule in rules:
        if config.parallel != "jit" and DATA in rule.spec:
            raise UserError(
                f"config.sharding_rules: {rule.pattern!r} names {DATA}, along which "
                f"config.parallel={config.parallel} lays the rows alone"
            )
    return rules


def _rule(rule: tuple[str, tuple[str | None, ...]]) -> Rule:
    try:
        pattern, spec = rule
        re.compile(pattern + "")
        names = [name for name in spec if name is not None]
        is_known = len(set(names)) == len(names) and {DATA, FSDP}.issuperset(names)
    except (TypeError, ValueError, re.error) as error:
        raise UserError(
            f"config.sharding_rules: {rule!r} must be a regular expression and a mesh "
            f"axis or None for each axis of the parameter ({error})"
        ) from None
    if not is_known:
        raise UserError(
            f"config.sharding_rules: {rule!r} names an axis that is not {DATA} or "
            f"{FSDP}, or one of them twice"
        )
    return Rule(pattern, tuple(spec))
