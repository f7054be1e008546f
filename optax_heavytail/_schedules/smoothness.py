"""Constants of steps for objectives whose smoothness grows with the gradient."""

from typing import Any

import jax

from optax_heavytail import _base

_RULES = ("simple", "clipped", "gorbunov")
_OMEGA = 0.5671432904097838  # the solution of x e^x = 1


def l0l1_constants(
    l0: jax.typing.ArrayLike, l1: jax.typing.ArrayLike, rule: str = "simple"
) -> dict[str, Any]:
    r"""Arguments of `normalized_gd` or `clipped_gd` for (L0, L1)-smooth objectives.

    For :math:`\lVert \nabla^2 f(w) \rVert \leq L_0 + L_1 \lVert \nabla f(w) \rVert`
    with the gradient's norm :math:`n` the published steps are those of the two:

    =========== ====================================================== ===============
    ``rule``    :math:`h`, of the update :math:`-h g`                  for
    =========== ====================================================== ===============
    "simple"    :math:`1 / (L_0 + \tfrac{3}{2} L_1 n)`                 `normalized_gd`
    "clipped"   :math:`\min(1 / (2 L_0), 1 / (3 L_1 n))`               `clipped_gd`
    "gorbunov"  :math:`\tfrac{\nu}{2} / (L_0 + L_1 n)`,                `normalized_gd`
                :math:`\nu e^\nu = 1`
    =========== ====================================================== ===============

    All descend on exact gradients. Where they are noisy the constants are a start for a
    search.

    Args:
      l0: :math:`L_0` in [0, inf), in (0, inf) for "clipped";
        `~optax_heavytail.diagnostics.fit_smoothness` measures both.
      l1: :math:`L_1` in (0, inf), in units of 1 / parameter. With 0 gradient descent
        with the rate :math:`1 / L_0` is right.
      rule: "simple", "clipped" or "gorbunov".

    Returns:
      A dict of keyword arguments: ``learning_rate`` with ``offset`` or with
      ``max_update_norm``.

    Raises:
      ValueError: a concrete number is outside its range, or ``rule`` is unknown.

    Example:
      >>> import optax_heavytail as oht
      >>> constants = oht.l0l1_constants(1.0, 2.0, "clipped")
      >>> {name: round(x, 4) for name, x in constants.items()}
      {'learning_rate': 0.5, 'max_update_norm': 0.1667}
      >>> tx = oht.clipped_gd(**constants)

    References:
      Vankov et al., `Optimizing (L0, L1)-smooth functions by gradient methods
      <https://arxiv.org/abs/2410.10800>`_, 2024, for "simple" and "clipped";
      Gorbunov et al., `Methods for convex (L0, L1)-smooth optimization
      <https://arxiv.org/abs/2409.14989>`_, 2025.
    """
    _base.check_choice("rule", rule, _RULES)
    _base.check_range("l0", l0, 0.0, float("inf"), low_open=rule == "clipped")
    _base.check_range("l1", l1, 0.0, float("inf"), low_open=True)
    if rule == "clipped":
        return {"learning_rate": 1 / (2 * l0), "max_update_norm": 1 / (3 * l1)}
    scale, slope = (_OMEGA / 2, 1.0) if rule == "gorbunov" else (1.0, 1.5)
    return {"learning_rate": scale / (slope * l1), "offset": l0 / (slope * l1)}
