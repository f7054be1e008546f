"""Gradients of the result of a long training, by perturbing what it depends on.

A training is cut into windows, after each of which the weights change. Differentiating
a window alone is biased, and through many steps it is chaotic; so pairs of trainings
run side by side, with weights perturbed either way, and only their losses are used.
"""

import jax
import jax.numpy as jnp

KINDS = ("nres", "pes", "truncated")


def perturb(
    kind: str, key: jax.Array, total: jax.Array, is_new: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The perturbation of a window, and the one that its losses are laid to.

    Args:
      kind: "nres" keeps one perturbation for an episode; "pes" draws one for each
        window and lays losses to their sum, as earlier ones still have effects;
        "truncated" forgets earlier ones, which is biased, and there to be seen.
      key: of this window and worker.
      total: what this function returned second in the last window.
      is_new: whether an episode begins.

    Returns:
      Two arrays like ``total``: of normal numbers of variance 1, and sums of such.
    """
    drawn = jax.random.normal(key, total.shape, total.dtype)
    if kind == "nres":
        kept = jnp.where(is_new, drawn, total)
        return kept, kept
    if kind == "pes":
        return drawn, jnp.where(is_new, 0, total) + drawn
    return drawn, drawn


def gradient(
    total: jax.Array, plus: jax.Array, minus: jax.Array, sigma: float
) -> jax.Array:
    """Of the mean loss of a window, from those of its two trainings.

    Args:
      total: the second result of `perturb`.
      plus: the loss with weights plus ``sigma`` times the perturbation.
      minus: likewise minus.
      sigma: size of the perturbations.
    """
    return total * (plus - minus) / (2 * sigma)


def clipped_mean(gradients: jax.Array, limit: float) -> jax.Array:
    """The mean over workers, each at most so long: a worker may be anywhere."""
    norms = jnp.sqrt(jnp.sum(jnp.square(gradients), axis=-1, keepdims=True))
    finite = jnp.isfinite(norms)
    factors = jnp.minimum(limit / jnp.where(finite & (norms > 0), norms, 1), 1)
    return jnp.mean(jnp.where(finite, factors * gradients, 0), axis=0)
