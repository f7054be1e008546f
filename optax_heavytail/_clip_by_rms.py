"""Clipping by the root mean square, which does not depend on a leaf's size."""

from typing import Any

import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _units
from optax_heavytail._gclip import ClipByNormState
from optax_heavytail._transform import transform


def clip_by_rms(
    threshold: _base.ScalarOrSchedule = 1.0,
    *,
    scope: str = "leaf",
    layer_axis: Any = None,
    nonfinite: str = "propagate",
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales the updates down so that their root mean square is at most a threshold.

    .. math:: u = \min\left(\frac{d}{\operatorname{RMS}(g)}, 1\right) g, \qquad
        \operatorname{RMS}(g) = \frac{\lVert g \rVert}{\sqrt{n}},

    for each leaf of :math:`n` entries, or each slice of it. Behind Adam's direction,
    whose entries are of size 1 in calm training, a threshold of 1 catches the steps
    that an outdated second moment lets grow; `stable_adamw` measures the gradient
    instead. In front of Adam it is `clip_by_norm` with a threshold for each size.

    Args:
      threshold: :math:`d` in (0, inf), in the updates' units, or a schedule of the
        count from 0.
      scope: "leaf" for one mean per leaf, "global" for one over all.
      layer_axis: with the scope "leaf" the axis that stacks layers, each of which has
        its own mean: an int, ``None``, or a tree prefix of these.
      nonfinite: what an inf or NaN entry does. "propagate": every entry that shares its
        mean becomes NaN. "zero": that entry alone becomes 0, and counts as one.
      axis_name: see `clip_by_norm`.

    Returns:
      A transform with a `ClipByNormState`. Updates keep their structure, shapes and
      dtypes. Those within the threshold pass bit for bit, zero stays zero, huge and
      tiny ones are clipped right, and no mean ever grows.

    Raises:
      ValueError: a concrete threshold is outside its range, ``scope`` or ``nonfinite``
        is unknown, or there is a ``layer_axis`` with the scope "global".
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_rms(1.0)
      >>> grads = {"long": jnp.full(100, 0.5), "short": jnp.array([6.0, 8.0])}
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> float(updates["long"][0]), [round(u, 3) for u in updates["short"].tolist()]
      (0.5, [0.849, 1.131])

    References:
      Shazeer and Stern, `Adafactor <https://arxiv.org/abs/1804.04235>`_, 2018, section
      6.
    """
    _base.check_range("threshold", threshold, 0.0, float("inf"), low_open=True)
    _base.check_choice("nonfinite", nonfinite, _units.NONFINITE)
    units = _units.Units(scope, layer_axis, axis_name)

    def init(params):
        return ClipByNormState(jnp.zeros([], jnp.int32), units.all_kept(params))

    def update(updates, state):
        if nonfinite == "zero":
            updates = _units.zero_nonfinite(updates)
        limit = _base.at_count(threshold, state.count) * units.counts(updates) ** 0.5
        norms = units.norms(updates)
        kept = units.report(_norms.clip_factor(norms, limit), updates)
        count = optax.safe_increment(state.count)
        return units.clip(updates, norms, limit), ClipByNormState(count, kept)

    return transform(init, update)
