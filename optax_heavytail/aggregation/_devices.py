"""The microbatches of the devices of a mesh axis."""

from collections.abc import Callable
from typing import Any

import jax


def over_devices(fn: Callable[..., Any], axis_name: Any) -> Callable[..., Any]:
    """Makes a function of this module take one microbatch from each device.

    For use inside ``jax.shard_map`` and ``jax.pmap``. Every device gathers the
    gradients of all of them and takes ``fn`` of these n, so that all have the same
    result, which ``shard_map`` knows: ``out_specs`` may be ``P()``. For a mean
    ``jax.lax.pmean`` or ``jax.lax.psum`` of a `RunningMean` needs the memory of one
    gradient instead of n.

    Args:
      fn: a function of a tree with a leading axis of n, such as `coordinate_median` or
        ``functools.partial(trimmed_mean, trim=1)``.
      axis_name: the mesh axis to gather over, or a tuple of axes.

    Returns:
      A function of this device's gradients, without the leading axis, which passes on
      its keyword arguments. ``weights`` is this device's own weight, if it is given.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> from optax_heavytail import aggregation
      >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
      >>> grads = jnp.full(jax.device_count(), 3.0)
      >>> aggregate = aggregation.over_devices(aggregation.coordinate_median, "data")
      >>> with jax.set_mesh(mesh):
      ...     aggregate = jax.shard_map(aggregate, in_specs=P("data"), out_specs=P())
      ...     jax.jit(aggregate)(jax.device_put(grads, P("data"))).item()
      3.0
    """

    def gather(x):
        return jax.lax.all_gather(x, axis_name, to="invarying")

    def aggregate(grads: Any, *, weights: Any = None, **kwargs: Any) -> Any:
        if weights is not None:
            kwargs["weights"] = gather(weights)
        return fn(jax.tree.map(gather, grads), **kwargs)

    return aggregate
