"""The variants that every config has."""

from collections.abc import Sequence

from experiments.common.errors import UserError
from experiments.common.types import Config


def check(variant: str, *others: str) -> None:
    """Raises if there is no such variant.

    Raises:
      UserError: it is neither ``full`` nor ``smoke``, nor one of ``others``.
    """
    check_among(variant, ("full", "smoke", *others))


def check_among(variant: str, allowed: Sequence[str]) -> None:
    """Raises if it is none of these.

    Raises:
      UserError: naming them in their order.
    """
    if variant not in allowed:
        raise UserError(
            f"config variant {variant}: must be {', '.join(allowed[:-1])} or "
            f"{allowed[-1]}"
        )


def shorten(config: Config, rows: int) -> None:
    """Two steps on any device, in at most 2 microbatches of ``rows`` rows."""
    config.steps = 2
    config.accumulate = min(config.accumulate, 2)
    config.batch_size = rows * config.accumulate
    config.log_every = config.eval_every = 1
    config.target_devices = config.fsdp = 1
