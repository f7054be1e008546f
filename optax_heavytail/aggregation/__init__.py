"""One gradient out of the gradients of n microbatches.

.. code-block:: python

    from optax_heavytail import aggregation

    grads = jax.lax.map(grad_fn, microbatches)  # every leaf starts with an axis of n
    grads = aggregation.geometric_median(grads)

The functions are pure and take a tree whose every leaf has a leading axis of n, one
entry per microbatch. They return the tree without that axis, in the leaves' own dtypes;
the arithmetic is float32 or wider. They work under ``jax.jit``, ``jax.vmap`` and any
sharding, and `over_devices` takes the microbatches from the devices of a mesh axis.
`RunningMean` needs no such axis: it adds microbatch to microbatch.
`aggregate_with_error_feedback` is a transform: it remembers each worker.

Some microbatches are *corrupted*: their gradients may be anything, inf and NaN
included. With M bytes of one gradient in float32:

====================  =============================  ==========================
function              corrupted that it survives     memory beside n gradients
====================  =============================  ==========================
`RunningMean`         none                           M, without the n gradients
`mean`                none                           M
`mean_of_clipped`     none is ruled out, but each    M
                      has a bounded part; no NaN
`centered_clip`       none is ruled out, but each    M
                      has a bounded part; no NaN
`majority_vote`       fewer than half, where the     2 M
                      others agree on the sign
`trimmed_mean`        ``trim`` of n                  M
`coordinate_median`   fewer than half                M
`geometric_median`    fewer than half                3 M
`median_of_means`     in fewer than half the groups  (3 + groups) M
====================  =============================  ==========================

Above 16 microbatches the medians and the trimmed mean also hold a sorted copy of each
leaf. If the leading axis is sharded, every device gathers all n gradients but for
`mean`, `mean_of_clipped`, `centered_clip` and `majority_vote`, which are sums.
"""

from optax_heavytail.aggregation._devices import over_devices
from optax_heavytail.aggregation._feedback import (
    ErrorFeedbackState,
    aggregate_with_error_feedback,
)
from optax_heavytail.aggregation._means import RunningMean, mean, mean_of_clipped
from optax_heavytail.aggregation._medians import (
    coordinate_median,
    geometric_median,
    median_of_means,
    trimmed_mean,
)
from optax_heavytail.aggregation._votes import centered_clip, majority_vote

__all__ = [
    "ErrorFeedbackState",
    "RunningMean",
    "aggregate_with_error_feedback",
    "centered_clip",
    "coordinate_median",
    "geometric_median",
    "majority_vote",
    "mean",
    "mean_of_clipped",
    "median_of_means",
    "over_devices",
    "trimmed_mean",
]
