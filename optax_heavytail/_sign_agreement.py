"""PowerSign and AddSign: larger steps where gradient and average agree in sign."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import transform

Decay = Callable[[jax.Array], jax.typing.ArrayLike]


class ScaleBySignAgreementState(NamedTuple):
    """State of `scale_by_powersign` and `scale_by_addsign`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    mu: Any  #: m, like the parameters, float32 or wider or in mu_dtype


def scale_by_powersign(
    b1: jax.typing.ArrayLike = 0.9,
    base: jax.typing.ArrayLike = math.e,
    *,
    sign_decay: Decay | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the gradient by a power whose sign is that of an agreement.

    Elementwise, with :math:`m_0 = 0` and updates :math:`t \geq 1`,

    .. math:: m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        u_t = a^{f_t \operatorname{sign}(g_t) \operatorname{sign}(m_t)} g_t .

    Args:
      b1: :math:`\beta_1` in [0, 1), per update.
      base: :math:`a` in (0, inf), without unit; above 1 agreement speeds up.
      sign_decay: :math:`f`, a schedule of the count from 0, such as
        ``optax.cosine_decay_schedule(1.0, steps)`` or `warm_restarts`. ``None``: 1.
      mu_dtype: dtype of :math:`m` in the state; see `ema`.

    Returns:
      A transform with a `ScaleBySignAgreementState`. Updates keep the gradients'
      structure, shapes and dtypes. Zero gradients give zero updates; huge ones grow by
      at most :math:`a^f`; an inf or NaN gradient stays in its coordinate's average,
      which is NaN or has a fixed sign from then on.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_powersign(b1=0.75, base=2.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grad in (4.0, -1.0):  # the average stays positive
      ...     updates, state = tx.update(jnp.array([grad]), state)
      >>> float(updates[0])
      -0.5

    References:
      Bello et al., `Neural optimizer search with reinforcement learning
      <https://arxiv.org/abs/1709.07417>`_, 2017, section 4.4.
    """
    _base.check_range("base", base, 0.0, float("inf"), low_open=True)

    def factor(agreement):
        return base**agreement

    return _scale_by_agreement(b1, sign_decay, mu_dtype, factor)


def scale_by_addsign(
    b1: jax.typing.ArrayLike = 0.9,
    alpha: jax.typing.ArrayLike = 1.0,
    *,
    sign_decay: Decay | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the gradient by a number plus an agreement of signs.

    Elementwise, with :math:`m_0 = 0` and updates :math:`t \geq 1`,

    .. math:: m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        u_t = (\alpha + f_t \operatorname{sign}(g_t) \operatorname{sign}(m_t)) g_t .

    Args:
      b1: :math:`\beta_1` in [0, 1), per update.
      alpha: :math:`\alpha` in [0, inf), without unit; 1 stops where signs differ.
      sign_decay: :math:`f`, a schedule of the count from 0. ``None``: 1.
      mu_dtype: dtype of :math:`m` in the state; see `ema`.

    Returns:
      A transform with a `ScaleBySignAgreementState`. Updates keep the gradients'
      structure, shapes and dtypes. Zero gradients give zero updates; huge ones grow by
      at most :math:`\alpha + f`; an inf or NaN gradient stays in its coordinate's
      average, which is NaN or has a fixed sign from then on.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.scale_by_addsign(b1=0.75)
      >>> state = tx.init(jnp.zeros(2))
      >>> for grad in ([4.0, 4.0], [-1.0, 1.0]):  # both averages stay positive
      ...     updates, state = tx.update(jnp.array(grad), state)
      >>> (updates + 0.0).tolist()
      [0.0, 2.0]

    References:
      Bello et al., `Neural optimizer search with reinforcement learning
      <https://arxiv.org/abs/1709.07417>`_, 2017, section 4.4.
    """
    _base.check_range("alpha", alpha, 0.0, float("inf"))

    def factor(agreement):
        return alpha + agreement

    return _scale_by_agreement(b1, sign_decay, mu_dtype, factor)


def powersign(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    base: jax.typing.ArrayLike = math.e,
    *,
    sign_decay: Decay | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""PowerSign.

    .. math:: w_t = w_{t-1} - \eta_t u_t

    with :math:`u_t` of `scale_by_powersign`.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      b1: decay of the average, in [0, 1).
      base: :math:`a` in (0, inf).
      sign_decay: :math:`f`, a schedule of the count from 0: linear, cosine, or
        `warm_restarts` for a cosine with restarts. ``None``: 1.
      mu_dtype: dtype of :math:`m` in the state; see `ema`.

    Returns:
      ``chain(scale_by_powersign, scale_by_learning_rate)``. What zero, huge, inf, NaN
      gradients do is said at `scale_by_powersign`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> decay = optax.cosine_decay_schedule(1.0, decay_steps=1000)
      >>> tx = oht.powersign(learning_rate=0.1, base=2.0, sign_decay=decay)
      >>> updates, _ = tx.update(jnp.array([4.0]), tx.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 3)
      -0.8

    References:
      Bello et al., `Neural optimizer search with reinforcement learning
      <https://arxiv.org/abs/1709.07417>`_, 2017.
    """
    return optax.chain(
        scale_by_powersign(b1, base, sign_decay=sign_decay, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


def addsign(
    learning_rate: _base.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    alpha: jax.typing.ArrayLike = 1.0,
    *,
    sign_decay: Decay | None = None,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AddSign.

    .. math:: w_t = w_{t-1} - \eta_t u_t

    with :math:`u_t` of `scale_by_addsign`.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0.
      b1: decay of the average, in [0, 1).
      alpha: :math:`\alpha` in [0, inf).
      sign_decay: :math:`f`, a schedule of the count from 0; see `powersign`.
        ``None``: 1.
      mu_dtype: dtype of :math:`m` in the state; see `ema`.

    Returns:
      ``chain(scale_by_addsign, scale_by_learning_rate)``. What zero, huge, inf and NaN
      gradients do is said at `scale_by_addsign`.

    Raises:
      ValueError: a concrete number is outside its range.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.addsign(learning_rate=0.1)
      >>> updates, _ = tx.update(jnp.array([4.0]), tx.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 3)
      -0.8

    References:
      Bello et al., `Neural optimizer search with reinforcement learning
      <https://arxiv.org/abs/1709.07417>`_, 2017.
    """
    return optax.chain(
        scale_by_addsign(b1, alpha, sign_decay=sign_decay, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


def _scale_by_agreement(
    b1: jax.typing.ArrayLike,
    sign_decay: Decay | None,
    mu_dtype: jax.typing.DTypeLike | None,
    factor: Callable[[jax.Array], Any],
) -> optax.GradientTransformationExtraArgs:
    _base.check_range("b1", b1, 0.0, 1.0, high_open=True)
    _base.check_dtype("mu_dtype", mu_dtype)

    def init(params):
        return ScaleBySignAgreementState(
            jnp.zeros([], jnp.int32), _tree.zeros_like(params, mu_dtype)
        )

    def update(grads, state):
        strength = 1 if sign_decay is None else _base.at_count(sign_decay, state.count)
        average = optax.tree.update_moment(grads, state.mu, b1, 1)
        scaled = jax.tree.map(
            lambda g, m: factor(strength * jnp.sign(g) * jnp.sign(m)) * g,
            grads,
            average,
        )
        count = optax.safe_increment(state.count)
        return scaled, ScaleBySignAgreementState(count, average)

    return transform(init, update, dtypes={"mu": mu_dtype})
