"""Names of the axes of a mesh of devices."""

from experiments.common.types import Config

DATA, FSDP = "data", "fsdp"


def batch_axis(config: Config) -> str | None:
    """The axis over which statistics of a batch are to be taken, if it has a name."""
    return None if config.parallel == "jit" else DATA
