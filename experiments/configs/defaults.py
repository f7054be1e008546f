"""What every config of a run starts from."""

from ml_collections import ConfigDict

from experiments.common.types import Config


def run_config() -> Config:
    """Fields of the trainer itself, with what they usually are."""
    config = ConfigDict()
    config.seed = 0
    config.warmup_fraction = 0.1

    # Rows of a step are cut into this many microbatches, one after the other.
    config.accumulate = 1
    # The batch grows up to so many rows, where the learning rate would fall; 0: never.
    config.max_batch_size = 0
    # How the gradients of microbatches, and of devices under "shard_map" and "pmap",
    # become one: names and arguments as in `optax_heavytail.aggregation`.
    config.aggregation = {"name": "mean", "kwargs": {}}

    # Norms, update ratios and their quantiles of each leaf, in the records of training:
    # `optax_heavytail.diagnostics.monitor` around the optimizer.
    config.monitor = False

    # Saved every so many steps; kept: so many of the last ones, and the best.
    config.checkpoint = ConfigDict({"every": 1000, "keep": 2})

    config.num_devices = 0  # all there are
    # Devices that the sizes are meant for; the tests check shapes on a mesh of so many.
    config.target_devices = 1
    config.parallel = "jit"  # or "shard_map" or "pmap"
    config.fsdp = 1  # devices that share each sharded parameter
    # (regular expression in the parameter's path, mesh axis or None for each axis): the
    # first that fits says how it lies; without one every device has the whole.
    config.sharding_rules = ()
    return config
