"""Clipping at so many deviations above what the norms were lately."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _history, _tree
from optax_heavytail._clip_by_history import clip_by_past
from optax_heavytail._skip_if_unsafe import RULES
from optax_heavytail._units import Units

_REMEMBER = ("raw", "clipped")
_SMALLEST_DEVIATION = 1e-6  # the published rule's


def clip_by_norm_deviation(
    max_deviations: jax.typing.ArrayLike = 6.0,
    window: int = 128,
    *,
    rule: str = "median",
    remember: str = "raw",
    scope: str = "global",
    layer_axis: Any = None,
    nonfinite: str = "propagate",
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Limits the norm of the updates to so many deviations above the last norms.

    With the logarithms :math:`s_j` of the norms of the last ``window`` updates before
    this one and their median :math:`\tilde s`,

    .. math::
        \tau_k = \exp\left(\tilde s + c \max\left(1.4826 \operatorname{median}_j
        |s_j - \tilde s|, 0.05\right)\right), \qquad
        u_k = \min\left(\frac{\tau_k}{\lVert g_k \rVert}, 1\right) g_k .

    It is the rule of `skip_if_unsafe` with another action. Behind `scale_by_adam` it
    limits the length of the steps, in front of it that of the gradients.

    Args:
      max_deviations: :math:`c` in (0, inf).
      window: how many norms to remember, a Python integer, at least 2. Nothing is
        clipped until the window is full.
      rule: "median", as above; or "mean": the mean of the norms and so many of their
        standard deviations (divisor size, at least 1e-6), once the window is half full.
        One outlier in the window lifts that limit far.
      remember: whether the norms that enter are the "raw" ones or those after the clip,
        "clipped".
      scope: "global" for one norm, "leaf" for one, and a window, per leaf.
      layer_axis: see `clip_by_history`.
      nonfinite: "propagate": a unit with an inf or NaN becomes NaN; "zero": such an
        entry becomes 0, and the norm is that of the rest.
      axis_name: see `clip_by_history`.

    Returns:
      A transform with a `ClipByHistoryState`. Updates keep their structure, shapes and
      dtypes. Zero updates stay zero; their norm and one that is not finite enter no
      window. Huge and tiny updates are clipped right.

    Raises:
      ValueError: a concrete number is outside its range, a word is unknown, or
        ``layer_axis`` comes with scope "global".
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_norm_deviation(2.0, window=4, rule="mean")
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (1.0, 3.0, 100.0):  # the mean is 2, the deviation 1
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> float(updates[0])
      4.0

    References:
      The rule "mean" is that of `levanter's
      <https://github.com/stanford-crfm/levanter>`_ clip of update norms.
    """
    _base.check_range(
        "max_deviations", max_deviations, 0.0, float("inf"), low_open=True
    )
    _base.check_static_integer("window", window, 2)
    _base.check_choice("rule", rule, RULES)
    _base.check_choice("remember", remember, _REMEMBER)

    def limit(history, norms):
        del norms
        if rule == "median":
            return _history.norm_limit(history, max_deviations)
        mean, deviation = _history.mean_and_deviation(history, ddof=0)
        tau = mean + max_deviations * jnp.maximum(deviation, _SMALLEST_DEVIATION)
        is_known = history.seen >= max(2, window // 2)
        return jnp.where(is_known, tau, _tree.no_limit(tau.dtype))

    return clip_by_past(
        limit,
        window,
        Units(scope, layer_axis, axis_name),
        nonfinite=nonfinite,
        remember_clipped=remember == "clipped",
    )
