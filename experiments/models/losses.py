"""The loss of all tasks."""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    r"""Cross entropy of a softmax, of logits of any size.

    .. math:: \log \sum_j e^{x_j - m} - (1 - s) (x_y - m)
        - \frac{s}{n} \sum_j (x_j - m), \qquad m = \max_j x_j.

    The maximum goes first. ``optax.softmax_cross_entropy_with_integer_labels`` adds it
    to the logarithm, where float32 loses the latter from 1e8 on, and subtracts the
    label's logit then: 0 for ten equal logits of 1e8, whose cross entropy is log 10.

    Args:
      logits: (..., n), widened to float32.
      labels: (...), integers in [0, n).
      smoothing: :math:`s` in [0, 1), the share of each label that all n get alike.

    Returns:
      (...), float32 or wider. NaN where a logit is NaN or inf, or all are -inf.

    Example:
      >>> loss = cross_entropy(jnp.full(10, 1e8), jnp.array(3))
      >>> round(float(loss), 4)  # log 10
      2.3026
    """
    # Wide first: differences of float16 logits may be too large for float16.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    below = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    chosen = jnp.take_along_axis(below, labels[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(below, axis=-1) - (1 - smoothing) * chosen
    if smoothing:  # 0 times an infinite mean would be NaN
        loss -= smoothing * jnp.mean(below, axis=-1)
    return loss
