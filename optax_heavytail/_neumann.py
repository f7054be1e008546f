"""The Neumann optimizer, flattened: one gradient per update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _readers, _tree
from optax_heavytail._schedules.survey import neumann_momentum
from optax_heavytail._transform import transform

_NEVER = jnp.iinfo(jnp.int32).max


class NeumannState(NamedTuple):
    """State of `neumann`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    next_reset: jax.Array  #: (), int32, the update to reset in; the maximum for none
    interval: jax.Array  #: (), int32, updates from that reset to the one after it
    momentum_coefficient: jax.Array  #: (), float32 or wider, mu of the last update
    mu: Any  #: m, like the parameters, float32 or wider or in mu_dtype
    average: Any  #: v, like the parameters, float32 or wider


def neumann(
    learning_rate: _base.ScalarOrSchedule,
    *,
    cubic: jax.typing.ArrayLike = 1e-7,
    repulsive: jax.typing.ArrayLike = 1e-5,
    repulsive_scale: str | jax.typing.ArrayLike = "leaves",
    ema_decay: jax.typing.ArrayLike = 0.99,
    momentum: _base.ScalarOrSchedule | None = None,
    burn_in_steps: jax.typing.ArrayLike = 0,
    reset_interval: jax.typing.ArrayLike | None = None,
    reset_growth: jax.typing.ArrayLike = 2,
    mu_dtype: jax.typing.DTypeLike | None = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The Neumann optimizer: a truncated Newton direction from gradients alone.

    The parameters in training are the displaced ones; **evaluate and keep**
    `neumann_eval_params`. With :math:`v_0 = w_0`, :math:`m_0 = 0`,
    :math:`r = \lVert w_{t-1} - v_{t-1} \rVert` over all leaves and updates
    :math:`t \geq 1` after the burn-in,

    .. math::
        d_t &= g_t + \left(\alpha r^2 - \min\left(\frac{\beta}{r^2},
        \lVert g_t \rVert\right)\right) \frac{w_{t-1} - v_{t-1}}{r}, \\
        m_t &= \mu_t m_{t-1} - \eta_t d_t, \\
        w_t &= w_{t-1} + \mu_t m_t - \eta_t d_t, \\
        v_t &= w_t + \gamma (v_{t-1} - w_t).

    At a reset, and where :math:`r = 0`, :math:`d_t = g_t`; at a reset also
    :math:`m_t = -\eta_t g_t`. The first update after the burn-in is a reset. During the
    burn-in :math:`w_t = v_t = w_{t-1} - \eta_t g_t` and :math:`m_t = 0`.

    Departure from the source: its repulsive force :math:`\beta / r^2` is singular and
    is here at most the gradient's norm.

    Args:
      learning_rate: :math:`\eta` in [0, inf), or a schedule of the count from 0. The
        only number that usually needs tuning.
      cubic: :math:`\alpha` in [0, inf), weight of the cubic regulariser.
      repulsive: :math:`\beta` in [0, inf), per ``repulsive_scale``.
      repulsive_scale: what ``repulsive`` is multiplied by: "leaves", the number of
        leaves; "params", the number of parameters; or a number in [0, inf).
      ema_decay: :math:`\gamma` in [0, 1], per update.
      momentum: :math:`\mu` in [0, 1), or a schedule of the count from 0 at the end of
        the burn-in. ``None``: `neumann_momentum`, from 0.5 up to 0.9. Bind a schedule
        with ``functools.partial`` before ``optax.inject_hyperparams``, which would
        count the burn-in as well.
      burn_in_steps: updates of plain SGD at the start, in [0, inf). The source takes 5
        epochs.
      reset_interval: updates from the first reset to the second, in [1, inf); ``None``
        for no further reset. The source takes 10 epochs.
      reset_growth: factor on the interval after every reset, in [1, inf). 2 doubles it,
        1 keeps resets at equal distances.
      mu_dtype: dtype of :math:`m` in the state; see `ema`.
      axis_name: for parameters sharded by hand inside ``shard_map`` or ``pmap``: the
        mesh axis to sum norms over, a tuple of axes, or a tree prefix of these with
        ``None`` for leaves that are replicated. Nothing is needed under ``jit``.

    Returns:
      A transform with a `NeumannState`, two more copies of the parameters. Its
      ``update`` needs the parameters. Updates keep the gradients' structure, shapes and
      dtypes. Zero gradients from the start give zero updates. Norms of huge and tiny
      gradients neither overflow nor underflow, but the cubic force diverges where
      :math:`\lVert w - v \rVert` exceeds about :math:`1 / (\eta \alpha)`. One gradient
      of a norm above about :math:`1 / (\eta^2 \alpha)`, 1e9 for a rate of 0.1 with the
      defaults, leads there: parameters and state are NaN a few updates later, for good.
      Clip it first, or wrap with `skip_if_unsafe`. An inf or NaN
      entry makes every entry NaN, at the latest in the next update (during the burn-in
      its own alone).

    Raises:
      ValueError: a concrete number is outside its range, or ``update`` was called
        without parameters.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> hessian = jnp.array([1.0, 20.0])
      >>> tx = oht.neumann(learning_rate=0.04)
      >>> params = jnp.array([1.0, 1.0])
      >>> state, update = tx.init(params), jax.jit(tx.update)
      >>> for _ in range(100):
      ...     updates, state = update(hessian * params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(jnp.all(jnp.abs(oht.neumann_eval_params(state, params)) < 0.02))
      True

    References:
      Krishnan, Xiao and Saurous, `Neumann optimizer <https://arxiv.org/abs/1712.03298>`_,
      2018, algorithm 2. Its :math:`\alpha, \beta, \gamma, \mu(t), \eta(t), K` are
      ``cubic``, ``repulsive`` times its scale, ``ema_decay``, ``momentum``,
      ``learning_rate`` and ``reset_interval``.
    """
    _base.check_range("learning_rate", learning_rate, 0.0, float("inf"))
    _check_force(cubic, repulsive, repulsive_scale)
    _base.check_range("ema_decay", ema_decay, 0.0, 1.0)
    _check_resets(burn_in_steps, reset_interval, reset_growth)
    _base.check_dtype("mu_dtype", mu_dtype)
    mu_schedule = neumann_momentum() if momentum is None else momentum
    _base.check_range("momentum", mu_schedule, 0.0, 1.0, high_open=True)

    def init(params):
        return _start(params, burn_in_steps, reset_interval, mu_dtype)

    def update(grads, state, params):
        count = jnp.asarray(optax.safe_increment(state.count))
        burning = count <= burn_in_steps
        is_reset = (count == state.next_reset) & (state.next_reset < _NEVER)
        after_burn_in = jnp.maximum(state.count - burn_in_steps, 0)
        dtype = state.momentum_coefficient.dtype
        mu = jnp.asarray(_base.at_count(mu_schedule, after_burn_in), dtype)
        eta = _base.at_count(learning_rate, state.count)
        strength = jnp.asarray(repulsive) * _scale(repulsive_scale, params, axis_name)
        distance = _norms.global_norm(params, axis_name, point=state.average)
        gradient = _norms.global_norm(grads, axis_name).value
        pull = _pull(distance, gradient, cubic, strength)
        # Neither past momentum nor the regularisers act in a reset or the burn-in.
        free = ~(is_reset | burning)
        keep = jnp.where(free, mu, 0)
        ahead = jnp.where(burning, 0, mu)
        pull, keep, ahead = jax.lax.optimization_barrier(
            ((pull[0], jnp.where(free, pull[1], 0)), keep, ahead)
        )
        step = jax.tree.map(
            lambda g, w, v: eta * jnp.where(free, g + (w - v) * pull[0] * pull[1], g),
            grads,
            params,
            state.average,
        )
        momentum, new_updates, average = _move(
            params, state, step, keep, ahead, burning, ema_decay
        )
        next_reset, interval = _next_reset(state, is_reset, reset_growth)
        return new_updates, NeumannState(
            count, next_reset, interval, ahead, momentum, average
        )

    dtypes = {"mu": mu_dtype, "average": None}
    return transform(init, update, dtypes=dtypes, needs_params=True)


def neumann_eval_params(state: optax.OptState, params: optax.Params) -> Any:
    r"""The parameters that `neumann` has found: :math:`w - \mu m`.

    Args:
      state: the state of `neumann`, or one that contains it (see `get_threshold`).
      params: the current, displaced parameters.

    Returns:
      Parameters with the structure, shapes and dtypes of ``params``; leaves that are
      masked out of the state as they are.

    Raises:
      ValueError: no `NeumannState` in ``state``, or several that do not complement
        each other.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = oht.neumann(learning_rate=0.1)
      >>> params = jnp.array([1.0])
      >>> updates, state = tx.update(jnp.array([1.0]), tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> round(float(params[0]), 3)  # 1 - 0.1 - 0.5 * 0.1
      0.85
      >>> round(float(oht.neumann_eval_params(state, params)[0]), 3)
      0.9
    """
    found = _readers.get_states(state, NeumannState)
    steps = [
        jax.tree.map(lambda m, mu=one.momentum_coefficient: mu * m, one.mu)
        for one in found
    ]

    def read(step, w):
        if _readers.is_masked(step):
            return w
        return (_tree.at_least_float32(w) - step).astype(jnp.result_type(w))

    return jax.tree.map(
        read,
        _readers.merge_masked(steps, "Neumann momentum"),
        params,
        is_leaf=_readers.is_masked,
    )


def _check_force(cubic, repulsive, repulsive_scale):
    _base.check_range("cubic", cubic, 0.0, float("inf"))
    _base.check_range("repulsive", repulsive, 0.0, float("inf"))
    if isinstance(repulsive_scale, str):
        _base.check_choice("repulsive_scale", repulsive_scale, ("leaves", "params"))
    else:
        _base.check_range("repulsive_scale", repulsive_scale, 0.0, float("inf"))


def _check_resets(burn_in_steps, reset_interval, reset_growth):
    _base.check_integer("burn_in_steps", burn_in_steps, 0)
    if reset_interval is not None:
        _base.check_integer("reset_interval", reset_interval, 1)
    _base.check_integer("reset_growth", reset_growth, 1)


def _start(params, burn_in_steps, reset_interval, mu_dtype):
    """The state before the first update."""
    never = jnp.array(_NEVER, jnp.int32)
    first = jnp.asarray(burn_in_steps, jnp.int32) + 1
    interval = never if reset_interval is None else reset_interval
    return NeumannState(
        count=jnp.zeros([], jnp.int32),
        next_reset=first,
        interval=jnp.asarray(interval, jnp.int32),
        momentum_coefficient=jnp.zeros(
            [], jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        ),
        mu=_tree.zeros_like(params, mu_dtype),
        average=_tree.copy(params),
    )


def _move(params, state, step, keep, ahead, burning, ema_decay):
    """Momentum, update and average, each made of the one before.

    Then XLA writes all of them in place. Otherwise it copies the old momentum first.
    """
    momentum = jax.tree.map(
        lambda m, s: keep * m - jnp.where(burning, 0, s), state.mu, step
    )
    new_updates = jax.tree.map(lambda m, s: ahead * m - s, momentum, step)
    decay = jnp.where(burning, 0, ema_decay)
    average = jax.tree.map(
        lambda w, u, v: (w + u) + decay * (v - (w + u)),
        params,
        new_updates,
        state.average,
    )
    return momentum, new_updates, average


def _pull(distance, gradient, cubic, strength):
    """Two factors: their product with ``w - v`` is the force of both regularisers."""
    zero = distance.scaled == 0
    r = _tree.maximum(distance.value, jnp.finfo(distance.value.dtype).tiny)
    r = jnp.where(zero, 1, r)  # not used, and no inf on the way
    # Not a quotient of a quotient: XLA makes one of it, and a small square underflows.
    inverse = 1 / r
    repulsion = _tree.minimum(strength * inverse * inverse, gradient)
    force = jnp.where(zero, 0, cubic * r * r - repulsion)
    return distance.scale, force / jnp.where(zero, 1, distance.scaled)


def _scale(repulsive_scale, params, axis_name):
    if not isinstance(repulsive_scale, str):
        return repulsive_scale
    if repulsive_scale == "leaves":
        return len(jax.tree.leaves(params))
    return _norms.size(params, axis_name)


def _next_reset(state, is_reset, growth):
    """Count of the next reset, and the interval from there, saturating at "never"."""
    room = _NEVER - state.next_reset
    later = state.next_reset + jnp.minimum(state.interval, room)
    longer = jnp.where(
        state.interval > _NEVER // growth, _NEVER, state.interval * growth
    )
    return (
        jnp.where(is_reset, later, state.next_reset),
        jnp.where(is_reset, longer, state.interval).astype(jnp.int32),
    )
