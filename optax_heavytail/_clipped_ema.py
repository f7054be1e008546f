"""An average that takes a bounded step towards each gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree, _units
from optax_heavytail._transform import wrapper


class ClippedEmaState(NamedTuple):
    """State of `clipped_ema`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    mu: Any  #: v, like the parameters, float32 or wider or in accumulator_dtype
    #: s, float32 or wider, 0 before the first; like the parameters ("coordinate"),
    #: (units,) ("leaf") or () ("global"); ``None`` without ``relative``
    distance: Any
    inner_state: optax.OptState


def clipped_ema(
    decay: jax.typing.ArrayLike = 0.9,
    threshold: _base.ScalarOrSchedule | None = None,
    *,
    relative: jax.typing.ArrayLike | None = None,
    b2: jax.typing.ArrayLike = 0.99,
    init: str = "zero",
    inner: optax.GradientTransformation | None = None,
    scope: str = "coordinate",
    layer_axis: Any = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    nonfinite: str = "propagate",
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the gradients, each of which moves the average by a bounded step.

    With :math:`v_0 = 0`, :math:`a_k = \text{inner}(g_k)` and updates :math:`k \geq 1`,
    elementwise or for each leaf,

    .. math::
        d_k = a_k - v_{k-1}, \qquad
        v_k = v_{k-1} + (1 - \beta) \min\left(\frac{\tau_k}{\lVert d_k \rVert}, 1\right)
        d_k, \qquad u_k = v_k .

    It goes where `ema` would, and no gradient moves it by more than
    :math:`(1 - \beta) \tau`. Clipped gradients that are averaged settle at the mean of
    the clipped gradients; this settles at Huber's estimate of their centre, between the
    median (small :math:`\tau`) and the mean (large), which symmetric noise of any tail
    does not shift. ``decay=0`` is Clip21, error feedback for one worker.

    Args:
      decay: :math:`\beta` in [0, 1), per update.
      threshold: :math:`\tau` in (0, inf), in the gradient's units, or a schedule of the
        count from 0. Give this or ``relative``.
      relative: :math:`c` in (0, inf): :math:`\tau_k = c s_{k-1}`, where :math:`s` is
        the average of :math:`\lVert d \rVert` with ``b2``. Distances of 0 and those
        that are not finite do not enter it; the first that does is not clipped.
      b2: :math:`\beta_2` in [0, 1), decay of :math:`s`.
      init: "zero", or "first": :math:`v_1 = a_1`, without which a constant gradient
        takes :math:`\lVert g \rVert / ((1 - \beta) \tau)` updates to reach. There is no
        bias correction, which a clip has no use for.
      inner: makes :math:`a` of the gradient, which it receives in float32 or wider.
        ``None``: the gradient itself.
      scope: what has one distance: "coordinate", "leaf" or "global".
      layer_axis: with scope "leaf" the axis that stacks layers, each of which has its
        own distance: an int, ``None``, or a tree prefix of these.
      accumulator_dtype: dtype of :math:`v` in the state. ``None``: the parameter's own,
        but at least float32. bfloat16 is rounded stochastically: see `ema`.
      nonfinite: what an inf or NaN in :math:`d` does. "propagate": the updates that
        share its distance are NaN, once: nothing of it enters the state. "zero": that
        entry of :math:`d` alone becomes 0.
      axis_name: see `clip_by_norm`. Scope "coordinate" takes no norm.

    Returns:
      A transform with a `ClippedEmaState`, whose ``mu`` `get_momentum` reads, for
      bfloat16 inside a `StochasticRoundingState`. Updates keep the gradients'
      structure, shapes and dtypes. Zero gradients pull the average to 0 step by step,
      and leave it there; huge ones are clipped right.

    Raises:
      ValueError: a concrete number is outside its range, a word is unknown, both or
        none of ``threshold`` and ``relative`` are given, or there is a ``layer_axis``
        without the scope "leaf".
      TypeError: a parameter or gradient is not real floating-point, or ``inner`` is no
        transform.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clipped_ema(decay=0.0, threshold=2.0, scope="leaf")
      >>> state = tx.init(jnp.zeros(2))
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.array([3.0, 4.0]), state)
      ...     print([round(u, 3) for u in updates.tolist()])
      [1.2, 1.6]
      [2.4, 3.2]
      [3.0, 4.0]

    References:
      Khirirat et al., `Clip21 <https://arxiv.org/abs/2305.18929>`_, 2023; Karimireddy,
      He and Jaggi, `Learning from history for Byzantine robust optimization
      <https://arxiv.org/abs/2012.10333>`_, 2021, algorithm 2.
    """
    _base.check_range("decay", decay, 0.0, 1.0, high_open=True)
    _check_limit(threshold, relative)
    _base.check_range("b2", b2, 0.0, 1.0, high_open=True)
    _base.check_choice("init", init, ("zero", "first"))
    _base.check_choice("nonfinite", nonfinite, _units.NONFINITE)
    _base.check_dtype("accumulator_dtype", accumulator_dtype)
    if inner is not None:
        _base.check_transform("inner", inner)
    inner_tx = optax.with_extra_args_support(inner or optax.identity())
    units = _units.of_scope(scope, layer_axis, axis_name)

    def init_fn(params):
        mu = _tree.zeros_like(params, accumulator_dtype)
        distance = None if relative is None else units.zeros(params)
        inner_state = inner_tx.init(params)
        return ClippedEmaState(jnp.zeros([], jnp.int32), mu, distance, inner_state)

    def update(updates, state, params, **extra_args):
        values, inner_state = inner_tx.update(
            _tree.at_least_float32(updates), state.inner_state, params, **extra_args
        )
        values = _tree.at_least_float32(values)
        steps = optax.tree.sub(values, state.mu)
        if nonfinite == "zero":
            steps = _units.zero_nonfinite(steps)
        norms = units.norms(steps)
        is_good = jax.tree.map(jnp.isfinite, norms.scaled)
        limit = _limit(state, threshold, relative)
        clipped = units.where(is_good, units.clip(steps, norms, limit), 0)
        average = optax.tree.add_scale(state.mu, 1 - decay, clipped)
        smoothed = units.where(is_good, average, jnp.nan)
        distance = state.distance
        if relative is not None:
            distance = _follow(distance, norms, b2)
        if init == "first":
            average, smoothed, distance = _from_first(
                state, values, nonfinite, (average, smoothed, distance)
            )
        new_state = ClippedEmaState(
            optax.safe_increment(state.count), average, distance, inner_state
        )
        return _tree.cast_like(smoothed, updates), new_state

    of_distance = {} if relative is None else {"distance": None}
    return wrapper(init_fn, update, dtypes={"mu": accumulator_dtype} | of_distance)


def _limit(state: ClippedEmaState, threshold: Any, relative: Any) -> Any:
    """The tau of this update; the largest number before the first distance."""
    if relative is None:
        return _base.at_count(threshold, state.count)
    return jax.tree.map(
        lambda s: jnp.where(s == 0, _tree.no_limit(s.dtype), relative * s),
        state.distance,
    )


def _follow(averages: Any, norms: _norms.Norm, decay: Any) -> Any:
    """The averages, each with a distance in it that is finite and not 0."""

    def follow(average, scaled, scale):
        size = _norms.Norm(scaled, scale).value
        later = jnp.where(average == 0, size, decay * average + (1 - decay) * size)
        return jnp.where(jnp.isfinite(size) & (size > 0), later, average)

    return jax.tree.map(follow, averages, *norms)


def _from_first(
    state: ClippedEmaState, values: Any, nonfinite: str, later: tuple[Any, Any, Any]
) -> Any:
    """Average, update and distance: those of ``later``, but the first values first."""
    is_first = state.count == 0
    start = _units.zero_nonfinite(values)
    loud = start if nonfinite == "zero" else values
    first = start, loud, state.distance
    return jax.tree.map(lambda x, y: jnp.where(is_first, x, y), first, later)


def _check_limit(threshold: Any, relative: Any) -> None:
    if (threshold is None) == (relative is None):
        raise ValueError(
            "give threshold, in the gradient's units, or relative, in units of the "
            f"usual distance: one of the two, got {threshold!r} and {relative!r}."
        )
    name, value = (
        ("relative", relative) if threshold is None else ("threshold", threshold)
    )
    _base.check_range(name, value, 0.0, float("inf"), low_open=True)
