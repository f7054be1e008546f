"""The variants that every config has."""

from experiments.errors import UserError


def check(variant: str) -> None:
    """Raises if there is no such variant.

    Raises:
      UserError: it is neither ``full`` nor ``smoke``.
    """
    if variant not in ("full", "smoke"):
        raise UserError(f"config variant {variant}: must be full or smoke")
