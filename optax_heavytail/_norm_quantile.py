"""Clipping at a quantile of the norms: AutoClip and QC-SGD."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _history, _tree
from optax_heavytail._clip_by_history import clip_by_past
from optax_heavytail._units import Units


def clip_by_norm_quantile(
    quantile: jax.typing.ArrayLike = 0.9,
    window: int = 1000,
    *,
    include_current: bool = True,
    min_history: jax.typing.ArrayLike = 1,
    scope: str = "global",
    layer_axis: Any = None,
    nonfinite: str = "propagate",
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Limits the norm of the updates to a quantile of the last norms.

    With the norms :math:`n_j` of the last ``window`` updates, this one included, as
    they came,

    .. math::
        \tau_k = \operatorname{quantile}_q(n_j), \qquad
        u_k = \min\left(\frac{\tau_k}{n_k}, 1\right) g_k ,

    on the straight line between two of the norms where it is none of them.

    A quantile clips the share :math:`1 - q` of all updates, however calm they are:
    AutoClip's 0.1 is near to normalisation at a slowly drifting length. Against rare
    spikes alone take `clip_by_history`, which leaves the others as they are.

    Args:
      quantile: :math:`q` in [0, 1].
      window: how many norms to remember, a Python integer, at least 1.
      include_current: whether the norm of this update is one of them. In a window of 1
        nothing is then ever clipped. ``False`` takes the last ``window`` before it.
      min_history: how many norms there must be before anything is clipped, an integer
        of at least 1.
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
      ValueError: a concrete number is outside its range, ``scope`` or ``nonfinite`` is
        unknown, or ``layer_axis`` comes with scope "global".
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_norm_quantile(0.5, window=4)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (1.0, 2.0, 3.0, 100.0, 2.0):
      ...     updates, state = tx.update(jnp.array([grad]), state)
      ...     print(float(updates[0]))
      1.0
      1.5
      2.0
      2.5
      2.0

    References:
      Seetharaman et al., `AutoClip <https://arxiv.org/abs/2007.14469>`_, 2020; Merad
      and Gaiffas, `Robust stochastic optimization via gradient quantile clipping
      <https://arxiv.org/abs/2309.17316>`_, 2024.
    """
    _base.check_range("quantile", quantile, 0.0, 1.0)
    _base.check_static_integer("window", window, 1)
    _base.check_flag("include_current", include_current)
    _base.check_integer("min_history", min_history, 1)

    def limit(history, norms):
        pool = history
        if include_current:
            pool = _history.append(history, norms, jnp.isfinite(norms) & (norms > 0))
        is_known = _history.size(pool) >= min_history
        found = _history.quantile(pool, quantile)
        return jnp.where(is_known, found, _tree.no_limit(found.dtype))

    return clip_by_past(
        limit, window, Units(scope, layer_axis, axis_name), nonfinite=nonfinite
    )
